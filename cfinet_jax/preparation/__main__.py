"""Prepare a data set: `python data/prepare.py KIND --data_dir=DIR [--source=DIR ...]`; see data/README.md."""

import sys

from cfinet_jax.errors import Parser, exit_status
from cfinet_jax.input.records import COLUMNS
from cfinet_jax.preparation.builders import KINDS, Request, make_builder, prepare
from cfinet_jax.runtime.paths import user_path


def parser() -> Parser:
    """Return the parser of the command line, whose arguments are the fields of a `Request`."""
    result = Parser(prog="prepare", description=__doc__)
    result.add_argument("kind", choices=KINDS)
    result.add_argument("--data_dir", type=user_path, required=True, help="where prepared data sets go")
    result.add_argument("--source", help="folder of the data set; paths of --annotations are relative to it")
    result.add_argument("--annotations", action="append", metavar="SPLIT=JSON[,IMAGES]", help="coco: once per split")
    result.add_argument("--boxes", choices=COLUMNS, default="horizontal", help="coco: oriented boxes: poly or rbox")
    result.add_argument("--windows", action="store_true", help="sodad: cut the windows to train on")
    result.add_argument("--name", help="name of the prepared data set, KIND if not given")
    return result


def main() -> int:
    """Prepare the data set that the command line describes and return the exit status."""
    return exit_status(lambda: prepare(make_builder(Request(**vars(parser().parse_args())))), name="")


if __name__ == "__main__":
    sys.exit(main())
