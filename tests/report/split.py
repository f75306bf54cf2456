"""A split small enough for a report, and detections in it."""

import cv2
import numpy as np

from cfinet_jax.input.dataset import Prepared

NAMES = ("a/1.png", "b/1.png", "c [x](y).png", "empty.png")
CLASSES = {3: "<b>car|_x_*y*</b>", 7: "two_words $x$ `z`"}
SIDE, STEP, PER_IMAGE = 8.0, 12, 20


def record(number: int, name: str, boxes: list[list[float]], labels: list[int]) -> dict:
    """A record as `cfinet_jax/input/records.py` describes it."""
    image = np.random.default_rng(number).integers(90, 110, (80, 120, 3), dtype=np.uint8)
    objects = {
        "bbox": np.array(boxes, np.float32).reshape(-1, 4),
        "label": np.array(labels, int),
        "area": np.full(len(boxes), SIDE**2),
        "iscrowd": np.zeros(len(boxes), bool),
        "ignore": np.zeros(len(boxes), bool),
    }
    encoded = cv2.imencode(".png", image)[1].tobytes()
    names = {"path": b"", "image": encoded, "file_name": name.encode(), "image_id": number}
    return {**names, "height": 80, "width": 120, "objects": objects}


def some_split() -> Prepared:
    """Three pictures with 20 cars each, the first with a thing of the other class; one with nothing."""
    places = [[STEP * (k % 10), STEP * (k // 10)] for k in range(PER_IMAGE)]
    boxes = [[x, y, x + SIDE, y + SIDE] for x, y in places]
    records = [record(number, name, boxes, [0] * PER_IMAGE) for number, name in enumerate(NAMES[:-1], start=1)]
    records[0] = record(1, NAMES[0], [*boxes, [60, 60, 70, 70]], [0] * PER_IMAGE + [1])
    records.append(record(len(NAMES), NAMES[-1], [], []))
    return Prepared(source=records, classes=tuple(CLASSES.values()), category_ids=tuple(CLASSES), account={})


def some_detections(prepared: Prepared) -> list[dict]:
    """All of the first picture's cars, half of the second's, none of the third's, and one where there is nothing."""
    found = []
    for annotation in prepared.coco["annotations"]:
        position = annotation["id"] - 1
        picture, car = annotation["image_id"], annotation["category_id"] == 3
        if car and (picture == 1 or (picture == 2 and position % 2)):
            found.append({key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9})
    return [*found, {"image_id": 3, "category_id": 3, "bbox": [60.0, 60.0, 8.0, 8.0], "score": 0.5}]
