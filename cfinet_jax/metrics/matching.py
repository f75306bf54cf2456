"""Which detections of one class are hits: COCO's greedy rule, for every image, IoU and range of sizes at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

MISS, HIT, FREE = 0, 1, 2  # fates of a detection; a free one is neither right nor wrong
BLOCK = 1 << 20  # pairs of a detection and a box that are compared at a time


class Truth(NamedTuple):
    """Boxes x y w h of one class, image by image; what is not to be found in a range of sizes is ignored there."""

    images: Int[np.ndarray, "m"]  # ascending
    boxes: Float[np.ndarray, "m 4"]
    ignored: Bool[np.ndarray, "m ranges"]
    absorbs: Bool[np.ndarray, "m ranges"]  # any number of detections, by the share of them that lies inside


def match(
    images: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n 4"],
    truth: Truth,
    overlaps: tuple[float, ...],
    unmatched: Int[np.ndarray, "ranges n"],
) -> UInt8[np.ndarray, "overlaps ranges n"]:
    """The fates of detections that come image by image, the best of an image first.

    A detection takes the free box of highest IoU, of equal ones the last, and an ignored box only where no other is
    in reach; where none is, its fate is `unmatched`. All images match their first detection at once, then all their
    second, and so on.
    """
    found, of_truth, iou, inside = pairs(images, boxes, truth, min(overlaps))
    wanted, absorbs = ~truth.ignored[of_truth], truth.absorbs[of_truth]
    reach = np.where(absorbs, inside[:, None], iou[:, None])
    thresholds = np.minimum(overlaps, 1 - 1e-10)[:, None]  # as COCO has it, should one be 1
    fates = np.repeat(unmatched[None].astype(np.uint8), len(overlaps), axis=0)
    taken = np.zeros((len(truth.images), *fates.shape[:2]), bool)
    for turn in _turns(images, found, np.where(absorbs.all(1), inside, iou)):
        free = ~taken[of_truth[turn]] | absorbs[turn, None]
        order = np.arange(1, len(turn) + 1)[:, None, None]
        preference = np.where(free & (reach[turn, None] >= thresholds), order + len(turn) * wanted[turn, None], 0)
        first = np.flatnonzero(np.diff(found[turn], prepend=-1))  # pair of each detection
        best = np.maximum.reduceat(preference, first)
        which, overlap, size = np.nonzero(best)
        best = best[which, overlap, size]
        fates[overlap, size, found[turn[first[which]]]] = np.where(best > len(turn), HIT, FREE)
        taken[of_truth[turn[(best - 1) % len(turn)]], overlap, size] = True
    return fates


def pairs(images: np.ndarray, boxes: np.ndarray, truth: Truth, least: float) -> tuple[np.ndarray, ...]:
    """Detection, box, IoU and share of the detection inside, of all pairs in reach of each other."""
    start = np.searchsorted(truth.images, images)
    count = np.searchsorted(truth.images, images, "right") - start
    absorbs = np.any(truth.absorbs, axis=1)
    blocks = []
    for block in np.split(np.arange(len(images)), np.flatnonzero(np.diff(np.cumsum(count) // BLOCK)) + 1):
        found = np.repeat(block, count[block])
        of_truth = np.repeat((start + count)[block] - np.cumsum(count[block]), count[block]) + np.arange(len(found))
        a, b = boxes[found], truth.boxes[of_truth]
        sides = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
        meet = np.flatnonzero(np.all(sides > 0, axis=1))
        shared, area, other = (size[meet, 0] * size[meet, 1] for size in (sides, a[:, 2:], b[:, 2:]))
        iou, inside = shared / (area + other - shared), shared / area
        near = np.where(absorbs[of_truth[meet]], inside, iou) >= least
        blocks.append((found[meet[near]], of_truth[meet[near]], iou[near], inside[near]))
    return tuple(map(np.concatenate, zip(*blocks, strict=True)))


def _turns(images: np.ndarray, found: np.ndarray, overlap: np.ndarray) -> list[np.ndarray]:
    """The pairs of every image's first detection that has any, of every second, ...; each by rising overlap."""
    detections, which = np.unique(found, return_inverse=True)
    owners = images[detections]
    turn = (np.arange(len(owners)) - np.searchsorted(owners, owners))[which]
    order = np.lexsort((overlap, found, turn))  # equal ones stay in the order of the ground truth
    return np.split(order, np.flatnonzero(np.diff(turn[order])) + 1) if len(order) else []
