"""Windows over a picture too large for the network, and what lies in them: SODA-D's rules, for polygons SODA-A's.

Boxes are x1 y1 x2 y2 and polygons four corners (x, y); an origin is the upper left corner (row, column) of a window;
sizes are (height, width). All in pixels. `metrics/merging.py` moves detections back into the picture and joins them.
"""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from cfinet_jax.structures import WHOLE

MARGIN = 5  # pixels beyond the last annotation of a picture that training windows may still cover


def window_origins(
    size: tuple[int, int], window: tuple[int, int], overlap: tuple[int, int]
) -> Int[np.ndarray, "windows 2"]:
    """Return the origins of windows that cover a picture of `size`, row by row.

    Neighbours share at least `overlap` rows or columns; the last window of a row or column ends at the border. A side
    that fits into one window gets a single window.

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


def training_windows(
    size: tuple[int, int],
    objects: Float[np.ndarray, "objects 4"],
    regions: Float[np.ndarray, "regions 4"],
    window: tuple[int, int],
    overlap: tuple[int, int],
) -> Int[np.ndarray, "windows 2"]:
    """Return the origins of the windows that hold an object, column by column (SODA-D's training windows).

    Windows cover only the annotated part of the picture, for which regions to ignore count as well.
    """
    if not len(objects):
        return np.zeros((0, 2), int)
    boxes = np.concatenate([objects, regions]).astype(float)
    # The reference truncates corners and sides separately. Sides are rounded first since corners may be float32, from
    # which a side is known to about a thousandth.
    ends = boxes[:, :2].astype(int) + np.round(boxes[:, 2:] - boxes[:, :2], 3).astype(int)
    annotated = np.minimum(size, ends.max(axis=0)[::-1] + MARGIN)
    origins = column_by_column(window_origins(tuple(annotated.tolist()), window, overlap))
    corners = np.flip(origins, axis=1)[:, None]
    begin, end = np.maximum(objects[:, :2], corners), np.minimum(objects[:, 2:], corners + np.flip(window))
    return origins[(begin < end).all(axis=-1).any(axis=-1)]


def column_by_column(origins: Int[np.ndarray, "windows 2"]) -> Int[np.ndarray, "windows 2"]:
    """Sort origins in the order in which SODA's tool numbers windows."""
    return origins[np.lexsort((origins[:, 0], origins[:, 1]))]


def boxes_in_window(
    boxes: Float[np.ndarray, "n 4"], origin: Int[np.ndarray, "2"], window: tuple[int, int]
) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, "n"]]:
    """Clip boxes to a window; return them in its pixels, and the share of each one's area that is inside.

    The share is 0 for a box outside and for one without an area.
    """
    boxes = boxes.astype(float)  # in float32 a share of exactly 0.4 could exceed `CUT_OFF`
    moved = boxes - np.tile(origin[::-1], 2)
    inside = np.clip(moved, 0, np.tile(window[::-1], 2))
    seen, whole = (np.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (inside, boxes))
    return inside, np.divide(seen, whole, out=np.zeros_like(whole), where=whole > 0)


def fill(
    picture: UInt8[np.ndarray, "height width 3"],
    regions: Float[np.ndarray, "regions 4"],
    objects: Float[np.ndarray, "objects 4"],
) -> None:
    """Black out regions to ignore in a picture or window, but not inside the boxes of objects.

    Boxes end before the pixel that holds their right or lower edge.
    """
    holes, kept = (np.maximum(boxes, 0).astype(int).tolist() for boxes in (regions, objects))
    pixels = [picture[y1:y2, x1:x2].copy() for x1, y1, x2, y2 in kept]
    for x1, y1, x2, y2 in holes:
        picture[y1:y2, x1:x2] = 0
    for (x1, y1, x2, y2), before in zip(kept, pixels, strict=True):
        picture[y1:y2, x1:x2] = before


