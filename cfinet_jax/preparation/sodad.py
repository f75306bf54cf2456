"""Reads SODA-D as it is downloaded, and the windows that its authors' tool cuts."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import find_pictures
from cfinet_jax.preparation.coco_annotations import Split, check_split, load_coco, no_tasks, summary
from cfinet_jax.preparation.coco_layout import SPLITS, folder_of
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.sodad_account import report
from cfinet_jax.preparation.sodad_windows import Pile, cuts, split_of_windows

PLACES = ("", "rawData", "divData")  # below the source; the authors' tools call them so
ANNOTATIONS = ("Annotations/{split}.json", "Annotations/Annotations/{split}.json")
IMAGES = ("Images", "Images/{split}", "Images/Images", "Images/Images/{split}")
WINDOWS = "train_windows"  # the split of windows to train on


def read_sodad(source: epath.Path, cut: bool, journal: Journal) -> dict[str, Split]:
    """The splits of a folder; `train_windows` too, if they are there or are to be cut.

    What was read, and how it compares with the data set as published, is printed.

    Raises:
      UserError: there is no annotation file, two for a split, or none of whole images to cut windows from.
    """
    files, pile = list(annotation_files(source)), Pile(journal.folder / "windows")
    if cut and files and all(split != "train" for _, split, _ in files):
        raise UserError(f"{source} holds no Annotations/train.json, of whose images --windows cuts windows")
    given = any(is_cut(load_coco(path)) for _, split, path in files if cut and split == "train")
    splits: dict[str, Split] = {}
    listed: dict[epath.Path, set[str]] = {}  # by folder
    for place, split, path in files:
        coco = load_coco(path)
        if is_cut(coco) and split != "train":
            print(f"{path} describes windows, skipped: detections are scored on whole images, so give those of {split}")
            continue
        name = WINDOWS if is_cut(coco) else split
        if name in splits:
            raise UserError(f"both {splits[name].files[0]} and {path} describe '{name}': move one of them elsewhere")
        folder = folder_of(coco["images"], [place / images.format(split=split) for images in IMAGES])
        tasks_of = partial(cuts, path, pile, journal) if cut and name == "train" and not given else no_tasks
        splits[name] = check_split(name, coco, path, folder, journal, tasks_of=tasks_of)
        listed.setdefault(folder, set()).update(str(folder / image["file_name"]) for image in coco["images"])
    if not splits:
        raise UserError(f"{source} holds no Annotations/SPLIT.json of whole images (SPLIT is {', '.join(SPLITS)})")
    whole = {split: content for split, content in splits.items() if split != WINDOWS}
    if whole:
        print(report(whole))
    print(f"Pictures in the folders: {summary(strays(listed))}")
    if WINDOWS in splits:
        print(f"{WINDOWS}: taken as {splits[WINDOWS].files[0]} describes them, none is cut")
    elif cut:
        splits[WINDOWS] = split_of_windows(splits["train"], pile, journal)
    return splits


def annotation_files(source: epath.Path) -> Iterator[tuple[epath.Path, str, epath.Path]]:
    """The place below the source, the split and the path of every annotation file."""
    for place in PLACES:
        for split in SPLITS:
            for name in ANNOTATIONS:
                path = source / place / name.format(split=split)
                if path.exists():
                    yield source / place, split, path


def is_cut(coco: dict[str, Any]) -> bool:
    """Whether these are windows, which say where in which image they begin."""
    return bool(coco["images"]) and "start_coord" in coco["images"][0]


def strays(listed: dict[epath.Path, set[str]]) -> dict[str, list[str]]:
    """Pictures in the folders that no annotation file names."""
    known = set().union(*listed.values())
    names = {str(picture): picture.name for folder in listed for picture in find_pictures(folder)}
    found = [name for path, name in names.items() if path not in known]
    return {"image in no annotation file, skipped": found} if found else {}
