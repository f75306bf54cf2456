"""Experiments by name, as `cfinet_jax.main` takes them."""

import runpy

from ml_collections import ConfigDict


def load(name: str) -> ConfigDict:
    """The config of `FILE` or `FILE:VARIANT`."""
    file, _, variant = name.partition(":")
    return runpy.run_path(file)["get_config"](variant)
