"""Reads VisDrone2019-DET: a folder per split, with a label file per image.

The format and what is scored are those of the published toolkit, https://github.com/VisDrone/VisDrone2018-DET-toolkit.
"""

from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split, check_split, read_splits
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.label_files import coco_of, number, whole
from cfinet_jax.runtime.paths import matching

FOLDERS = {"train": "VisDrone2019-DET-train", "val": "VisDrone2019-DET-val", "test": "VisDrone2019-DET-test-dev"}
NAMES = {  # by id; 11, "others", is left out: the toolkit neither scores such objects nor forgives detections of them
    0: "ignore",
    1: "pedestrian",
    2: "people",
    3: "bicycle",
    4: "car",
    5: "van",
    6: "truck",
    7: "tricycle",
    8: "awning-tricycle",
    9: "bus",
    10: "motor",
}


def read_visdrone(source: epath.Path, journal: Journal) -> dict[str, Split]:
    """The splits whose folders are in `source`.

    Raises:
      UserError: there is none, or one without label files, or one that leaves nothing to use.
    """
    found = {split: source / name for split, name in FOLDERS.items() if (source / name).is_dir()}
    if not found:
        raise UserError(f"{source} holds none of {', '.join(FOLDERS.values())}: --source is the folder they lie in")
    return read_splits(found, lambda split, folder: read_folder(split, folder, source, journal))


def read_folder(split: str, folder: epath.Path, source: epath.Path, journal: Journal) -> Split:
    """A split: every label file in `annotations` describes the image of its name in `images`."""
    annotations = folder / "annotations"
    labels = sorted(matching(annotations, "*.txt"))
    if not labels:
        raise UserError(f"{annotations} holds no label file (.txt): unpack the whole archive of the split '{split}'")
    images = [folder / "images" / f"{path.stem}.jpg" for path in labels]
    coco = coco_of(zip(images, labels, strict=True), NAMES, source, read_label)
    return check_split(split, coco, annotations, source, journal, labels)


def read_label(line: str, height: int, width: int) -> dict[str, Any]:
    """A line `x,y,w,h,score,category,truncation,occlusion`, in pixels, perhaps with a comma at its end."""
    values = [number(word) for word in line.strip().rstrip(",").split(",")]
    category = whole(values[5]) if len(values) > 5 else None
    return {
        "category_id": category if category in NAMES else None,
        "bbox": values[:4] if len(values) == 8 else None,
        "ignore": len(values) > 4 and values[4] == 0,  # a score of 0: not to be considered
    }
