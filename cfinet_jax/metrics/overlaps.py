"""What boxes share, on the host in float64: upright ones as x y width height, oriented ones as cx cy w h angle.

The number of their columns says which they are.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from cfinet_jax.boxes import oriented

BLOCK = 1 << 20  # pairs of boxes that are compared at a time
EXACT = 1 << 15  # and pairs of oriented ones whose intersection is computed at a time: they stay in the cache


def enclosing(boxes: Float[np.ndarray, "n numbers"]) -> Float[np.ndarray, "n 4"]:
    """Upright boxes x y width height around boxes of either kind."""
    if boxes.shape[1] == 4:
        return boxes
    x1, y1, x2, y2 = oriented.enclose(boxes).T
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)


def as_oriented(boxes: Float[np.ndarray, "n numbers"]) -> Float[np.ndarray, "n 5"]:
    """Boxes of either kind as oriented ones."""
    if boxes.shape[1] == 5:
        return boxes
    return oriented.from_horizontal(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))


def common_sides(a: Float[np.ndarray, "*#n 4"], b: Float[np.ndarray, "*#n 4"]) -> Float[np.ndarray, "*#n 2"]:
    """Width and height of what upright boxes share; not positive where they share nothing."""
    ends = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    return ends - np.maximum(a[..., :2], b[..., :2])


def intersection(a: Float[np.ndarray, "n 5"], b: Float[np.ndarray, "n 5"]) -> Float[np.ndarray, "n"]:
    """Area shared by oriented boxes of equal position."""
    parts = range(0, max(len(a), 1), EXACT)
    return np.concatenate([oriented.intersection(a[k : k + EXACT], b[k : k + EXACT]) for k in parts])


def shared_areas(a: Float[np.ndarray, "n numbers"], b: Float[np.ndarray, "m numbers"]) -> Float[np.ndarray, "n m"]:
    """Area that every box of `a` shares with every one of `b`, both of one kind."""
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
    """The places of boxes and of other boxes of the same group that share some area, and how much it is.

    In blocks of about `most` pairs, so that memory does not grow with their number; in the order of the boxes. The
    groups of the others are ascending.
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
    """The places of two oriented boxes of a set that share some area, every pair once, and how much it is.

    From left to right, so that a box is compared only with those that begin before it ends.
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
    """Every place k with `count[k]` others from `start[k]` on, about `most` pairs at a time."""
    for block in np.split(np.arange(len(start)), np.flatnonzero(np.diff(np.cumsum(count) // most)) + 1):
        first = np.repeat(block, count[block])
        yield first, np.repeat((start + count)[block] - np.cumsum(count[block]), count[block]) + np.arange(len(first))
