"""Data that the user has not prepared: `data/prepare.py` does it, in a process of its own, on first use."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError

SCRIPT = epath.Path(__file__).parents[1] / "data" / "prepare.py"  # beside the package: it is not installed with it


def prepare(settings: ConfigDict) -> None:
    """Prepares the data set `settings.name` from the folder `settings.source`; what is said on the way is shown.

    Raises:
      UserError: there is no such script, or it refuses the data.
    """
    if not SCRIPT.exists():
        raise UserError(f"dataset.source needs {SCRIPT}: work in a checkout, or prepare the data set in one")
    command = [sys.executable, str(SCRIPT), "own", f"--source={settings.source}", f"--name={settings.name}"]
    command += [f"--data_dir={settings.data_dir}"]
    command += [f"--annotations={entry}" for entry in (settings.annotations or "").split()]
    print(f"Preparing {settings.source} in {settings.data_dir}, once.", flush=True)
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if ended.returncode == 2:  # a mistake of the user's
        raise UserError(ended.stderr.strip().splitlines()[-1])
    sys.stderr.write(ended.stderr)
    ended.check_returncode()


def check_origin(metadata: Mapping[str, Any], settings: ConfigDict, folder: epath.Path) -> None:
    """What was prepared in `folder` comes from the source and the annotations that the settings name, if they do.

    Raises:
      UserError: it does not.
    """
    if settings.source is None:
        return
    wanted = {"source": str(epath.Path(settings.source).resolve())}
    if settings.annotations:
        wanted["annotations"] = " ".join(settings.annotations.split())
    for key, value in wanted.items():
        before = metadata.get(key)
        if before != value:
            raise UserError(
                f"{folder} was prepared from {before or 'something else'}, not from {value}: delete this folder to "
                "prepare it again, or choose another --config.dataset.name"
            )
