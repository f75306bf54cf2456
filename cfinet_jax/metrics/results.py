"""Detections in COCO's results format, which the scores are computed from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int


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
