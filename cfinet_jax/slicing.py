"""Windows over a picture too large for the network."""

import numpy as np
from jaxtyping import Int, UInt8


def window_origins(
    size: tuple[int, int], window: tuple[int, int], overlap: tuple[int, int]
) -> Int[np.ndarray, "windows 2"]:
    """The upper left corners (row, column) of windows that cover a picture of `size` (height, width), all in pixels.

    Neighbours share `overlap` rows or columns at least; the last window of a row or column ends at the border. A side
    that fits into one window has one. Row by row.

    Raises:
      ValueError: the overlap is not smaller than the window.
    """
    if not all(0 <= o < w for o, w in zip(overlap, window, strict=True)):
        raise ValueError(f"windows of {window} cannot overlap by {overlap}")
    starts = [
        np.minimum(np.arange(0, max(side - shared, 1), extent - shared), max(side - extent, 0))
        for side, extent, shared in zip(size, window, overlap, strict=True)
    ]
    rows, columns = np.meshgrid(*(np.unique(start) for start in starts), indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], axis=1)


def cut_window(
    picture: UInt8[np.ndarray, "height width 3"], origin: Int[np.ndarray, "2"], window: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "rows columns 3"], tuple[int, int]]:
    """One window of a picture, extended right and below by repeating its border; and the size of what is picture."""
    (row, column), (rows, columns) = origin.tolist(), window
    inside = picture[row : row + rows, column : column + columns]
    height, width = inside.shape[:2]
    return np.pad(inside, ((0, rows - height), (0, columns - width), (0, 0)), "edge"), (height, width)
