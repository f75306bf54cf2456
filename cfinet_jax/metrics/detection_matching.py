"""Which detections of one class are hits: COCO's greedy rule, for every image, IoU and range of sizes at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cfinet_jax.metrics.overlaps import BLOCK, meeting_pairs

MISS, HIT, FREE = 0, 1, 2  # fates of a detection; a free one is neither right nor wrong


class Truth(NamedTuple):
    """Boxes of one class, image by image; what is not to be found in a range of sizes is ignored there."""

    images: Int[np.ndarray, "m"]  # ascending
    boxes: Float[np.ndarray, "m numbers"]  # x y w h, or cx cy w h angle
    ignored: Bool[np.ndarray, "m ranges"]
    absorbs: Bool[np.ndarray, "m ranges"]  # any number of detections, by the share of them that lies inside


def match(
    images: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n numbers"],
    truth: Truth,
    overlaps: tuple[float, ...],
    unmatched: Int[np.ndarray, "ranges n"],
    best_only: bool,
) -> UInt8[np.ndarray, "overlaps ranges n"]:
    """The fates of detections that come image by image, the best of an image first.

    A detection takes the free box of highest IoU, of equal ones the last, and an ignored box only where no other is
    in reach; where none is, its fate is `unmatched`. With `best_only` the box of highest IoU is the only one that it
    may take, of equal ones the first that is not ignored. All images match their first detection at once, then all
    their second, and so on.
    """
    found, of_truth, iou, inside = pairs(images, boxes, truth, min(overlaps))
    wanted, absorbs = ~truth.ignored[of_truth], truth.absorbs[of_truth]
    allowed = best_pairs(found, iou, wanted) if best_only else np.ones_like(wanted)
    reach = np.where(absorbs, inside[:, None], iou[:, None])
    thresholds = np.minimum(overlaps, 1 - 1e-10)[:, None]  # as COCO has it, should one be 1
    fates = np.repeat(unmatched[None].astype(np.uint8), len(overlaps), axis=0)
    taken = np.zeros((len(truth.images), *fates.shape[:2]), bool)
    for turn in _turns(images, found, np.where(absorbs.all(1), inside, iou)):
        free = (~taken[of_truth[turn]] | absorbs[turn, None]) & allowed[turn, None]
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
    absorbs = np.any(truth.absorbs, axis=1)
    blocks = []
    for found, of_truth, shared in meeting_pairs(images, boxes, truth.images, truth.boxes, BLOCK):
        area, other = (size[:, 2] * size[:, 3] for size in (boxes[found], truth.boxes[of_truth]))
        iou, inside = shared / (area + other - shared), shared / area
        near = np.where(absorbs[of_truth], inside, iou) >= least
        blocks.append((found[near], of_truth[near], iou[near], inside[near]))
    return tuple(map(np.concatenate, zip(*blocks, strict=True)))


def best_pairs(
    found: Int[np.ndarray, "pairs"], iou: Float[np.ndarray, "pairs"], wanted: Bool[np.ndarray, "pairs ranges"]
) -> Bool[np.ndarray, "pairs ranges"]:
    """Which pair of each detection has its highest IoU; of equal ones the first with a wanted box, in each range."""
    best = np.zeros_like(wanted)
    for size, of_range in enumerate(wanted.T):
        order = np.lexsort((~of_range, -iou, found))  # equal ones stay in the order of the ground truth
        best[order[np.flatnonzero(np.diff(found[order], prepend=-1))], size] = True
    return best


def _turns(images: np.ndarray, found: np.ndarray, overlap: np.ndarray) -> list[np.ndarray]:
    """The pairs of every image's first detection that has any, of every second, ...; each by rising overlap."""
    detections, which = np.unique(found, return_inverse=True)
    owners = images[detections]
    turn = (np.arange(len(owners)) - np.searchsorted(owners, owners))[which]
    order = np.lexsort((overlap, found, turn))  # equal ones stay in the order of the ground truth
    return np.split(order, np.flatnonzero(np.diff(turn[order])) + 1) if len(order) else []
