"""Anchors on the grid of a feature map; they depend on shapes alone, so they are NumPy constants."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def anchor_grid(shape: tuple[int, int], stride: int, scale: float, ratios: Sequence[float]) -> np.ndarray:
    """Return the anchors of one feature map, row by row, the ratios of a cell together.

    Args:
      shape: Rows and columns of the map.
      stride: Pixels per cell. The anchor of cell (i, j) is centred on pixel `(j * stride, i * stride)`, without a
        half-pixel shift, as in the released code.
      scale: An anchor has area `(scale * stride)**2`.
      ratios: Height / width.

    Returns:
      Boxes `[rows * columns * ratios, 4]`.
    """
    rows, columns = shape
    half = half_sides(stride, scale, ratios)
    y, x = np.meshgrid(np.arange(rows) * stride, np.arange(columns) * stride, indexing="ij")
    centres = np.stack([x, y], -1).astype(np.float32)[:, :, None]
    return np.concatenate([centres - half, centres + half], -1).reshape(-1, 4).astype(np.float32)


def half_sides(stride: int, scale: float, ratios: Sequence[float]) -> Float[np.ndarray, "ratios 2"]:
    """Return half the width and height of an anchor of every ratio."""
    roots = np.sqrt(np.asarray(ratios, np.float32))
    return np.stack([1 / roots, roots], -1) * np.float32(scale * stride / 2)


def octave_shapes(scales: int, ratios: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the factors (width, height) that give a square `scales` sizes within an octave, each in every ratio."""
    shapes = [half_sides(2, 2 ** (k / scales), ratios) for k in range(scales)]  # half of a square of side 2 is 1
    return tuple((float(width), float(height)) for width, height in np.concatenate(shapes))


def best_overlap(
    boxes: Float[np.ndarray, "n 4"], shape: tuple[int, int], stride: int, scale: float, ratios: Sequence[float]
) -> Float[np.ndarray, "n"]:
    """Return the IoU of each box with the best of the anchors that `anchor_grid` makes of the other arguments.

    The nearer the centre of an anchor, the more it covers of a box, along x and along y alike: the best anchor of a
    shape is that of the nearest cell, so the grid itself is not needed.
    """
    rows, columns = shape
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearest = np.clip(np.rint(centres / stride), 0, (columns - 1, rows - 1)) * stride
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    best = np.zeros(len(boxes))
    for half in half_sides(stride, scale, ratios):
        sides = np.minimum(boxes[:, 2:], nearest + half) - np.maximum(boxes[:, :2], nearest - half)
        shared = np.prod(np.maximum(sides, 0), axis=1)
        best = np.maximum(best, shared / (areas + np.prod(2 * half) - shared))
    return best
