"""Flax Linen modules; a module has no defaults for hyper-parameters: numbers stand in the configs."""
