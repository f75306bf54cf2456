"""From the detections and proposals of a picture's windows to those of the picture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from cfinet_jax.metrics.overlaps import pairs_among


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
    kept = suppress(found, overlap)
    best = kept[np.argsort(-scores[kept], kind="stable")]
    return Found(boxes[best], scores[best], labels[best])


def suppress(found: Found, overlap: float) -> Int[np.ndarray, "kept"]:
    """Apply NMS class by class, to upright or oriented boxes, and return the places of those it keeps, ascending."""
    keep = keep_best_oriented if found.boxes.shape[1] == 5 else keep_best
    order = np.argsort(-found.scores, kind="stable")
    classes = (order[found.labels[order] == label] for label in np.unique(found.labels))
    kept = [own[keep(found.boxes[own].astype(np.float64), overlap)] for own in classes]
    return np.sort(np.concatenate([np.zeros(0, int), *kept]))


def keep_best(boxes: Float[np.ndarray, "n 4"], overlap: float) -> Bool[np.ndarray, "n"]:
    """Which upright boxes NMS keeps, the best first; one without area overlaps none.

    OpenCV takes two of these for equal, and would move classes apart by offsets that negative coordinates cross. So
    it sees boxes with area only, and one class at a time.
    """
    corners_and_sides = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    kept = np.any(corners_and_sides[:, 2:] <= 0, axis=1)
    real = np.flatnonzero(~kept)
    batched: Any = cv2.dnn.NMSBoxesBatched  # takes arrays, though it declares lists, and scores below zero
    places = batched(corners_and_sides[real], -real.astype(float), np.zeros(len(real), int), float("-inf"), overlap)
    kept[real[np.asarray(places, int).ravel()]] = True
    return kept


def keep_best_oriented(boxes: Float[np.ndarray, "n 5"], overlap: float) -> Bool[np.ndarray, "n"]:
    """Which oriented boxes NMS keeps, the best first."""
    areas, kept = boxes[:, 2] * boxes[:, 3], np.ones(len(boxes), bool)
    alike = []
    for first, second, shared in pairs_among(boxes):
        close = shared > overlap * (areas[first] + areas[second] - shared)
        alike.append(np.sort(np.stack([first[close], second[close]], axis=1), axis=1))
    pairs = np.concatenate(alike)
    for better, worse in pairs[np.argsort(pairs[:, 0], kind="stable")].tolist():
        if kept[better]:
            kept[worse] = False
    return kept


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
    x, y = origin[::-1]
    return boxes + np.array([x, y, 0, 0, 0] if boxes.shape[1] == 5 else [x, y, x, y], np.float32)
