"""Annotations of a picture, and the part of them that is seen in a window of it, on the host.

By SODA-D's rules an upright box is clipped at the window's border, and one mostly cut off is ignored. By SODA-A's rules
an oriented box stays whole, and one mostly cut off is dropped.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cfinet_jax.input.windows import (
    boxes_in_window,
    fill,
    fill_polygons,
    share_in_window,
    training_windows,
    windows_with_objects,
)
from cfinet_jax.structures import CUT_OFF, WHOLE


class Objects(NamedTuple):
    """Annotations of a picture or of a window, in its pixels."""

    boxes: Float[np.ndarray, "n 4"]  # [n, 5] in an oriented data set
    labels: Int[np.ndarray, "n"]  # -1: a region in which every class is ignored
    ignore: Bool[np.ndarray, "n"]
    polygons: Float[np.ndarray, "n 4 2"] | None = None  # corners of oriented boxes, as annotated

    def only(self, which: Bool[np.ndarray, "n"]) -> "Objects":
        """Select entries by a mask."""
        polygons = None if self.polygons is None else self.polygons[which]
        return Objects(self.boxes[which], self.labels[which], self.ignore[which], polygons)


def nothing(boxes: str) -> Objects:
    """Return empty annotations of a data set with `boxes` "horizontal" or "oriented"."""
    none = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))
    if boxes == "horizontal":
        return none
    return none._replace(boxes=np.zeros((0, 5), np.float32), polygons=np.zeros((0, 4, 2), np.float32))


def objects_of(record: dict[str, Any]) -> Objects:
    """Return the annotations of a record as arrays, of the right shape also where there are none."""
    objects = record["objects"]
    upright = Objects(
        np.array(objects["bbox"], np.float32).reshape(-1, 4),
        np.array(objects["label"], np.int32),
        np.array(objects["ignore"], bool),
    )
    if "rbox" not in objects:
        return upright
    boxes, polygons = (np.array(objects[key], np.float32) for key in ("rbox", "poly"))
    return upright._replace(boxes=boxes.reshape(-1, 5), polygons=polygons.reshape(-1, 4, 2))


def without_regions(objects: Objects) -> Objects:
    """Drop regions in which every class is ignored."""
    return objects.only(objects.labels >= 0)


def training_origins(
    objects: Objects, size: tuple[int, int], window: tuple[int, int], overlap: tuple[int, int]
) -> Int[np.ndarray, "windows 2"]:
    """Return the origins of the windows to train on, by SODA-D's rules for upright and SODA-A's for oriented boxes."""
    of_a_class = objects.labels >= 0
    if objects.polygons is None:
        return training_windows(size, objects.boxes[of_a_class], objects.boxes[~of_a_class], window, overlap)
    return windows_with_objects(size, objects.polygons[of_a_class], window, overlap)


def objects_in_window(objects: Objects, origin: Int[np.ndarray, "2"], size: tuple[int, int]) -> Objects:
    """Return the annotations that are seen in a window, in its pixels.

    An upright box mostly cut off is ignored; an oriented one is dropped, unless it is ignored anyway.
    """
    if objects.polygons is None:
        boxes, share = boxes_in_window(objects.boxes, origin, size)
        ignore = objects.ignore | (share <= CUT_OFF)
        return Objects(boxes.astype(np.float32), objects.labels, ignore).only(share > 0)
    share, corner = share_in_window(objects.polygons, origin, size), origin[::-1].astype(np.float32)
    boxes = np.hstack([objects.boxes[:, :2] - corner, objects.boxes[:, 2:]])
    moved = objects._replace(boxes=boxes, polygons=objects.polygons - corner)
    return moved.only(np.where(objects.ignore, share > 0, share >= WHOLE))


def paint_regions(
    window: UInt8[np.ndarray, "height width 3"], objects: Objects, seen: Objects, origin: Int[np.ndarray, "2"]
) -> None:
    """Black out the regions in a window, but not its objects (nor oriented objects that were dropped from it)."""
    if objects.polygons is None:
        regions = seen.labels < 0
        fill(window, seen.boxes[regions], seen.boxes[~regions])
    else:
        regions, polygons = objects.labels < 0, objects.polygons - origin[::-1]
        fill_polygons(window, polygons[regions], polygons[~regions])


def sides(boxes: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Return width and height of boxes of either kind, [n, 4] or [n, 5]."""
    return boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]


def fill_a_pixel(boxes: np.ndarray) -> np.ndarray:
    """Tell which boxes of either kind are at least one pixel wide and high; the others are not trained on."""
    return np.all(sides(boxes) >= 1, axis=1)
