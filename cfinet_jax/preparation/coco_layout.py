"""Finds the annotation files of a folder and the images they speak of, where nobody has named them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split, check_split, load_coco, read_splits
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.places import Places
from cfinet_jax.runtime.paths import matching

SPLITS = ("train", "val", "test")
ANNOTATIONS = (  # of a split; the first row that names a file counts
    "{split}.json",
    "annotations/{split}.json",
    "annotations/instances_{split}*.json",
    "*_{split}.json",
    "annotations/*_{split}.json",
    "{split}*/_annotations.coco.json",
)
# Besides the folder itself and that of the file; the first with an image counts.
IMAGES = ("images", "{split}*", "images/{split}*", "{split}*/images")
TRIED = 10  # of the images of a file: a few may be missing


def read_named(
    annotations: Mapping[str, tuple[epath.Path, epath.Path]],
    journal: Journal,
    boxes: str = "horizontal",
    source: epath.Path | None = None,
) -> dict[str, Split]:
    """The splits of a (JSON file, image folder) each; images may also lie in `source`.

    Raises:
      UserError: a file is not COCO as a whole, repeats an image id, or leaves nothing to use.
    """

    def read(split: str, paths: tuple[epath.Path, epath.Path]) -> Split:
        path, folder = paths
        places = Places(folder, source or folder)
        return check_split(split, load_coco(path), path, folder, journal, boxes=boxes, places=places)

    return read_splits(annotations, read)


def read_found(source: epath.Path, journal: Journal, boxes: str = "horizontal") -> dict[str, Split]:
    """The splits of a folder, by the names of its files.

    Raises:
      UserError: there is no annotation file, or more than one for a split.
    """
    found = find_splits(source, ANNOTATIONS, SPLITS)
    if not found:
        raise UserError(
            f"{source} holds neither data.yaml (YOLO) nor COCO files ({listed(ANNOTATIONS, SPLITS)}): "
            "rename them, or name them with --annotations SPLIT=JSON[,IMAGES]"
        )
    return read_splits(found, lambda split, path: read_beside(split, load_coco, path, source, journal, boxes))


def find_splits(source: epath.Path, names: Sequence[str], splits: Sequence[str]) -> dict[str, epath.Path]:
    """The annotation files of the splits that have one."""
    if not source.is_dir():
        raise UserError(f"--source {source} is no folder: give the folder of the data set")
    return {split: path for split in splits if (path := find_annotations(source, names, split))}


def listed(names: Sequence[str], splits: Sequence[str]) -> str:
    """The names that were looked for, in words."""
    return f"{', '.join(name.format(split='SPLIT') for name in names)}; SPLIT is {', '.join(splits)}"


def find_annotations(source: epath.Path, names: Sequence[str], split: str) -> epath.Path | None:
    """The annotation file of a split, or None."""
    for name in names:
        paths = sorted(matching(source, name.format(split=split)))
        if len(paths) > 1:
            several = ", ".join(str(path.relative_to(source)) for path in paths)
            raise UserError(
                f"{source} has several files for the split '{split}' ({several}): "
                "name one for every split with --annotations SPLIT=JSON[,IMAGES]"
            )
        if paths:
            return paths[0]
    return None


def read_beside(
    split: str,
    load: Callable[[epath.Path], dict[str, Any]],
    path: epath.Path,
    source: epath.Path,
    journal: Journal,
    boxes: str = "horizontal",
) -> Split:
    """A split, described in the file `path` for `load`, whose images lie somewhere in `source`."""
    coco = load(path)
    folders = [folder for name in IMAGES for folder in sorted(matching(source, name.format(split=split)))]
    folder = folder_of(coco["images"], [source, path.parent, *folders])
    return check_split(split, coco, path, folder, journal, boxes=boxes, places=Places(source))


def folder_of(images: Sequence[dict[str, Any]], folders: Sequence[epath.Path]) -> epath.Path:
    """The first folder that holds one of the first images; the first folder if none does."""
    names = [image["file_name"] for image in images[:TRIED]]
    return next((folder for folder in folders if any(holds(folder, name) for name in names)), folders[0])


def holds(folder: epath.Path, name: str) -> bool:
    """Whether a folder has a file of that name."""
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # no file can have this name
        return False
