"""Builders of prepared data sets: one function for each kind of source."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input.dataset import prepared_folder
from cfinet_jax.input.origin import split_entries
from cfinet_jax.preparation import record_files
from cfinet_jax.preparation.coco_annotations import Split
from cfinet_jax.preparation.coco_layout import read_found, read_named
from cfinet_jax.preparation.dota import read_dota
from cfinet_jax.preparation.journal import JOURNAL, Journal
from cfinet_jax.preparation.own_builder import Builder as OwnBuilder
from cfinet_jax.preparation.published import LAYOUTS, read_layout
from cfinet_jax.preparation.scenes.scenes_builder import Builder as ScenesBuilder
from cfinet_jax.preparation.sodaa import read_sodaa
from cfinet_jax.preparation.sodad import WINDOWS, read_sodad
from cfinet_jax.preparation.visdrone import read_visdrone
from cfinet_jax.preparation.yolo import read_yolo
from cfinet_jax.runtime import processes
from cfinet_jax.runtime.lock import locked
from cfinet_jax.runtime.paths import absolute, matching, user_path


@dataclasses.dataclass(frozen=True)
class Request:
    """What to prepare: the arguments of `data/prepare.py`."""

    kind: str  # a key of `BUILDERS`
    data_dir: epath.Path
    source: str | None = None
    annotations: Sequence[str] | None = None  # SPLIT=JSON or SPLIT=JSON,IMAGES
    boxes: str = "horizontal"
    windows: bool = False
    name: str | None = None


def scenes(request: Request) -> tfds.core.DatasetBuilder:
    """The builder of the generated scenes."""
    if request.source or request.annotations or request.name not in (None, "scenes"):
        raise UserError("the scenes are generated: leave out --source, --annotations and --name")
    return ScenesBuilder(data_dir=request.data_dir)


def coco(request: Request) -> tfds.core.DatasetBuilder:
    """The builder of a data set described by COCO JSON files, which are found where they are not named."""
    if not request.source:
        raise UserError(f"{request.kind} needs --source=FOLDER, the folder of the data set")
    source, annotations = absolute(request.source), {}
    for entry in request.annotations or ():
        split, _, paths = entry.partition("=")
        path, _, folder = paths.partition(",")
        if not (split.isidentifier() and path):
            raise UserError(f"--annotations {entry} must look like SPLIT=JSON or SPLIT=JSON,IMAGES")
        if split in annotations:
            raise UserError(f"--annotations names the split '{split}' twice: give every split one JSON file")
        path, folder = (source / epath.Path(each).expanduser() for each in (path, folder))
        annotations[split] = (path, folder)
    read = partial(read_named, annotations, source=source) if annotations else partial(read_found, source)
    return own_builder(request, partial(read, boxes=request.boxes), request.boxes)


def yolo(request: Request) -> tfds.core.DatasetBuilder:
    """The builder of a data set described by `data.yaml` and label files."""
    if not request.source or request.annotations:
        raise UserError("yolo needs --source=FOLDER, the folder of data.yaml, and no --annotations")
    if request.boxes == "oriented":
        raise UserError("the boxes of yolo are horizontal: leave out --boxes=oriented, or choose configs/coco.py")
    return own_builder(request, partial(read_yolo, absolute(request.source)))


def published(request: Request) -> tfds.core.DatasetBuilder:
    """The builder of a data set in the layout that it is published in."""
    if not request.source or request.annotations:
        raise UserError(f"{request.kind} needs --source=FOLDER, the folder of the data set, and no --annotations")
    read, boxes = PUBLISHED[request.kind], "oriented" if request.kind in AERIAL else "horizontal"
    return own_builder(request, partial(read, absolute(request.source)), boxes)


def own(request: Request) -> tfds.core.DatasetBuilder:
    """The builder of a folder that describes itself in one of three ways."""
    if not request.source or request.annotations:
        return coco(request)
    source = absolute(request.source)
    if (source / "data.yaml").exists():
        return yolo(request)
    if not any(matching(source, "*/labelTxt")):
        return coco(request)
    if request.boxes == "horizontal":
        raise UserError(f"{source} has oriented boxes, as DOTA: add --boxes=oriented, or choose configs/oriented.py")
    return own_builder(request, partial(read_dota, source), "oriented")


def sodad(request: Request) -> tfds.core.DatasetBuilder:
    """The builder of SODA-D, whole images and, if asked for, the windows to train on."""
    if not request.source or request.annotations:
        raise UserError("sodad needs --source=FOLDER, the folder of Images and Annotations, and no --annotations")
    builder = own_builder(request, partial(read_sodad, absolute(request.source), request.windows))
    if request.windows and builder.data_path.exists() and WINDOWS not in builder.info.splits:
        raise UserError(f"{builder.data_path} was prepared without windows: delete this folder to prepare it again")
    return builder


def own_builder(
    request: Request, read: Callable[[Journal], Mapping[str, Split]], boxes: str = "horizontal"
) -> tfds.core.DatasetBuilder:
    """The builder of what `read` reads, whose boxes are such; the data set keeps where it came from."""
    origin = {"source": str(absolute(request.source)), "annotations": " ".join(request.annotations or ())}
    name = request.name or request.kind
    return OwnBuilder(read=read, origin=origin, name=name, boxes=boxes, data_dir=request.data_dir)


AERIAL = {"sodaa": read_sodaa, "dota": read_dota}  # whose boxes are oriented
PUBLISHED = (
    AERIAL | {"visdrone": read_visdrone} | {name: partial(read_layout, layout) for name, layout in LAYOUTS.items()}
)
BUILDERS = {"scenes": scenes, "coco": coco, "yolo": yolo, "own": own, "sodad": sodad} | dict.fromkeys(
    PUBLISHED, published
)
NAMED = {"scenes", "sodad", *PUBLISHED}  # names of data sets that say of which kind they are


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Build a data set unless it is there already; a build that breaks off leaves nothing behind."""
    if builder.data_path.exists():
        if not (builder.data_path / "dataset_info.json").exists():
            raise UserError(f"{builder.data_path} holds no prepared data set: delete it, then prepare again")
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


def ensure_prepared(settings: ConfigDict) -> None:
    """Prepare the data set of the config section `dataset` from `settings.source`, once; the scenes need no source.

    Raises:
      UserError: the source cannot be prepared.
    """
    kind = settings.name if settings.name in NAMED else "own"
    if settings.source is None and kind != "scenes":
        return  # it has been prepared before, or opening it will fail

    def work() -> None:
        if prepared_folder(settings) is None:
            print(f"Preparing {settings.source or kind} in {settings.data_dir}, once.", flush=True)
            annotations, boxes = split_entries(settings.annotations), settings.boxes if kind == "own" else "horizontal"
            request = Request(
                kind, user_path(settings.data_dir), settings.source, annotations, boxes, name=settings.name
            )
            prepare(BUILDERS[kind](request))

    processes.by_the_first(work)
