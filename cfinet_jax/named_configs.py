"""Configs by name: `scenes`, `coco:small` for those of the package, `path/to/file.py:variant` for any other."""

import runpy
import sys

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError


def configs_folder() -> epath.Path:
    """Return the folder of our configs: inside the package if it is installed, beside it in a checkout."""
    package = epath.Path(__file__).parent
    return package / "configs" if (package / "configs").exists() else package.parent / "configs"


def config_files() -> list[epath.Path]:
    """Return the files of our configs, by name."""
    return sorted(path for path in configs_folder().iterdir() if path.suffix == ".py")


def locate(name: str) -> str:
    """Return `FILE.py:VARIANT` for a config's name; a path is returned as it is.

    Configs import each other as `configs.NAME`: from here on Python finds them.
    """
    folder = configs_folder()
    if str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))
    stem, colon, variant = name.partition(":")
    return f"{folder / stem}.py{colon}{variant}" if stem.isidentifier() else name


def get_config(name: str) -> ConfigDict:
    """Return a config to change and to train with.

    Args:
      name: a config of the package, such as `scenes` or `coco:small`, or `FILE.py:VARIANT`.

    Raises:
      UserError: there is no such file; the config itself refuses a variant that it does not have.
    """
    path, _, variant = locate(name).rpartition(".py")
    if not epath.Path(f"{path}.py").exists():
        known = ", ".join(file.stem for file in config_files())
        raise UserError(f"There is no config {name!r}: give the path of a file, or one of {known}.")
    variants = [variant.removeprefix(":")] if variant else []
    return runpy.run_path(f"{path}.py")["get_config"](*variants)
