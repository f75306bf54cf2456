"""Convert the box of an annotation to columns of a record; note what is wrong with it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cfinet_jax.boxes import oriented

TOLERANCE = 0.01  # pixels by which rounding may push a box over the edge
LARGEST = 1e18  # larger coordinates and areas are rejected like NaN
SHORTEST = 2.0  # pixels; SODA-A and DOTA leave out oriented boxes with a shorter side, in training and in scoring

Entry = dict[str, Any]
Note = Callable[[str], None]  # takes what is wrong with a box


def read_upright(entry: Entry, image: Entry, note: Note) -> Entry | None:
    """Clip the `bbox` (x y width height) of an annotation to the image; return None if it cannot be used."""
    box: Any = entry.get("bbox")
    if not are_numbers(box, 4):
        note("box is not four finite numbers, skipped")
        return None
    x, y, width, height = box
    if width <= 0 or height <= 0:
        note("box without width or height, skipped")
        return None
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + width, image["width"]), min(y + height, image["height"])
    if x2 <= x1 or y2 <= y1:
        note("box outside the image, skipped")
        return None
    if max(x1 - x, y1 - y, x + width - x2, y + height - y2) > TOLERANCE:
        note("box partly outside the image, clipped")
    area: Any = entry.get("area")
    return {"bbox": (x1, y1, x2, y2), "area": area if is_number(area) and area > 0 else (x2 - x1) * (y2 - y1)}


def read_oriented(entry: Entry, image: Entry, note: Note) -> Entry | None:
    """Fit the smallest rectangle around the `poly` (x1 y1 .. x4 y4) of an annotation, or around its `rbox`.

    The corners may go round either way. The rectangle is not clipped, and its area is the area of the object.
    """
    corners = corners_of(entry, note)
    if corners is None:
        return None
    if crosses_itself(corners):
        note("polygon crosses itself, corners put in order")
        middle = corners.mean(axis=0)
        corners = corners[np.argsort(np.arctan2(*(corners - middle).T[::-1]), kind="stable")]
    rbox = oriented.from_polygon(corners.ravel())
    if rbox[3] < SHORTEST:
        note(f"oriented box with a side of less than {SHORTEST:g} pixels, skipped")
        return None
    x1, y1, x2, y2 = bbox = tuple(oriented.enclose(rbox).tolist())
    if x2 <= 0 or y2 <= 0 or x1 >= image["width"] or y1 >= image["height"]:
        note("box outside the image, skipped")
        return None
    return {"bbox": bbox, "area": float(rbox[2] * rbox[3]), "rbox": rbox.tolist(), "poly": corners.ravel().tolist()}


def corners_of(entry: Entry, note: Note) -> np.ndarray | None:
    """Return the corners [4, 2] of an annotation's `poly`, else of its `rbox` (cx cy w h angle); None if bad."""
    if entry.get("poly") is not None or "rbox" not in entry:
        if not are_numbers(entry.get("poly"), 8):
            note("polygon is not eight finite numbers, skipped")
            return None
        return np.reshape(entry["poly"], (4, 2)).astype(float)
    if not are_numbers(entry["rbox"], 5):
        note("oriented box is not five finite numbers, skipped")
        return None
    if abs(entry["rbox"][4]) > oriented.TURN:
        note("oriented box whose angle is not in radians, skipped")
        return None
    return oriented.to_polygon(np.array(entry["rbox"], float)).reshape(4, 2)


def crosses_itself(corners: np.ndarray) -> bool:
    """Whether two opposite sides of a quadrilateral [4, 2] cross."""
    return any(cross(*np.roll(corners, -first, axis=0)) for first in (0, 1))


def cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> bool:
    """Whether the segments from `a` to `b` and from `c` to `d` cross: each separates the ends of the other."""
    return turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0


def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """Twice the signed area of a triangle."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def are_numbers(values: Any, count: int) -> bool:
    """Whether a JSON value is a list of so many finite numbers."""
    return isinstance(values, list) and len(values) == count and all(map(is_number, values))


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; NaN fails the comparison."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


BOXES: dict[str, Callable[[Entry, Entry, Note], Entry | None]] = {
    "horizontal": read_upright,
    "oriented": read_oriented,
}
