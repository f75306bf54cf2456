"""A tiny SODA-A in the folders and the format of the real one."""

import json
import math
from pathlib import Path

import cv2

from tests.soda import draw

NAMES = ["airplane", "helicopter", "small-vehicle", "large-vehicle", "ship", "container", "storage-tank"]
NAMES = [*NAMES, "swimming-pool", "windmill", "ignore"]
CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
IGNORE = 9
LARGE, SMALL = (1300, 1500), (500, 700)  # height, width


def turned(x: float, y: float, w: float, h: float, degrees: float) -> list[float]:
    """The corners of a rectangle, clockwise on the screen."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    halves = ((-w, -h), (w, -h), (w, h), (-w, h))
    return [place for a, b in halves for place in (x + (a * cos - b * sin) / 2, y + (a * sin + b * cos) / 2)]


IMAGES = {  # by split: name, size and annotations (category, corners)
    "train": {
        "00001": (
            LARGE,
            [
                (2, turned(100, 120, 30, 12, 30)),
                (3, turned(800, 600, 60, 20, -45)),  # half of it in the first window
                (4, turned(700, 640, 40, 10, 90)[::-1]),  # the other way round; whole in four windows
                (IGNORE, turned(300, 300, 200, 100, 20)),
                (0, turned(300, 300, 24, 20, 70)),  # inside the region
                (8, turned(900, 900, 12, 1.5, 10)),  # too thin
            ],
        ),
        "00002": (SMALL, []),
        "00003": (SMALL, [(5, turned(200, 100, 20, 20, 45)), (IGNORE, turned(500, 400, 80, 40, 0))]),
    },
    "val": {"00004": (LARGE, [(6, turned(1400, 1200, 30, 25, 15))])},
    "test": {"00005": (SMALL, [(7, turned(60, 50, 50, 20, -80))])},
}


def make(folder: Path, images: str = "Images", content: dict = IMAGES) -> Path:
    """A data set as it is downloaded."""
    for split, each in content.items():
        annotations, place = folder / "Annotations" / split, folder / images.format(split=split)
        annotations.mkdir(parents=True)
        place.mkdir(parents=True, exist_ok=True)
        for name, (size, entries) in each.items():
            described = [{"poly": poly, "category_id": category} for category, poly in entries]
            (annotations / f"{name}.json").write_text(json.dumps({"annotations": described, "categories": CATEGORIES}))
            cv2.imwrite(str(place / f"{name}.jpg"), draw(*size)[..., ::-1])
    return folder
