"""Read SODA-D as it is downloaded, or the windows that its authors' tool cuts."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split, check_split, read_splits
from cfinet_jax.preparation.coco_files import load_coco
from cfinet_jax.preparation.coco_layout import SPLITS, folder_of
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.soda_account import report
from cfinet_jax.preparation.sodad_windows import Pile, cuts, split_of_windows
from cfinet_jax.runtime.files import read_bytes

PLACES = ("", "rawData", "divData")  # folders below the source, as the authors' tools name them
ANNOTATIONS = ("Annotations/{split}.json", "Annotations/Annotations/{split}.json")
IMAGES = ("Images", "Images/{split}", "Images/Images", "Images/Images/{split}")
WINDOWS = "train_windows"  # the split of windows to train on
PUBLISHED = {  # from the paper; windows: from one of its authors, shaunyuan22/SODA-mmdetection#20
    "images": 24_828,
    "objects": 278_433,
    "windows of train": 58_023,
    "windows of test": 161_579,
}


def read_sodad(source: epath.Path, journal: Journal, windows: bool = False) -> dict[str, Split]:
    """Read the splits of a folder, with `train_windows` if they exist there or `windows` asks to cut them.

    Prints what was read and how it compares with the published data set.

    Raises:
      UserError: there is no annotation file, two for a split, or none of whole images to cut windows from.
    """
    found: dict[str, tuple[epath.Path, str, epath.Path]] = {}
    for place, split, path in annotation_files(source):
        is_cut = b'"start_coord"' in read_bytes(path)  # a window says where in which image it begins
        if is_cut and split != "train":
            print(f"Skipped {path}: it describes windows, but '{split}' is scored on whole images; give their file")
            continue
        name = WINDOWS if is_cut else split
        if name in found:
            raise UserError(f"both {found[name][2]} and {path} describe '{name}': move one of them elsewhere")
        found[name] = place, split, path
    if not found:
        raise UserError(
            f"{source} holds no Annotations/SPLIT.json of whole images (SPLIT is {', '.join(SPLITS)}): "
            "give --source the folder that contains Annotations"
        )
    if windows and not {"train", WINDOWS} & found.keys():
        raise UserError(f"--windows cuts the images of Annotations/train.json, which {source} lacks: add that file")
    cut = windows and WINDOWS not in found
    pile = Pile(journal.folder / "windows")
    listed: dict[epath.Path, set[str]] = defaultdict(set)

    def read(name: str, where: tuple[epath.Path, str, epath.Path]) -> Split:
        place, split, path = where
        coco = load_coco(path)
        folder = folder_of(coco["images"], [place / images.format(split=split) for images in IMAGES])
        listed[folder] |= {str(folder / image["file_name"]) for image in coco["images"]}
        tasks_of = partial(cuts, path, pile, journal) if cut and name == "train" else None
        return check_split(name, coco, path, folder, journal, tasks_of=tasks_of)

    splits = read_splits(found, read)
    print(report("SODA-D", {name: splits[name] for name in splits if name != WINDOWS}, PUBLISHED, listed))
    if WINDOWS in splits:
        print(f"{WINDOWS}: taken from {found[WINDOWS][2]} as they are; no windows are cut")
    elif cut:
        splits[WINDOWS] = split_of_windows(splits["train"], pile, journal)
    return splits


def annotation_files(source: epath.Path) -> Iterator[tuple[epath.Path, str, epath.Path]]:
    """Yield the folder below the source, the split and the path of every annotation file."""
    for place in PLACES:
        for split in SPLITS:
            for name in ANNOTATIONS:
                path = source / place / name.format(split=split)
                if path.exists():
                    yield source / place, split, path
