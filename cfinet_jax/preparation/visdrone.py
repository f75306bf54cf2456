"""Read VisDrone2019-DET: a folder per split, with one label file per image.

Format and scoring follow the published toolkit, https://github.com/VisDrone/VisDrone2018-DET-toolkit.
"""

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split, check_split, read_splits
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.label_files import Label, by_line, coco_of, number, whole
from cfinet_jax.runtime.paths import matching

FOLDERS = {"train": "VisDrone2019-DET-train", "val": "VisDrone2019-DET-val", "test": "VisDrone2019-DET-test-dev"}
NAMES = {  # by id; 11, "others", is left out: the toolkit neither scores such objects nor ignores detections of them
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
    """Read the splits whose folders are in `source`.

    Raises:
      UserError: there is no split, no label file, or no usable image.
    """
    found = {split: source / name for split, name in FOLDERS.items() if (source / name).is_dir()}
    if not found:
        raise UserError(
            f"{source} holds none of {', '.join(FOLDERS.values())}: give --source the folder that contains them"
        )

    def read(split: str, folder: epath.Path) -> Split:
        annotations = folder / "annotations"
        labels = sorted(matching(annotations, "*.txt"))
        if not labels:
            raise UserError(
                f"{annotations} holds no label file (.txt): unpack the whole archive of the split '{split}'"
            )
        pairs = [(folder / "images" / f"{path.stem}.jpg", path) for path in labels]
        coco = coco_of(pairs, NAMES, source, by_line(read_label))
        return check_split(split, coco, annotations, source, journal, labels)

    return read_splits(found, read)


def read_label(line: str, height: int, width: int) -> Label:
    """Parse a line `x,y,w,h,score,category,truncation,occlusion` in pixels, perhaps with a comma at its end."""
    values = [number(word) for word in line.strip().rstrip(",").split(",")]
    category = whole(values[5]) if len(values) > 5 else None
    return {
        "category_id": category if category in NAMES else None,
        "bbox": values[:4] if len(values) == 8 else None,
        "ignore": len(values) > 4 and values[4] == 0,  # the toolkit ignores objects of score 0
    }
