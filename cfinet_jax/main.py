"""`python -m cfinet_jax.main --config=FILE[:VARIANT] --workdir=DIR [--mode=MODE] [--config.key=value]`.

What has been trained is evaluated, exported and predicted with as it was configured, where no --config is given.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from cfinet_jax import processes
from cfinet_jax.buckets import user_path
from cfinet_jax.errors import UserError, exit_status

MODES = {  # and the module of each, which has a function of the name
    "train": "training",
    "evaluate": "evaluate",
    "export": "export",
    "predict": "predict",
    "analyse": "analyse",
    "rules": "analyse.rules",
    "compile": "compile",
    "profile": "profile",
    "ablate": "ablate",
}
OF_A_RUN = ("evaluate", "export", "predict")  # without --config, with that of the run in the workdir
OF_SEVERAL = ("train", "evaluate")  # on the devices of several processes, if there are any

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: FILE or FILE:VARIANT.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and results go.")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of the first, free to listen on.")
PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: how many there are.")
PROCESS = flags.DEFINE_integer("process", None, "Several processes: which this one is, from 0.")
flags.DEFINE_string("images", None, "For --mode=predict: a picture, or a folder of them.")
flags.DEFINE_string("output", None, "For --mode=predict: where the detections go.")
flags.DEFINE_string("topology", None, "For --mode=compile: TPUs, such as v5e:16x16; without, this machine.")
flags.DEFINE_integer("classes", 9, "For --mode=compile: how many; SODA-D has 9.", lower_bound=1)

flags.DEFINE_string("study", None, "For --mode=ablate: one of configs/ablations.py, or FILE.py:NAME.")
flags.DEFINE_integer("seeds", 3, "For --mode=ablate: how many runs a row has.", lower_bound=1)
flags.DEFINE_string("devices", None, "For --mode=ablate: numbers such as 0,1: a run on each at a time, not one on all.")

WITHOUT = {"config": OF_A_RUN, "workdir": ("compile",)}  # modes that need no such flag
OWN = {  # flags of one mode
    "images": "predict",
    "output": "predict",
    "topology": "compile",
    "classes": "compile",
    "study": "ablate",
    "seeds": "ablate",
    "devices": "ablate",
}
NEEDED = {
    "images": "--mode=predict --images=PICTURES --output=FOLDER",
    "output": "--mode=predict --images=PICTURES --output=FOLDER",
    "study": "--mode=ablate --study=table5 --seeds=3",
}


def run(arguments: Sequence[str]) -> None:
    """Runs one mode."""
    if len(arguments) > 1:
        raise UserError(f"Unknown argument {arguments[1]!r}: settings are given as --config.key=value.")
    for name, modes in WITHOUT.items():
        if flags.FLAGS[name].value is None and MODE.value not in modes:
            raise UserError(
                f"--{name} is missing: python -m cfinet_jax.main --config=configs/scenes.py --workdir=runs/scenes"
            )
    others = own_values()
    if MODE.value in OF_SEVERAL:
        processes.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    # Only what the mode needs is imported.
    mode = getattr(importlib.import_module(f"cfinet_jax.{MODES[MODE.value]}"), MODE.value)
    if MODE.value == "compile":
        return mode(CONFIG.value, *others)
    config, workdir = CONFIG.value, user_path(WORKDIR.value)
    if config is None:
        trained = importlib.import_module("cfinet_jax.trained")
        config = trained.recorded_config(trained.recorded(workdir))
    mode(config, workdir, *others)


def own_values() -> list[Any]:
    """Of the flags that only this mode has, in their order."""
    values = []
    for name, mode in OWN.items():
        flag = flags.FLAGS[name]
        if mode != MODE.value and flag.present:
            raise UserError(f"--{name} belongs to --mode={mode}.")
        if mode == MODE.value and name in NEEDED and flag.value is None:
            raise UserError(f"--{name} is missing: {NEEDED[name]}")
        values += [flag.value] if mode == MODE.value else []
    return values


def parse(arguments: Sequence[str]) -> list[str]:
    """Parses flags; a misspelt key or value is the user's to mend."""
    sys.path.append(str(epath.Path(__file__).parents[1]))  # our files of `configs` import each other, from any folder
    try:
        rest = flags.FLAGS(arguments)
        getattr(CONFIG.value, "seed", None)  # a file that is missing is reported only when its config is used
        return rest
    except OSError as error:
        raise UserError(f"--config cannot be read: {reason(error)}") from error
    except (AttributeError, KeyError) as error:
        raise UserError(f"--config has no key {reason(error)}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(reason(error)) from error
    except Exception as error:  # of the user's own Python
        raise UserError(f"--config cannot be run ({type(error).__name__}: {reason(error)}): correct it.") from error


def reason(error: BaseException) -> str:
    """The last line of the innermost message, with the line before it if there are but two."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    lines = str(error.args[0] if error.args else error).splitlines()
    return "; ".join(line.strip() for line in (lines if len(lines) < 3 else lines[-1:]))


def guarded(arguments: Sequence[str]) -> int:
    """Runs the program; a user's mistake becomes one line and exit status 2."""
    return exit_status(lambda: run(parse(arguments)))


def main() -> None:
    """The command line."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path("~/.cache/cfinet_jax").expanduser()))
    app.define_help_flags()
    sys.exit(guarded(sys.argv))


if __name__ == "__main__":
    main()
