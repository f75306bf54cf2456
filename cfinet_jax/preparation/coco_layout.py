"""Find the COCO files of a folder and their images, where the user has not named them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split, check_split, read_splits
from cfinet_jax.preparation.coco_files import load_coco
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.places import Places
from cfinet_jax.runtime.paths import matching

SPLITS = ("train", "val", "test")
ANNOTATIONS = (  # patterns of a split's file; the first one that matches counts
    "{split}.json",
    "annotations/{split}.json",
    "annotations/instances_{split}*.json",
    "*_{split}.json",
    "annotations/*_{split}.json",
    "{split}*/_annotations.coco.json",
)
# Folders of images, tried after the source and the folder of the file; the first one that holds an image counts.
IMAGES = ("images", "{split}*", "images/{split}*", "{split}*/images")
TRIED = 10  # images of a file that are looked for in a folder: a few may be missing


def read_named(
    annotations: Mapping[str, tuple[epath.Path, epath.Path]],
    journal: Journal,
    boxes: str = "horizontal",
    source: epath.Path | None = None,
) -> dict[str, Split]:
    """Read each split from its JSON file and image folder; images may also lie in `source`.

    Raises:
      UserError: a file is not COCO, or nothing in it can be used.
    """

    def read(split: str, paths: tuple[epath.Path, epath.Path]) -> Split:
        path, folder = paths
        places = Places(folder, source or folder)
        return check_split(split, load_coco(path), path, folder, journal, boxes=boxes, places=places)

    return read_splits(annotations, read)


def read_found(source: epath.Path, journal: Journal, boxes: str = "horizontal") -> dict[str, Split]:
    """Read the splits of a folder whose files have one of the usual names.

    Raises:
      UserError: there is no annotation file, or more than one for a split.
    """
    found = find_splits(source, ANNOTATIONS, SPLITS)
    if not found:
        raise UserError(
            f"{source} holds neither data.yaml (YOLO) nor COCO files ({listed(ANNOTATIONS, SPLITS)}): "
            "rename them, or name them with --annotations SPLIT=JSON[,IMAGES]"
        )
    return read_splits(found, partial(read_beside, load_coco, source, journal, boxes))


def find_splits(source: epath.Path, names: Sequence[str], splits: Sequence[str]) -> dict[str, epath.Path]:
    """Return the annotation file of every split that has one."""
    if not source.is_dir():
        raise UserError(f"--source {source} is no folder: give the folder of the data set")
    return {split: path for split in splits if (path := find_annotations(source, names, split))}


def listed(names: Sequence[str], splits: Sequence[str]) -> str:
    """Describe the names that were looked for."""
    return f"{', '.join(name.format(split='SPLIT') for name in names)}; SPLIT is {', '.join(splits)}"


def find_annotations(source: epath.Path, names: Sequence[str], split: str) -> epath.Path | None:
    """Return the annotation file of a split, or None."""
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
    load: Callable[[epath.Path], dict[str, Any]],
    source: epath.Path,
    journal: Journal,
    boxes: str,
    split: str,
    path: epath.Path,
) -> Split:
    """Read a split from the file `path`, parsed by `load`, whose images lie somewhere in `source`."""
    coco = load(path)
    folders = [folder for name in IMAGES for folder in sorted(matching(source, name.format(split=split)))]
    folder = folder_of(coco["images"], [source, path.parent, *folders])
    return check_split(split, coco, path, folder, journal, boxes=boxes, places=Places(source))


def folder_of(images: Sequence[dict[str, Any]], folders: Sequence[epath.Path]) -> epath.Path:
    """Return the first folder that holds one of the first images, or the first folder if none does."""
    names = [image["file_name"] for image in images[:TRIED]]
    return next((folder for folder in folders if any(holds(folder, name) for name in names)), folders[0])


def holds(folder: epath.Path, name: str) -> bool:
    """Whether a folder has a file of that name."""
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # no file can have this name
        return False
