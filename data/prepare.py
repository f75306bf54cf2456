"""Prepare a data set: `python data/prepare.py NAME --data_dir=DIR [--source=DIR ...]`; see data/README.md."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

import tensorflow_datasets as tfds
from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python only sees this folder

from cfinet_jax.errors import UserError  # noqa: E402
from data.coco.coco_dataset_builder import Builder as CocoBuilder  # noqa: E402
from data.scenes.scenes_dataset_builder import Builder as ScenesBuilder  # noqa: E402


def scenes(arguments: argparse.Namespace) -> tfds.core.DatasetBuilder:
    """The builder of the generated scenes."""
    if arguments.source or arguments.annotations or arguments.name:
        raise UserError("the scenes are generated: leave out --source, --annotations and --name")
    return ScenesBuilder(data_dir=arguments.data_dir)


def coco(arguments: argparse.Namespace) -> tfds.core.DatasetBuilder:
    """The builder of a data set described by COCO JSON files."""
    if not (arguments.source and arguments.annotations):
        raise UserError("coco needs --source=IMAGES and, for every split, --annotations SPLIT=JSON[,IMAGES]")
    source = epath.Path(arguments.source).resolve()
    annotations = {}
    for entry in arguments.annotations:
        split, _, paths = entry.partition("=")
        path, _, folder = paths.partition(",")
        if not (split.isidentifier() and path):
            raise UserError(f"--annotations {entry} must look like SPLIT=JSON or SPLIT=JSON,IMAGES")
        if split in annotations:
            raise UserError(f"--annotations names the split '{split}' twice: give every split one JSON file")
        annotations[split] = (source / path, source / folder if folder else source)
    return CocoBuilder(annotations=annotations, name=arguments.name or "coco", data_dir=arguments.data_dir)


BUILDERS = {"scenes": scenes, "coco": coco}


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Build a data set unless it is there already; a build that breaks off leaves nothing behind."""
    if builder.data_path.exists():
        print(f"{builder.name} is already prepared in {builder.data_path}: delete this folder to prepare it again")
        return
    tfds.disable_progress_bar()  # the builders show their own, with the time left
    try:
        builder.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
    except OSError as error:
        raise UserError(f"{builder.data_path} cannot be written ({error}): choose another --data_dir") from error


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as the rest of the program does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main() -> int:
    """Prepare what the command line asks for; the exit status: 2 for a mistake of the user's."""
    parser = Parser(description=__doc__)
    parser.add_argument("dataset", choices=BUILDERS)
    parser.add_argument("--data_dir", required=True, help="where prepared data sets go")
    parser.add_argument("--source", help="coco: folder of the images; JSON paths are relative to it")
    parser.add_argument("--annotations", action="append", metavar="SPLIT=JSON[,IMAGES]", help="coco: once per split")
    parser.add_argument("--name", help="coco: name of the prepared data set, `coco` if not given")
    try:
        arguments = parser.parse_args()
        prepare(BUILDERS[arguments.dataset](arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
