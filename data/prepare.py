"""Prepare a data set: `python data/prepare.py NAME --data_dir=DIR [--source=DIR ...]`; see data/README.md."""

import argparse
import io
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import tensorflow_datasets as tfds
from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python only sees this folder

from cfinet_jax.buckets import matching, user_path  # noqa: E402
from cfinet_jax.errors import Parser, UserError, exit_status  # noqa: E402
from cfinet_jax.lock import locked  # noqa: E402
from cfinet_jax.own_data import absolute  # noqa: E402
from cfinet_jax.records import COLUMNS  # noqa: E402
from data import record_files  # noqa: E402
from data.coco.annotations import Split  # noqa: E402
from data.coco.coco_dataset_builder import Builder as CocoBuilder  # noqa: E402
from data.coco.layout import read_found, read_named  # noqa: E402
from data.dota.labels import read_dota  # noqa: E402
from data.journal import JOURNAL, Journal  # noqa: E402
from data.published.json_files import LAYOUTS, read_layout  # noqa: E402
from data.published.visdrone import read_visdrone  # noqa: E402
from data.scenes.scenes_dataset_builder import Builder as ScenesBuilder  # noqa: E402
from data.sodaa.layout import read_sodaa  # noqa: E402
from data.sodad.layout import WINDOWS, read_sodad  # noqa: E402
from data.yolo.labels import read_yolo  # noqa: E402


def scenes(arguments: argparse.Namespace) -> tfds.core.DatasetBuilder:
    """The builder of the generated scenes."""
    if arguments.source or arguments.annotations or arguments.name:
        raise UserError("the scenes are generated: leave out --source, --annotations and --name")
    return ScenesBuilder(data_dir=arguments.data_dir)


def coco(arguments: argparse.Namespace) -> tfds.core.DatasetBuilder:
    """The builder of a data set described by COCO JSON files, which are found where they are not named."""
    if not arguments.source:
        raise UserError(f"{arguments.dataset} needs --source=FOLDER, the folder of the data set")
    source, annotations = absolute(arguments.source), {}
    for entry in arguments.annotations or ():
        split, _, paths = entry.partition("=")
        path, _, folder = paths.partition(",")
        if not (split.isidentifier() and path):
            raise UserError(f"--annotations {entry} must look like SPLIT=JSON or SPLIT=JSON,IMAGES")
        if split in annotations:
            raise UserError(f"--annotations names the split '{split}' twice: give every split one JSON file")
        path, folder = (source / epath.Path(each).expanduser() for each in (path, folder))
        annotations[split] = (path, folder)
    read = partial(read_named, annotations, source=source) if annotations else partial(read_found, source)
    return own_builder(arguments, partial(read, boxes=arguments.boxes), arguments.boxes)


def yolo(arguments: argparse.Namespace) -> tfds.core.DatasetBuilder:
    """The builder of a data set described by `data.yaml` and label files."""
    if not arguments.source or arguments.annotations:
        raise UserError("yolo needs --source=FOLDER, the folder of data.yaml, and no --annotations")
    if arguments.boxes == "oriented":
        raise UserError("the boxes of yolo are horizontal: leave out --boxes=oriented, or choose configs/coco.py")
    return own_builder(arguments, partial(read_yolo, absolute(arguments.source)))


def published(arguments: argparse.Namespace) -> tfds.core.DatasetBuilder:
    """The builder of a data set in the layout that it is published in."""
    if not arguments.source or arguments.annotations:
        raise UserError(f"{arguments.dataset} needs --source=FOLDER, the folder of the data set, and no --annotations")
    read, boxes = PUBLISHED[arguments.dataset], "oriented" if arguments.dataset in AERIAL else "horizontal"
    return own_builder(arguments, partial(read, absolute(arguments.source)), boxes)


def own(arguments: argparse.Namespace) -> tfds.core.DatasetBuilder:
    """The builder of a folder that describes itself in one of three ways."""
    if not arguments.source or arguments.annotations:
        return coco(arguments)
    source = absolute(arguments.source)
    if (source / "data.yaml").exists():
        return yolo(arguments)
    if not any(matching(source, "*/labelTxt")):
        return coco(arguments)
    if arguments.boxes == "horizontal":
        raise UserError(f"{source} has oriented boxes, as DOTA: add --boxes=oriented, or choose configs/oriented.py")
    return own_builder(arguments, partial(read_dota, source), "oriented")


