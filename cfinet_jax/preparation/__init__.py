"""Preparation of a data set: once, before training, its files become a TFDS directory."""
