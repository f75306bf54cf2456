"""`python -m cfinet_jax.main --config=FILE[:VARIANT] --workdir=DIR [--mode=MODE] [--config.key=value]`.

A config of this package may be given by its name, such as scenes or sodad:released. Without --config, a trained model
is evaluated, exported and used with the config that it was trained with.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from cfinet_jax.errors import UserError, exit_status
from cfinet_jax.named_configs import locate
from cfinet_jax.runtime import processes
from cfinet_jax.runtime.paths import user_path


class Mode(NamedTuple):
    """A mode of the command line, run by the function of the same name."""

    module: str  # below cfinet_jax; imported only when it is needed
    help: str
    flags: tuple[str, ...] = ()  # flags that only this mode has, passed to its function as further arguments
    without: tuple[str, ...] = ()  # which of --config and --workdir it does not need
    several: bool = False  # runs in several processes, if there are any


MODES = {
    "train": Mode("training", "train on the data of the config, then evaluate", several=True),
    "evaluate": Mode("evaluate", "evaluate the detector in the workdir", without=("config",), several=True),
    "predict": Mode("predict", "detect in pictures", ("images", "output"), without=("config",)),
    "export": Mode("export", "write the detector as StableHLO", without=("config",)),
    "analyse": Mode("studies.analyse", "describe the data and advise on the config"),
    "ablate": Mode("studies.ablate", "train the rows of a study and compare them", ("study", "seeds", "devices")),
    "rules": Mode("studies.analyse.rules", "show which boxes the assignment rules choose"),
    "compile": Mode("studies.compile", "show the cost of a step", ("topology", "classes"), without=("workdir",)),
    "profile": Mode("studies.profile", "show where the time of a step goes"),
}
EXAMPLES = {"config": "--config=scenes", "workdir": "--workdir=runs/scenes"}
OPTIONAL = ("topology", "devices")  # flags of a mode that may be left out although they have no default

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: NAME, FILE.py or either with :VARIANT.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and results go.")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Multi-process runs: HOST:PORT of process 0, a free port.")
PROCESSES = flags.DEFINE_integer("processes", None, "Multi-process runs: how many there are.")
PROCESS = flags.DEFINE_integer("process", None, "Multi-process runs: the number of this one, from 0.")
HELP = flags.DEFINE_bool("help", False, "Show this text.", short_name="h")
flags.DEFINE_string("images", None, "For --mode=predict: a picture, or a folder of them.")
flags.DEFINE_string("output", None, "For --mode=predict: where the detections go.")
flags.DEFINE_string("topology", None, "For --mode=compile: TPUs, such as v5e:16x16; default: this machine.")
flags.DEFINE_integer("classes", 9, "For --mode=compile: number of classes; SODA-D has 9.", lower_bound=1)
flags.DEFINE_string("study", None, "For --mode=ablate: one of configs/ablations.py, or FILE.py:NAME.")
flags.DEFINE_integer("seeds", 3, "For --mode=ablate: runs of each row.", lower_bound=1)
flags.DEFINE_string("devices", None, "For --mode=ablate: such as 0,1: a run on each of these; default: one run on all.")


def run(arguments: Sequence[str]) -> None:
    """Run one mode, or show the help."""
    if HELP.value:
        return print(__doc__, flags.FLAGS.module_help(sys.modules[__name__]), sep="\n")
    if len(arguments) > 1:
        raise UserError(f"Unknown argument {arguments[1]!r}: give settings as --config.key=value.")
    mode = MODES[MODE.value]
    for name in ("config", "workdir"):
        if flags.FLAGS[name].value is None and name not in mode.without:
            raise UserError(f"--{name} is missing: --mode={MODE.value} needs it, such as {EXAMPLES[name]}.")
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
    """Return the values of the flags that only this mode has. Raises `UserError` for flags of other modes."""
    for other, mode in MODES.items():
        for flag in mode.flags:
            if other != name and flags.FLAGS[flag].present:
                raise UserError(f"--{flag} belongs to --mode={other}: leave it out, or choose that mode.")
    values = {flag: flags.FLAGS[flag].value for flag in MODES[name].flags}
    for flag, value in values.items():
        if value in (None, "") and flag not in OPTIONAL:
            raise UserError(f"--{flag} is missing: --mode={name} needs it.")
    return values


def parse(arguments: Sequence[str]) -> list[str]:
    """Parse the flags and load the config. Raises `UserError` for a wrong flag, key or value, or a broken config."""
    try:
        prefix = "--config="
        given = [prefix + locate(each.removeprefix(prefix)) if each.startswith(prefix) else each for each in arguments]
        rest = flags.FLAGS(given)
        getattr(CONFIG.value, "seed", None)  # absl reports a missing file only when the config is used
        if not isinstance(CONFIG.value, ConfigDict | None):
            raise TypeError(f"--config must return a ConfigDict, not {type(CONFIG.value).__name__}")
        return rest
    except OSError as error:
        raise UserError(f"--config cannot be read: {reason(error)}") from error
    except (AttributeError, KeyError) as error:
        raise UserError(f"--config has no key {reason(error)}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(reason(error)) from error
    except (Exception, SystemExit) as error:  # raised by the code of the config
        raise UserError(f"--config cannot be run ({type(error).__name__}: {reason(error)}): correct it.") from error


def reason(error: BaseException) -> str:
    """Return the message of the innermost error: both lines if it has two, else the last one."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    lines = str(error.args[0] if error.args else error).splitlines()
    return "; ".join(line.strip() for line in (lines if len(lines) < 3 else lines[-1:]))


def guarded(arguments: Sequence[str]) -> int:
    """Parse the arguments and run the mode; return the exit status."""
    return exit_status(lambda: run(parse(arguments)))


def main() -> int:
    """Run the command line and return its exit status."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path("~/.cache/cfinet_jax").expanduser()))
    return guarded(sys.argv)


if __name__ == "__main__":
    sys.exit(main())
