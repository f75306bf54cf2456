"""The command `cfinet_jax COMMAND`: a mode of `cfinet_jax.main`, or a command of its own such as `metrics`."""

import ast
import importlib
import sys

from cfinet_jax.errors import UserError, exit_status
from cfinet_jax.named_configs import config_files, configs_folder

OTHERS = {  # packages with a command line of their own, which needs no JAX
    "prepare": ("preparation", "prepare a data set; --config.dataset.source does so on first use"),
    "metrics": ("metrics", "score the detections of any detector"),
    "pretrained": ("pretrained", "convert published weights"),
}


def usage() -> None:
    """Print the commands and the configs that come with the package."""
    modes = importlib.import_module("cfinet_jax.main").MODES
    rows = [(name, mode.help) for name, mode in modes.items()] + [(name, help) for name, (_, help) in OTHERS.items()]
    print("cfinet_jax COMMAND [--config=NAME or FILE.py] [--workdir=DIR] [--config.KEY=VALUE ...]\n")
    print("".join(f"  {name:<11} {help}\n" for name, help in rows))
    print("  COMMAND --help shows the flags of a command.\n")
    print(f"Configs, in {configs_folder()}: give one by its name, or copy it and change the copy.\n")
    for path in config_files():
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        print(f"  {path.stem:<11} {first}")


def refuse(name: str, commands: list[str]) -> None:
    """Raise `UserError` for a command that does not exist."""
    raise UserError(f"Unknown command {name!r}: choose one of {', '.join(commands)}.")


def main() -> int:
    """Run the command that the first argument names and return its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        return exit_status(usage)
    if name in OTHERS:
        del sys.argv[1]
        return importlib.import_module(f"cfinet_jax.{OTHERS[name][0]}.__main__").main()
    main = importlib.import_module("cfinet_jax.main")  # imports JAX
    if name not in main.MODES:
        return exit_status(lambda: refuse(name, [*main.MODES, *OTHERS]))
    sys.argv[1] = f"--mode={name}"
    return main.main()


if __name__ == "__main__":
    sys.exit(main())
