"""Recognise boxes that are not x y width height in pixels, from all boxes of a file together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

MIN_BOXES = 10  # fewer boxes could look like any format
SLACK = 0.02  # share of a picture's size by which rounding and unclipped predictions may leave it
OUTSIDE = 0.3  # share of boxes outside their picture that no correct file has
AT_LEAST, NEARLY_ALL = 0.05, 0.99  # shares of the boxes
ROUNDED = 1.01  # factor by which an area may exceed that of its box, whose sides may be rounded to pixels
HALF = 0.5  # share of a picture that the boxes of no real data set keep to
TINY = 1.5  # pixels; also covers shares of the picture slightly above 1


def suspect_units(boxes: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "n 2"]) -> str | None:
    """Name the format that boxes seem to have instead of x y width height in pixels, or return None.

    `sizes` are width and height of the picture of each box. A file of fewer than `MIN_BOXES` is never suspected.
    """
    boxes, sizes = np.asarray(boxes, float).reshape(-1, 4), np.asarray(sizes, float).reshape(-1, 2)
    sound = np.isfinite(boxes).all(1) & (sizes > TINY).all(1)
    boxes, sizes = boxes[sound], sizes[sound]
    if len(boxes) < MIN_BOXES:
        return None
    if np.mean((np.abs(boxes) <= TINY).all(1)) >= NEARLY_ALL:
        return "shares of the picture (0 to 1) instead of pixels"
    first, second, slack = boxes[:, :2], boxes[:, 2:], SLACK * sizes
    leaves = (first + second > sizes + slack).any(1)
    as_corners = ((first < second) & (second <= sizes + slack)).all(1)
    if np.mean(as_corners) > 0.5 and np.mean(as_corners & leaves) > OUTSIDE:
        return "corners (x1 y1 x2 y2) instead of x y width height"
    # Unclipped boxes leave their picture on every side. Centres read as corners leave it only to the right and below,
    # and read as centres they fit.
    low, high = first - second / 2, first + second / 2
    as_centres = ((low >= -slack) & (high <= sizes + slack)).all(1)
    if np.sum(leaves) >= max(MIN_BOXES, AT_LEAST * len(boxes)) and np.mean(as_centres) >= NEARLY_ALL:
        return "centres (cx cy width height) instead of x y width height"
    return None


def tell_reach(path: epath.PathLike, boxes: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "n 2"]) -> None:
    """Print a line if no box reaches the second half of its picture, as where boxes are of smaller copies."""
    known = (sizes > 0).all(1)
    reach = (boxes[known, :2] + boxes[known, 2:]) / sizes[known]
    if len(reach) >= MIN_BOXES and reach.max() <= HALF:
        print(
            f"{path}: no box reaches beyond {100 * reach.max():.0f} % of the width and height of its image: check that "
            "the boxes are in pixels of these images, not of smaller copies and not percentages."
        )


def tell_areas(path: epath.PathLike, entries: Sequence[Mapping[str, Any]]) -> None:
    """Print a line if most areas of annotations exceed their boxes, or are below a pixel where the boxes are not."""
    areas = np.array([entry["area"] for entry in entries], float)
    sides = np.array([entry["bbox"][2:] for entry in entries], float).reshape(-1, 2)
    odd = (areas > (sides + 1).prod(1) * ROUNDED) | ((areas < 1) & (sides >= 1).all(1))
    if len(areas) >= MIN_BOXES and np.mean(odd) > 0.5:
        print(
            f"{path}: {odd.sum()} of {len(areas)} areas do not fit their boxes, {areas[odd][0]:g} for "
            f"{sides[odd][0, 0]:g} x {sides[odd][0, 1]:g} pixels: the scores by size depend on them, so correct or "
            "remove them."
        )
