"""From the detections and proposals of a picture's windows to those of the picture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int

from cfinet_jax.overlaps import meeting_pairs


class Found(NamedTuple):
    """What was found in one picture, best first; boxes x1 y1 x2 y2 or cx cy w h angle in its pixels."""

    boxes: Float[np.ndarray, "n numbers"]
    scores: Float[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]


def merge(windows: Sequence[Found], origins: Int[np.ndarray, "windows 2"], overlap: float) -> Found:
    """Moves the detections of every window to its origin (row, column) and keeps, class by class, what NMS keeps.

    Of boxes of a class with an IoU above `overlap` the better one stays, as the released code does. The
    order of the windows does not matter, ties of scores apart.
    """
    boxes, scores, labels = found = together(windows, origins)
    kept = (suppress_oriented if boxes.shape[1] == 5 else suppress)(found, overlap)
    best = kept[np.argsort(-scores[kept], kind="stable")]
    return Found(boxes[best], scores[best], labels[best])


def suppress(found: Found, overlap: float) -> Int[np.ndarray, "kept"]:
    """The places of upright boxes that NMS keeps, class by class."""
    corners_and_sides = found.boxes.astype(np.float64)
    corners_and_sides[:, 2:] -= corners_and_sides[:, :2]
    batched: Any = cv2.dnn.NMSBoxesBatched  # takes arrays, though it declares lists
    return np.asarray(batched(corners_and_sides, found.scores, found.labels, float("-inf"), overlap), int).ravel()


def suppress_oriented(found: Found, overlap: float) -> Int[np.ndarray, "kept"]:
    """The places of oriented boxes that NMS keeps, class by class."""
    order = np.lexsort((-found.scores, found.labels))
    labels, boxes = found.labels[order], found.boxes[order].astype(np.float64)
    areas = boxes[:, 2] * boxes[:, 3]
    kept = np.ones(len(order), bool)
    for better, worse, shared in meeting_pairs(labels, boxes, labels, boxes):
        alike = (better < worse) & (shared > overlap * (areas[better] + areas[worse] - shared))
        better, worse = better[alike], worse[alike]
        starts = np.flatnonzero(np.diff(better, prepend=-1))
        for place, others in zip(better[starts].tolist(), np.split(worse, starts)[1:], strict=True):
            if kept[place]:
                kept[others] = False
    return order[kept]


def stitch(windows: Sequence[Found], origins: Int[np.ndarray, "windows 2"], shape: tuple[int, int]) -> Found:
    """Moves what was found in windows of `shape` (height, width), and keeps what is nearest to the middle of its own.

    So every window has a part of the picture to itself: what two of them see counts once, and nothing is suppressed.
    Objects up to the size of the overlap are whole in the window that their middle belongs to.
    """
    boxes, scores, labels = together(windows, origins)
    owners = np.repeat(np.arange(len(windows)), [len(found.scores) for found in windows])
    middles = origins[:, ::-1] + np.array(shape[::-1]) / 2
    away = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 - middles
    kept = np.flatnonzero(np.square(away).sum(-1).argmin(1) == owners)
    best = kept[np.argsort(-scores[kept], kind="stable")]
    return Found(boxes[best], scores[best], labels[best])


def together(windows: Sequence[Found], origins: Int[np.ndarray, "windows 2"]) -> Found:
    """What was found in all windows, one after the other, in pixels of the picture."""
    moved = [move(found.boxes, origin) for found, origin in zip(windows, origins, strict=True)]
    boxes = np.concatenate(moved) if moved else np.zeros((0, 4), np.float32)
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for found in windows)])
    labels = np.concatenate([np.zeros(0, np.int32), *(found.labels for found in windows)])
    return Found(boxes, scores, labels)


def move(boxes: Float[np.ndarray, "n numbers"], origin: Int[np.ndarray, "2"]) -> Float[np.ndarray, "n numbers"]:
    """Boxes of a window at an origin (row, column), in pixels of the picture."""
    corner = origin[::-1]
    return boxes + np.float32([*corner, 0, 0, 0] if boxes.shape[1] == 5 else [*corner, *corner])
