"""Detections on the host: of one picture with corners, and of a whole split as COCO's results format has them.

Scores are computed from COCO's x y w h, since float32 corners do not give back the exact sides of the file: 15 % of
boxes of 12 x 12 pixels with three-digit coordinates would exceed 144 square pixels and fall out of the size `eS`.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from cfinet_jax.runtime.files import replacing

KEYS: tuple[str, ...] = ("image_id", "category_id", "bbox", "score")  # COCO's, in the order of `Columns`
DIGITS, ANGLE_DIGITS = 3, 5  # of a pixel, of a radian
STEEPEST = 1.57079  # the largest angle of that many digits below pi / 2
CHUNK = 4096  # detections that are Python objects at a time


class Found(NamedTuple):
    """Detections in one picture or window, best first; boxes x1 y1 x2 y2 or cx cy w h angle in its pixels."""

    boxes: Float[np.ndarray, "n numbers"]
    scores: Float[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]  # index into the classes

    def take(self, places: Int[np.ndarray, "m"]) -> "Found":
        """Return the detections at these places, in this order."""
        return Found(*(each[places] for each in self))


class Columns(NamedTuple):
    """COCO results as arrays, boxes x y w h or cx cy w h angle; of equal scores the earlier detection is the better."""

    image_ids: Int[np.ndarray, "n"]
    category_ids: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n numbers"]
    scores: Float[np.ndarray, "n"]

    def at_least(self, score: float) -> "Columns":
        """Return the detections with a score of at least `score`."""
        enough = self.scores >= score
        return Columns(*(column[enough] for column in self))


def columns(results: Sequence[dict[str, Any]]) -> Columns:
    """Convert a list in COCO's results format."""
    image_ids, category_ids = (np.array([entry[key] for entry in results], int) for key in KEYS[:2])
    boxes = np.array([entry["bbox"] for entry in results], float) if results else np.zeros((0, 4))
    return Columns(image_ids, category_ids, boxes, np.array([entry["score"] for entry in results], float))


def box_of(entry: dict[str, Any]) -> list[float]:
    """Return the box of an annotation or detection, the oriented one if an annotation has both."""
    return entry["rbox"] if "rbox" in entry else entry["bbox"]


def columns_of_image(
    boxes: Float[np.ndarray, "n numbers"],
    scores: Float[np.ndarray, "n"],
    category_ids: Int[np.ndarray, "n"],
    image_id: int,
) -> Columns:
    """Convert the detections of one image, rounded to a thousandth of a pixel.

    Boxes x1 y1 x2 y2 become x y w h; oriented boxes cx cy w h angle remain so.
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.shape[1] == 5:
        # Rounding must not push an angle out of [-pi/2, pi/2).
        angles = np.clip(boxes[:, 4:].round(ANGLE_DIGITS), -STEEPEST, STEEPEST)
        rounded = np.hstack([boxes[:, :4].round(DIGITS), angles])
    else:
        rounded = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).round(DIGITS)
    return Columns(np.full(len(rounded), image_id), np.asarray(category_ids), rounded, np.asarray(scores, np.float64))


def joined(parts: Sequence[Columns]) -> Columns:
    """Concatenate detections."""
    return Columns(*map(np.concatenate, zip(*parts, strict=True)))


def entries(results: Columns) -> Iterator[dict[str, Any]]:
    """Convert detections to COCO's results format, one by one."""
    for start in range(0, len(results.scores), CHUNK):
        values = (column[start : start + CHUNK].tolist() for column in results)
        yield from (dict(zip(KEYS, entry, strict=True)) for entry in zip(*values, strict=True))


def write_coco(results: Columns, path: epath.Path) -> None:
    """Write a JSON file in COCO's results format; memory does not grow with the number of detections."""
    with replacing(path) as partial, partial.open("w") as file:
        for number, entry in enumerate(entries(results)):
            file.write((", " if number else "[") + json.dumps(entry))
        file.write("]" if len(results.scores) else "[]")
