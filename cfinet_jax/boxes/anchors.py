"""Anchors on the grid of a feature map; constants of a shape, so NumPy."""

from collections.abc import Sequence

import numpy as np


def anchor_grid(shape: tuple[int, int], stride: int, scale: float, ratios: Sequence[float]) -> np.ndarray:
    """Anchors `[rows * columns * ratios, 4]` of one feature map, row by row, the ratios of a cell together.

    An anchor has area `(scale * stride)**2` and height / width = ratio; that of cell (i, j) is centred on pixel
    `(j * stride, i * stride)`, without a half-pixel shift (cfinet_facts 2.1).
    """
    rows, columns = shape
    roots = np.sqrt(np.asarray(ratios, np.float32))
    half = np.stack([1 / roots, roots], -1) * np.float32(scale * stride / 2)
    y, x = np.meshgrid(np.arange(rows) * stride, np.arange(columns) * stride, indexing="ij")
    centres = np.stack([x, y], -1).astype(np.float32)[:, :, None]
    return np.concatenate([centres - half, centres + half], -1).reshape(-1, 4).astype(np.float32)
