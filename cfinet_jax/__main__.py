"""The command `cfinet_jax`: train, evaluate, predict and everything beside them, each with `--help`."""

import ast
import importlib
import sys

from cfinet_jax.errors import UserError, exit_status
from cfinet_jax.named_configs import configs_folder

OTHERS = {
    "prepare": ("preparation", "make a prepared data set; --config.dataset.source does so on first use"),
    "metrics": ("metrics", "score detections of any detector"),
    "pretrained": ("pretrained", "convert weights of others"),
}


def usage() -> None:
    """Print the commands and the configs that come with the package."""
    main = importlib.import_module("cfinet_jax.main")
    rows = {name: mode.help for name, mode in main.MODES.items()} | {name: help for name, (_, help) in OTHERS.items()}
    print("cfinet_jax COMMAND [--config=NAME or FILE.py] [--workdir=DIR] [--config.KEY=VALUE ...]\n")
    print("".join(f"  {name:<11} {help}\n" for name, help in rows.items()))
    print(f"Configs, in {configs_folder()}: give one by its name, or copy it and change the copy.\n")
    for path in sorted(configs_folder().iterdir()):
        if path.suffix == ".py":
            first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
            print(f"  {path.stem:<11} {first}")


def main() -> int:
    """Run the command that the first argument names and return its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        return exit_status(usage)
    if name in OTHERS:
        del sys.argv[1]
        return importlib.import_module(f"cfinet_jax.{OTHERS[name][0]}.__main__").main()
    main = importlib.import_module("cfinet_jax.main")  # imports JAX, which the others do not need
    if name in main.MODES:
        sys.argv[1] = f"--mode={name}"
        return main.main()

    def refuse() -> None:
        raise UserError(f"Unknown command {name!r}: choose one of {', '.join([*main.MODES, *OTHERS])}.")

    return exit_status(refuse)


if __name__ == "__main__":
    sys.exit(main())