def windows_with_objects(
    size: tuple[int, int], objects: Float[np.ndarray, "objects 4 2"], window: tuple[int, int], overlap: tuple[int, int]
) -> Int[np.ndarray, "windows 2"]:
    """Return the origins of the windows that hold at least `WHOLE` of an object (SODA-A's training windows).

    SODA-A's tool also drops windows of which at most 60 % is picture unless there is no other. That never makes a
    difference here: the last window ends at the border, so all windows of a picture show the same share of picture.
    """
    origins = window_origins(size, window, overlap)
    low, high = objects.min(axis=1), objects.max(axis=1)
    seen = np.zeros(len(origins), bool)
    for number, origin in enumerate(origins):
        corner = origin[::-1]
        near = np.all((low < corner + np.flip(window)) & (high > corner), axis=1)
        shown = tuple(np.minimum(window, size - origin).tolist())  # the part that is picture
        seen[number] = (share_in_window(objects[near], origin, shown) >= WHOLE).any()
    return origins[seen]


def share_in_window(
    polygons: Float[np.ndarray, "n 4 2"], origin: Int[np.ndarray, "2"], window: tuple[int, int]
) -> Float[np.ndarray, "n"]:
    """Return the share of each polygon's area that lies in a window, 0 for one without an area.

    The corners may go round either way. The lines of the window's border divide each side into parts. Clamping the ends
    of all parts to the window moves the parts outside onto its border, where they enclose nothing: the area of the
    clamped polygon is the area inside.
    """
    start = polygons.astype(float) - origin[::-1]
    side = np.roll(start, -1, axis=1) - start
    border = np.array([np.zeros(2), np.flip(window)])
    start, side = start[:, :, None], side[:, :, None]
    crossings = np.divide(border - start, side, out=np.zeros((*start.shape[:2], 2, 2)), where=side != 0)
    parts = np.sort(np.clip(crossings, 0, 1).reshape(*start.shape[:2], 4, 1), axis=2)
    points = np.concatenate([start, start + parts * side], axis=2).reshape(len(start), 5 * start.shape[1], 2)
    inside, whole = _signed_area(np.clip(points, *border)), _signed_area(start[:, :, 0])
    return np.divide(inside, whole, out=np.zeros(len(whole)), where=whole != 0)


def _signed_area(polygons: Float[np.ndarray, "n corners 2"]) -> Float[np.ndarray, "n"]:
    """Return the areas by the shoelace formula, positive or negative by the direction of the corners."""
    following = np.roll(polygons, -1, axis=1)
    return np.sum(polygons[..., 0] * following[..., 1] - polygons[..., 1] * following[..., 0], axis=1) / 2


def fill_polygons(
    picture: UInt8[np.ndarray, "height width 3"],
    regions: Float[np.ndarray, "regions 4 2"],
    objects: Float[np.ndarray, "objects 4 2"],
) -> None:
    """Black out the polygons of regions to ignore in a picture or window, but not inside those of objects."""
    if not len(regions):
        return
    painted = np.zeros(picture.shape[:2], np.uint8)
    for polygons, value in ((regions, 1), (objects, 0)):
        for corners in np.floor(polygons).astype(np.int32):
            cv2.fillPoly(painted, [corners], value)
    picture[painted == 1] = 0


def cut_window(
    picture: UInt8[np.ndarray, "height width 3"],
    origin: Int[np.ndarray, "2"],
    window: tuple[int, int],
    border: Literal["edge", "constant"] = "edge",
    out: UInt8[np.ndarray, "rows columns 3"] | None = None,
) -> tuple[UInt8[np.ndarray, "rows columns 3"], tuple[int, int]]:
    """Cut a window out of a picture, extended right and below by its edge or by black.

    Returns:
      the window, in `out` if given, else perhaps a view of the picture; and the size of the part that is picture.
    """
    (row, column), (rows, columns) = origin.tolist(), window
    inside = picture[row : row + rows, column : column + columns]
    height, width = inside.shape[:2]
    if out is None and (height, width) == tuple(window):
        return inside, (height, width)
    kind = cv2.BORDER_REPLICATE if border == "edge" else cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(inside, 0, rows - height, 0, columns - width, kind, out), (height, width)
