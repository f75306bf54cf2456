"""Prepare a data set: `python data/prepare.py KIND --data_dir=DIR [--source=DIR ...]`; see data/README.md."""

import sys

from cfinet_jax.errors import Parser, UserError, exit_status
from cfinet_jax.input.records import COLUMNS
from cfinet_jax.preparation.builders import BUILDERS, Request, prepare
from cfinet_jax.runtime.paths import user_path


def parser() -> Parser:
    """Return the parser of the command line, whose arguments are the fields of a `Request`."""
    result = Parser(prog="prepare", description=__doc__)
    result.add_argument("kind", choices=BUILDERS)
    result.add_argument("--data_dir", type=user_path, required=True, help="where prepared data sets go")
    result.add_argument("--source", help="all but scenes: their folder; the paths of --annotations are relative to it")
    result.add_argument("--annotations", action="append", metavar="SPLIT=JSON[,IMAGES]", help="coco: once per split")
    result.add_argument("--boxes", choices=COLUMNS, default="horizontal", help="coco: oriented ones are poly or rbox")
    result.add_argument("--windows", action="store_true", help="sodad: cut the windows to train on")
    result.add_argument("--name", help="all but scenes: name of the prepared data set, KIND if not given")
    return result


def command() -> None:
    """Prepare what the command line asks for."""
    request = Request(**vars(parser().parse_args()))
    if request.windows and request.kind != "sodad":
        raise UserError("--windows belongs to sodad: leave it out")
    if request.boxes == "oriented" and request.kind not in ("coco", "own"):
        raise UserError("--boxes=oriented belongs to COCO files: leave it out")
    prepare(BUILDERS[request.kind](request))


def main() -> int:
    """Run the command and return its exit status."""
    return exit_status(command, name="")


if __name__ == "__main__":
    sys.exit(main())
