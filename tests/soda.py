"""A tiny SODA-D in the folders and the format of the real one, whole and cut."""

import json
from pathlib import Path

import cv2
import numpy as np

CATEGORIES = ["people", "rider", "bicycle", "motor", "vehicle", "traffic-sign", "traffic-light", "traffic-camera"]
CATEGORIES = [{"id": number, "name": name} for number, name in enumerate([*CATEGORIES, "warning-cone", "ignore"], 1)]
IGNORE = 10
LARGE, SMALL = (1300, 1700), (500, 700)  # height, width
IMAGES = {  # by split: file name, size and annotations (category, x, y, width, height)
    "train": {
        "a.jpg": (
            LARGE,
            [
                (1, 20, 30, 10, 12),
                (5, 780.5, 600, 40, 50.25),  # cut by the border of a window
                (7, 620, 700, 50, 20),  # four tenths of it in the second column of windows
                (IGNORE, 200, 100, 300, 200),
                (3, 250, 150, 30, 30),  # inside the region
                (9, 1500, 900, 12, 12),
            ],
        ),
        "empty.jpg": (SMALL, []),
        "region.jpg": (SMALL, [(IGNORE, 10, 10, 50, 50)]),
        "small.front.jpg": (SMALL, [(2, 600, 400, 20, 30), (IGNORE, 0, 450, 700, 50)]),
    },
    "val": {"b.jpg": (LARGE, [(5, 1650, 1200, 30, 30)]), "none.jpg": (SMALL, [])},
    "test": {"c.jpg": (SMALL, [(6, 5, 5, 50, 45)])},
}


def draw(height: int, width: int) -> np.ndarray:
    """A picture without black, smooth enough for JPEG to keep."""
    y, x = np.mgrid[:height, :width]
    return np.stack([100 + x * 100 // width, 100 + y * 100 // height, np.full_like(x, 128)], axis=2).astype(np.uint8)


def describe(images: dict) -> dict:
    """The content of an annotation file."""
    described, annotations = [], []
    for image_id, (name, (size, entries)) in enumerate(images.items(), start=11):
        described.append({"file_name": name, "height": size[0], "width": size[1], "id": image_id})
        for category, *box in entries:
            entry = {"image_id": image_id, "category_id": category, "bbox": box, "area": box[2] * box[3], "ignore": 0}
            annotations.append(entry | {"id": len(annotations) + 1})
    return {"images": described, "annotations": annotations, "categories": CATEGORIES}


def make(folder: Path, images: str = "Images", content: dict = IMAGES) -> Path:
    """A data set as it is downloaded."""
    (folder / "Annotations").mkdir(parents=True)
    for split, each in content.items():
        (folder / "Annotations" / f"{split}.json").write_text(json.dumps(describe(each)))
        place = folder / images.format(split=split)
        place.mkdir(parents=True, exist_ok=True)
        for name, (size, _) in each.items():
            cv2.imwrite(str(place / name), draw(*size)[..., ::-1])
    return folder


def make_cut(folder: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """A data set as the authors' tool cuts it: a window per split, with an object and one cut off."""
    (folder / "Annotations").mkdir(parents=True)
    for split in splits:
        content = describe({"a_0.jpg": ((800, 800), [(1, 20, 30, 10, 12), (5, 780, 600, 20, 50)])})
        content["images"][0] |= {"ori_id": 11, "start_coord": [0, 650], "id": 0}
        content["categories"] = CATEGORIES[:-1]
        for entry in content["annotations"]:
            entry |= {"image_id": 0, "ignore": entry["category_id"] == 5}
        (folder / "Annotations" / f"{split}.json").write_text(json.dumps(content))
        (folder / "Images" / split).mkdir(parents=True)
        cv2.imwrite(str(folder / "Images" / split / "a_0.jpg"), draw(800, 800))
    return folder
