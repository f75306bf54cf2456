"""Detections as columns, which the scores are computed from, and in COCO's results format."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from cfinet_jax.runtime.files import replacing

KEYS: tuple[str, ...] = ("image_id", "category_id", "bbox", "score")  # COCO's, in the order of the columns
DIGITS, ANGLE_DIGITS = 3, 5  # of a pixel, of a radian
STEEPEST = 1.57079  # the largest of so many digits below pi / 2
CHUNK = 4096  # detections that are Python objects at a time


class Columns(NamedTuple):
    """Detections as arrays, boxes x y w h or cx cy w h angle; of equal scores the earlier counts as better."""

    image_ids: Int[np.ndarray, "n"]
    category_ids: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n numbers"]
    scores: Float[np.ndarray, "n"]

    def at_least(self, score: float) -> "Columns":
        """Those with such a score."""
        enough = self.scores >= score
        return Columns(*(column[enough] for column in self))


def columns(results: Sequence[dict[str, Any]]) -> Columns:
    """Those of a list in COCO's results format."""
    image_ids, category_ids = (np.array([entry[key] for entry in results], int) for key in KEYS[:2])
    boxes = np.array([entry["bbox"] for entry in results], float) if results else np.zeros((0, 4))
    return Columns(image_ids, category_ids, boxes, np.array([entry["score"] for entry in results], float))


def box_of(entry: dict[str, Any]) -> list[float]:
    """The box of an annotation or a detection: the oriented one of an annotation that has both."""
    return entry["rbox"] if "rbox" in entry else entry["bbox"]


def columns_of_image(
    boxes: Float[np.ndarray, "n numbers"],
    scores: Float[np.ndarray, "n"],
    category_ids: Int[np.ndarray, "n"],
    image_id: int,
) -> Columns:
    """Those of one image, to a thousandth of a pixel; boxes x1 y1 x2 y2 become x y w h, oriented ones stay."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.shape[1] == 5:
        angles = np.clip(boxes[:, 4:].round(ANGLE_DIGITS), -STEEPEST, STEEPEST)
        rounded = np.hstack([boxes[:, :4].round(DIGITS), angles])
    else:
        rounded = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).round(DIGITS)
    return Columns(np.full(len(rounded), image_id), np.asarray(category_ids), rounded, np.asarray(scores, np.float64))


def joined(parts: Sequence[Columns]) -> Columns:
    """One below the other."""
    return Columns(*map(np.concatenate, zip(*parts, strict=True)))


def entries(results: Columns) -> Iterator[dict[str, Any]]:
    """One by one, in COCO's results format."""
    for start in range(0, len(results.scores), CHUNK):
        values = (column[start : start + CHUNK].tolist() for column in results)
        yield from (dict(zip(KEYS, entry, strict=True)) for entry in zip(*values, strict=True))


def write_coco(results: Columns, path: epath.Path) -> None:
    """Leaves a JSON file in COCO's results format; memory does not grow with the number of detections."""
    with replacing(path) as partial, partial.open("w") as file:
        for number, entry in enumerate(entries(results)):
            file.write((", " if number else "[") + json.dumps(entry))
        file.write("]" if len(results.scores) else "[]")
