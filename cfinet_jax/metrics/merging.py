"""Combine the detections and proposals of a picture's windows."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from cfinet_jax.metrics.overlaps import pairs_among
from cfinet_jax.metrics.results import Found
from cfinet_jax.structures import Detections, Proposals


def in_image(seen: Detections | Proposals, image: int) -> Found:
    """Return what is valid of one image of a batch that has been fetched from the device; proposals have label 0."""
    valid = seen.valid[image]
    labels = getattr(seen, "labels", np.zeros(seen.scores.shape, int))
    return Found(*(np.asarray(each[image][valid]) for each in (seen.boxes, seen.scores, labels)))


def merge(windows: Sequence[Found], origins: Int[np.ndarray, "windows 2"], overlap: float) -> Found:
    """Merge the detections of windows by class-wise NMS, as the released code does.

    Of two boxes of a class with an IoU above `overlap` the better one is kept. The order of the windows does not
    matter, except between equal scores.

    Args:
      windows: detections of each window, in its pixels.
      origins: row and column of each window in the picture.
      overlap: highest IoU at which both boxes are kept.

    Returns:
      detections in pixels of the picture, best first.
    """
    found = together(windows, origins)
    kept = suppress(found, overlap)
    return found.take(kept[np.argsort(-found.scores[kept], kind="stable")])


def suppress(found: Found, overlap: float) -> Int[np.ndarray, "kept"]:
    """Apply NMS class by class, to upright or oriented boxes, and return the places of the boxes kept, ascending."""
    keep = keep_best_oriented if found.boxes.shape[1] == 5 else keep_best
    order = np.argsort(-found.scores, kind="stable")
    classes = (order[found.labels[order] == label] for label in np.unique(found.labels))
    kept = [own[keep(found.boxes[own].astype(np.float64), overlap)] for own in classes]
    return np.sort(np.concatenate([np.zeros(0, int), *kept]))


def keep_best(boxes: Float[np.ndarray, "n 4"], overlap: float) -> Bool[np.ndarray, "n"]:
    """Return which upright boxes, best first, NMS keeps; a box without area overlaps no other."""
    corners_and_sides = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    # OpenCV gets only boxes with area, since it takes any two others for equal, and one class at a time, since it would
    # separate classes by offsets that negative coordinates can cross.
    kept = np.any(corners_and_sides[:, 2:] <= 0, axis=1)
    real = np.flatnonzero(~kept)
    batched: Any = cv2.dnn.NMSBoxesBatched  # takes arrays, though it declares lists, and scores below zero
    places = batched(corners_and_sides[real], -real.astype(float), np.zeros(len(real), int), float("-inf"), overlap)
    kept[real[np.asarray(places, int).ravel()]] = True
    return kept


def keep_best_oriented(boxes: Float[np.ndarray, "n 5"], overlap: float) -> Bool[np.ndarray, "n"]:
    """Return which oriented boxes, best first, NMS keeps."""
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
    """Combine the proposals of windows: each box is kept by the window whose middle is nearest to the box's centre.

    So every window has a part of the picture to itself: what two windows see counts once, and nothing is suppressed. An
    object no larger than the overlap is seen whole by the window that owns its centre.

    Args:
      windows: proposals of each window, in its pixels.
      origins: row and column of each window in the picture.
      shape: height and width of the windows.

    Returns:
      proposals in pixels of the picture, best first.
    """
    found = together(windows, origins)
    owners = np.repeat(np.arange(len(windows)), [len(window.scores) for window in windows])
    middles = origins[:, ::-1] + np.array(shape[::-1]) / 2
    away = (found.boxes[:, None, :2] + found.boxes[:, None, 2:]) / 2 - middles
    kept = np.flatnonzero(np.square(away).sum(-1).argmin(1) == owners)
    return found.take(kept[np.argsort(-found.scores[kept], kind="stable")])


def together(windows: Sequence[Found], origins: Int[np.ndarray, "windows 2"]) -> Found:
    """Concatenate the detections of windows, moved to pixels of the picture."""
    nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    moved = [found._replace(boxes=move(found.boxes, *origin)) for found, origin in zip(windows, origins, strict=True)]
    return Found(*map(np.concatenate, zip(*(moved or [nothing]), strict=True)))


def move(boxes: Float[np.ndarray, "n numbers"], row: int, column: int) -> Float[np.ndarray, "n numbers"]:
    """Move boxes of a window at (row, column) to pixels of the picture."""
    return boxes + np.array([column, row, 0, 0, 0] if boxes.shape[1] == 5 else [column, row] * 2, np.float32)
