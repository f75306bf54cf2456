"""Detections in COCO's results format, and as the columns that the scores are computed from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Columns(NamedTuple):
    """Detections as arrays, boxes x y w h; of equal scores the earlier counts as better."""

    image_ids: Int[np.ndarray, "n"]
    category_ids: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]


def columns(results: Sequence[dict[str, Any]]) -> Columns:
    """Those of a list in COCO's results format."""
    image_ids, category_ids = (np.array([entry[key] for entry in results], int) for key in ("image_id", "category_id"))
    boxes = np.array([entry["bbox"] for entry in results], float).reshape(-1, 4)
    return Columns(image_ids, category_ids, boxes, np.array([entry["score"] for entry in results], float))


def as_columns(
    boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], image_id: int, category_id: int
) -> Columns:
    """Those of one image and class; boxes x1 y1 x2 y2 become x y w h."""
    image_ids, category_ids = (np.full(len(boxes), number) for number in (image_id, category_id))
    return Columns(image_ids, category_ids, np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]), scores)


def joined(parts: Sequence[Columns]) -> Columns:
    """One below the other."""
    return Columns(*map(np.concatenate, zip(*parts, strict=True)))


def coco_results(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    image_id: int,
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """One entry a detection of one image; boxes x1 y1 x2 y2 become x y w h, to a thousandth of a pixel."""
    corners = np.asarray(boxes, np.float64)
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(x, 3) for x in box],
            "score": float(score),
        }
        for box, score, label in zip(sides, scores, labels, strict=True)
    ]
