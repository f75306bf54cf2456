"""Prepare a data set of any kind, from the command line or on first use by a run."""

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
from cfinet_jax.runtime.files import writing
from cfinet_jax.runtime.lock import locked
from cfinet_jax.runtime.paths import absolute, matching, user_path

PUBLISHED: dict[str, Callable[[epath.Path, Journal], Mapping[str, Split]]] = {
    "sodad": read_sodad,
    "sodaa": read_sodaa,
    "dota": read_dota,
    "visdrone": read_visdrone,
    **{name: partial(read_layout, layout) for name, layout in LAYOUTS.items()},
}
ORIENTED = ("sodaa", "dota")  # published data sets with oriented boxes
OWN = ("own", "coco")  # kinds whose --boxes and --annotations the user chooses
KINDS = ("scenes", *OWN, "yolo", *PUBLISHED)


@dataclasses.dataclass(frozen=True)
class Request:
    """A data set to prepare: the arguments of `data/prepare.py`."""

    kind: str  # one of `KINDS`
    data_dir: epath.Path
    source: str | None = None
    annotations: Sequence[str] | None = None  # SPLIT=JSON or SPLIT=JSON,IMAGES
    boxes: str = "horizontal"
    windows: bool = False
    name: str | None = None


def make_builder(request: Request) -> tfds.core.DatasetBuilder:
    """Return the builder of a data set.

    Raises:
      UserError: an option is missing or belongs to another kind, or the source is of another kind.
    """
    kind = request.kind
    if request.windows and kind != "sodad":
        raise UserError("--windows applies to sodad only: leave it out")
    if request.boxes == "oriented" and kind not in OWN:
        raise UserError("--boxes=oriented applies to COCO files only: leave it out")
    if kind == "scenes":
        if request.source or request.annotations or request.name not in (None, "scenes"):
            raise UserError("the scenes are generated: leave out --source, --annotations and --name")
        return ScenesBuilder(data_dir=request.data_dir)
    if not request.source:
        raise UserError(f"{kind} needs --source=FOLDER, the folder of the data set")
    if request.annotations and kind not in OWN:
        raise UserError(f"--annotations belongs to COCO files: leave it out for {kind}")
    source = absolute(request.source)
    read, boxes = reader(request, source)
    origin = {"source": str(source), "annotations": " ".join(request.annotations or ())}
    name = request.name or kind
    builder = OwnBuilder(read=read, origin=origin, name=name, boxes=boxes, data_dir=request.data_dir)
    if request.windows and builder.data_path.exists() and WINDOWS not in builder.info.splits:
        raise UserError(f"{builder.data_path} was prepared without windows: delete this folder to prepare it again")
    return builder


def reader(request: Request, source: epath.Path) -> tuple[Callable[[Journal], Mapping[str, Split]], str]:
    """Return the function that reads the splits of a source, and its kind of boxes.

    An `own` source is recognised by its files: data.yaml (YOLO), a folder labelTxt (DOTA), else COCO.
    """
    kind, boxes = request.kind, request.boxes
    if kind in PUBLISHED:
        read = partial(read_sodad, windows=True) if request.windows else PUBLISHED[kind]
        return partial(read, source), "oriented" if kind in ORIENTED else "horizontal"
    if request.annotations:
        return partial(read_named, named_annotations(request.annotations, source), source=source, boxes=boxes), boxes
    if kind == "yolo" or (kind == "own" and (source / "data.yaml").exists()):
        if boxes == "oriented":
            raise UserError("the boxes of YOLO are horizontal: leave out --boxes=oriented, or choose configs/coco.py")
        return partial(read_yolo, source), boxes
    if kind == "own" and any(matching(source, "*/labelTxt")):
        if boxes == "horizontal":
            raise UserError(
                f"{source} has oriented boxes, as DOTA: add --boxes=oriented, or choose configs/oriented.py"
            )
        return partial(read_dota, source), boxes
    return partial(read_found, source, boxes=boxes), boxes


def named_annotations(entries: Sequence[str], source: epath.Path) -> dict[str, tuple[epath.Path, epath.Path]]:
    """Return the JSON file and the image folder of every split that --annotations names."""
    annotations = {}
    for entry in entries:
        split, _, paths = entry.partition("=")
        path, _, folder = paths.partition(",")
        if not (split.isidentifier() and path):
            raise UserError(f"--annotations {entry} must look like SPLIT=JSON or SPLIT=JSON,IMAGES")
        if split in annotations:
            raise UserError(f"--annotations names the split '{split}' twice: give every split one JSON file")
        annotations[split] = tuple(source / epath.Path(each).expanduser() for each in (path, folder))
    return annotations


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Build a data set unless it exists; a build that fails leaves nothing behind but the journal."""
    if builder.data_path.exists():
        if not (builder.data_path / "dataset_info.json").exists():
            raise UserError(f"{builder.data_path} holds no prepared data set: delete it, then prepare again")
        print(f"{builder.name} is already prepared in {builder.data_path}: delete this folder to prepare it again")
        return
    tfds.disable_progress_bar()  # the builders show their own, with the time left
    unfinished = epath.Path(builder.data_dir).parents[1] / f"{builder.name}.unfinished"
    with locked(unfinished, "preparation", "--data_dir or --name"):
        try:
            with writing(builder.data_path, "--data_dir"):
                builder.download_and_prepare(file_format=record_files.FORMAT)
        finally:
            if not (unfinished / JOURNAL).exists():
                unfinished.rmtree(missing_ok=True)


def ensure_prepared(settings: ConfigDict) -> None:
    """Prepare the data set of a config section `dataset` if it is not; only the scenes need no `source` for it.

    Raises:
      UserError: the source cannot be prepared.
    """
    kind = settings.name if settings.name == "scenes" or settings.name in PUBLISHED else "own"
    if settings.source is None and kind != "scenes":
        return  # opening the data set says what to do if it is missing

    def work() -> None:
        if prepared_folder(settings) is None:
            print(f"Preparing {settings.source or kind} in {settings.data_dir}, once.", flush=True)
            entries, boxes = split_entries(settings.annotations), settings.boxes if kind == "own" else "horizontal"
            folder = user_path(settings.data_dir)
            prepare(make_builder(Request(kind, folder, settings.source, entries, boxes, name=settings.name)))

    processes.by_the_first(work)