def sodad(arguments: argparse.Namespace) -> tfds.core.DatasetBuilder:
    """The builder of SODA-D, whole images and, if asked for, the windows to train on."""
    if not arguments.source or arguments.annotations:
        raise UserError("sodad needs --source=FOLDER, the folder of Images and Annotations, and no --annotations")
    builder = own_builder(arguments, partial(read_sodad, absolute(arguments.source), arguments.windows))
    if arguments.windows and builder.data_path.exists() and WINDOWS not in builder.info.splits:
        raise UserError(f"{builder.data_path} was prepared without windows: delete this folder to prepare it again")
    return builder


def own_builder(
    arguments: argparse.Namespace, read: Callable[[Journal], Mapping[str, Split]], boxes: str = "horizontal"
) -> tfds.core.DatasetBuilder:
    """The builder of what `read` reads, whose boxes are such; the data set keeps where it came from."""
    origin = {"source": str(absolute(arguments.source)), "annotations": " ".join(arguments.annotations or ())}
    name = arguments.name or arguments.dataset
    return CocoBuilder(read=read, origin=origin, name=name, boxes=boxes, data_dir=arguments.data_dir)


AERIAL = {"sodaa": read_sodaa, "dota": read_dota}  # whose boxes are oriented
PUBLISHED = (
    AERIAL | {"visdrone": read_visdrone} | {name: partial(read_layout, layout) for name, layout in LAYOUTS.items()}
)
BUILDERS = {"scenes": scenes, "coco": coco, "yolo": yolo, "own": own, "sodad": sodad} | dict.fromkeys(
    PUBLISHED, published
)


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Build a data set unless it is there already; a build that breaks off leaves nothing behind."""
    if builder.data_path.exists():
        print(f"{builder.name} is already prepared in {builder.data_path}: delete this folder to prepare it again")
        return
    tfds.disable_progress_bar()  # the builders show their own, with the time left
    unfinished = epath.Path(builder.data_dir).parents[1] / f"{builder.name}.unfinished"
    with locked(unfinished, "preparation", "--data_dir or --name"):
        try:
            builder.download_and_prepare(file_format=record_files.FORMAT)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(f"{builder.data_path} cannot be written ({error}): choose another --data_dir") from error
        finally:
            if not (unfinished / JOURNAL).exists():
                unfinished.rmtree(missing_ok=True)


def main() -> int:
    """Prepare what the command line asks for and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names need not be text that a terminal, or a file, can hold
            stream.reconfigure(errors="backslashreplace")
    parser = Parser(description=__doc__)
    parser.add_argument("dataset", choices=BUILDERS)
    parser.add_argument("--data_dir", type=user_path, required=True, help="where prepared data sets go")
    parser.add_argument("--source", help="all but scenes: their folder; the paths of --annotations are relative to it")
    parser.add_argument("--annotations", action="append", metavar="SPLIT=JSON[,IMAGES]", help="coco: once per split")
    parser.add_argument("--boxes", choices=COLUMNS, default="horizontal", help="coco: oriented ones are poly or rbox")
    parser.add_argument("--windows", action="store_true", help="sodad: cut the windows to train on")
    parser.add_argument("--name", help="all but scenes: name of the prepared data set, NAME if not given")

    def command() -> None:
        arguments = parser.parse_args()
        if arguments.windows and arguments.dataset != "sodad":
            raise UserError("--windows belongs to sodad: leave it out")
        if arguments.boxes == "oriented" and BUILDERS[arguments.dataset] not in (coco, own):
            raise UserError("--boxes=oriented belongs to COCO files: leave it out")
        arguments.data_dir = epath.Path(arguments.data_dir).expanduser()
        prepare(BUILDERS[arguments.dataset](arguments))

    return exit_status(command, name="")


if __name__ == "__main__":
    sys.exit(main())
