"""Intersections of boxes on the host, in float64: upright boxes x y width height, oriented boxes cx cy w h angle.

The number of columns tells the two kinds apart.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from cfinet_jax.boxes import oriented

BLOCK = 1 << 20  # pairs of boxes compared at a time
EXACT = 1 << 15  # pairs of oriented boxes intersected at a time: few enough to stay in the cache


def enclosing(boxes: Float[np.ndarray, "n numbers"]) -> Float[np.ndarray, "n 4"]:
    """Return upright boxes x y width height around boxes of either kind."""
    if boxes.shape[1] == 4:
        return boxes
    x1, y1, x2, y2 = oriented.enclose(boxes).T
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)


def as_oriented(boxes: Float[np.ndarray, "n numbers"]) -> Float[np.ndarray, "n 5"]:
    """Convert boxes of either kind to oriented boxes."""
    if boxes.shape[1] == 5:
        return boxes
    return oriented.from_horizontal(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))


def common_sides(a: Float[np.ndarray, "*#n 4"], b: Float[np.ndarray, "*#n 4"]) -> Float[np.ndarray, "*#n 2"]:
    """Return width and height of the intersection of upright boxes; not positive if they do not intersect."""
    ends = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    return ends - np.maximum(a[..., :2], b[..., :2])


def intersection(a: Float[np.ndarray, "n 5"], b: Float[np.ndarray, "n 5"]) -> Float[np.ndarray, "n"]:
    """Return the area shared by oriented boxes, pair by pair."""
    parts = range(0, max(len(a), 1), EXACT)
    return np.concatenate([oriented.intersection(a[k : k + EXACT], b[k : k + EXACT]) for k in parts])


def shared_areas(a: Float[np.ndarray, "n numbers"], b: Float[np.ndarray, "m numbers"]) -> Float[np.ndarray, "n m"]:
    """Return the area that every box of `a` shares with every box of `b`; both are of the same kind."""
    shared = np.maximum(common_sides(enclosing(a)[:, None], enclosing(b)[None]), 0.0).prod(axis=-1)
    if a.shape[1] == 5:
        rows, columns = np.nonzero(shared)
        shared[rows, columns] = intersection(a[rows], b[columns])
    return shared


def meeting_pairs(
    groups: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n numbers"],
    other_groups: Int[np.ndarray, "m"],
    other_boxes: Float[np.ndarray, "m numbers"],
    most: int = BLOCK,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the places of intersecting boxes and other boxes of the same group, and the area that they share.

    Pairs come in the order of the boxes, in blocks of about `most`, so that memory does not grow with their number. The
    groups of the other boxes must be ascending.
    """
    start = np.searchsorted(other_groups, groups)
    count = np.searchsorted(other_groups, groups, "right") - start
    hulls, other_hulls = enclosing(boxes), enclosing(other_boxes)
    for first, second in _ranges(start, count, most):
        sides = common_sides(hulls[first], other_hulls[second])
        meet = np.flatnonzero(np.all(sides > 0, axis=1))
        first, second = first[meet], second[meet]
        if boxes.shape[1] == 4:
            yield first, second, sides[meet, 0] * sides[meet, 1]
        else:
            shared = intersection(boxes[first], other_boxes[second])
            yield first[shared > 0], second[shared > 0], shared[shared > 0]


def pairs_among(boxes: Float[np.ndarray, "n 5"]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the places of every two intersecting oriented boxes of a set, each pair once, and the area they share.

    A sweep from left to right: a box is compared only with boxes that begin before it ends.
    """
    hulls = enclosing(boxes)
    order = np.argsort(hulls[:, 0])
    hulls = hulls[order]
    start = np.arange(len(order)) + 1
    count = np.maximum(np.searchsorted(hulls[:, 0], hulls[:, 0] + hulls[:, 2]) - start, 0)
    for first, second in _ranges(start, count, BLOCK):
        meet = np.all(common_sides(hulls[first], hulls[second]) > 0, axis=1)
        first, second = order[first[meet]], order[second[meet]]
        shared = intersection(boxes[first], boxes[second])
        yield first[shared > 0], second[shared > 0], shared[shared > 0]


def _ranges(start: np.ndarray, count: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of each place k with the `count[k]` others from `start[k]` on, about `most` pairs at a time."""
    for block in np.split(np.arange(len(start)), np.flatnonzero(np.diff(np.cumsum(count) // most)) + 1):
        first = np.repeat(block, count[block])
        yield first, np.repeat((start + count)[block] - np.cumsum(count[block]), count[block]) + np.arange(len(first))
