"""`python -m cfinet_jax.main --config=FILE[:VARIANT] --workdir=DIR [--mode=MODE] [--config.key=value]`.

The file may be one of ours by its name alone, such as scenes or sodad:released. A trained model is evaluated, exported
and used with the config that it was trained with, where no --config is given.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from cfinet_jax.errors import UserError, exit_status
from cfinet_jax.named_configs import locate
from cfinet_jax.runtime import processes
from cfinet_jax.runtime.paths import user_path


class Mode(NamedTuple):
    """What can be done with a config, by a function that is named as the mode."""

    module: str  # below cfinet_jax; imported only when it is needed
    help: str
    flags: tuple[str, ...] = ()  # the flags that only this mode has: further arguments of its function
    example: str = ""  # how to give them, where they are needed
    without: tuple[str, ...] = ()  # of config and workdir, what it does not need
    several: bool = False  # runs on the devices of several processes, if there are any


PREDICT = "--mode=predict --images=PICTURES --output=FOLDER"
ABLATE = "--mode=ablate --study=table5 --seeds=3"
MODES = {
    "train": Mode("training", "learn from the data of the config", several=True),
    "evaluate": Mode("evaluate", "score what the workdir has learnt", without=("config",), several=True),
    "predict": Mode("predict", "detect in pictures", ("images", "output"), PREDICT, without=("config",)),
    "export": Mode("export", "write the detector as StableHLO", without=("config",)),
    "analyse": Mode("studies.analyse", "show what the data are like, and advise"),
    "ablate": Mode(
        "studies.ablate", "train the rows of a study and compare them", ("study", "seeds", "devices"), ABLATE
    ),
    "rules": Mode("studies.analyse.rules", "show what the rules of assignment do"),
    "compile": Mode("studies.compile", "show the cost of a step", ("topology", "classes"), without=("workdir",)),
    "profile": Mode("studies.profile", "show where the time of a step goes"),
}
OPTIONAL = ("topology", "devices")  # flags that may be left out though they have no default

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


def run(arguments: Sequence[str]) -> None:
    """Run one mode."""
    if len(arguments) > 1:
        raise UserError(f"Unknown argument {arguments[1]!r}: settings are given as --config.key=value.")
    mode = MODES[MODE.value]
    for name in ("config", "workdir"):
        if flags.FLAGS[name].value is None and name not in mode.without:
            raise UserError(
                f"--{name} is missing: python -m cfinet_jax.main --config=configs/scenes.py --workdir=runs/scenes"
            )
    given = own_flags(MODE.value)
    if mode.several:
        processes.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    function = getattr(importlib.import_module(f"cfinet_jax.{mode.module}"), MODE.value)
    config = CONFIG.value
    if "workdir" not in mode.without:
        given["workdir"] = user_path(WORKDIR.value)
        if config is None:
            restore = importlib.import_module("cfinet_jax.restore")
            config = restore.recorded_config(restore.recorded(given["workdir"]))
    function(config, **given)


def own_flags(name: str) -> dict[str, Any]:
    """Return the values of the flags that only this mode has. Raises `UserError` for those of other modes."""
    for other, mode in MODES.items():
        for flag in mode.flags:
            if other != name and flags.FLAGS[flag].present:
                raise UserError(f"--{flag} belongs to --mode={other}.")
    values = {flag: flags.FLAGS[flag].value for flag in MODES[name].flags}
    for flag, value in values.items():
        if value is None and flag not in OPTIONAL:
            raise UserError(f"--{flag} is missing: {MODES[name].example}")
    return values


def parse(arguments: Sequence[str]) -> list[str]:
    """Parse flags and load the config. Raises `UserError` for a misspelt key or value."""
    try:
        prefix = "--config="
        given = [prefix + locate(each.removeprefix(prefix)) if each.startswith(prefix) else each for each in arguments]
        rest = flags.FLAGS(given)
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
    """Return the last line of the innermost message, with the line before it if there are but two."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    lines = str(error.args[0] if error.args else error).splitlines()
    return "; ".join(line.strip() for line in (lines if len(lines) < 3 else lines[-1:]))


def guarded(arguments: Sequence[str]) -> int:
    """Run the program; a user's mistake becomes one line and exit status 2."""
    return exit_status(lambda: run(parse(arguments)))


def main() -> int:
    """Run the command line and return its exit status."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path("~/.cache/cfinet_jax").expanduser()))
    app.define_help_flags()
    return guarded(sys.argv)


if __name__ == "__main__":
    sys.exit(main())
