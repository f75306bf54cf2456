"""Match the detections of one class by COCO's greedy rule, for all images, IoUs and ranges of sizes at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cfinet_jax.metrics.overlaps import BLOCK, meeting_pairs

MISS, HIT, FREE = 0, 1, 2  # fates of a detection; FREE is neither right nor wrong


class Truth(NamedTuple):
    """Ground truth of one class, image by image; a box outside a range of sizes is ignored in that range."""

    images: Int[np.ndarray, "m"]  # ascending
    boxes: Float[np.ndarray, "m numbers"]  # x y w h, or cx cy w h angle
    ignored: Bool[np.ndarray, "m ranges"]
    absorbs: Bool[np.ndarray, "m ranges"]  # takes any number of detections, by their share inside it


def match(
    images: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n numbers"],
    truth: Truth,
    overlaps: tuple[float, ...],
    unmatched: Int[np.ndarray, "ranges n"],
    best_only: bool,
) -> UInt8[np.ndarray, "overlaps ranges n"]:
    """Return the fates of detections, which come image by image, best first within an image.

    A detection takes the free box of highest IoU (the last on ties), and an ignored one only if no other is in reach.
    If none is in reach, its fate is `unmatched`. With `best_only` it may only take the box of its highest IoU, the
    first of equals that is not ignored.
    """
    found, of_truth, iou, inside = pairs(images, boxes, truth, min(overlaps))
    wanted, absorbs = ~truth.ignored[of_truth], truth.absorbs[of_truth]
    allowed = best_pairs(found, iou, wanted) if best_only else np.ones_like(wanted)
    reach = np.where(absorbs, inside[:, None], iou[:, None])
    thresholds = np.minimum(overlaps, 1 - 1e-10)[:, None]  # as COCO has it, should one be 1
    fates = np.repeat(unmatched[None].astype(np.uint8), len(overlaps), axis=0)
    taken = np.zeros((len(truth.images), *fates.shape[:2]), bool)
    # Images are independent: each turn matches the next detection of every image. Its pairs are sorted by detection and
    # rising overlap, so that a pair's place in the turn ranks the boxes of its detection.
    for turn in _turns(images, found, np.where(absorbs.all(1), inside, iou)):
        free = (~taken[of_truth[turn]] | absorbs[turn, None]) & allowed[turn, None]
        order = np.arange(1, len(turn) + 1)[:, None, None]
        # One number to maximise per detection, IoU and range: 0 for a pair out of reach, the place for an ignored box,
        # and the place plus the number of pairs for a wanted box, which so beats every ignored one. `best - 1` modulo
        # the number of pairs gives the pair back.
        preference = np.where(free & (reach[turn, None] >= thresholds), order + len(turn) * wanted[turn, None], 0)
        first = np.flatnonzero(np.diff(found[turn], prepend=-1))  # pair of every detection
        best = np.maximum.reduceat(preference, first)
        which, overlap, size = np.nonzero(best)
        best = best[which, overlap, size]
        fates[overlap, size, found[turn[first[which]]]] = np.where(best > len(turn), HIT, FREE)
        taken[of_truth[turn[(best - 1) % len(turn)]], overlap, size] = True
    return fates


def pairs(images: np.ndarray, boxes: np.ndarray, truth: Truth, least: float) -> tuple[np.ndarray, ...]:
    """Return detection, box, IoU and share of the detection inside the box, of all pairs that reach `least`."""
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
    """Return which pair of each detection has its highest IoU; of equals the first with a wanted box of the range."""
    best = np.zeros_like(wanted)
    for size, of_range in enumerate(wanted.T):
        order = np.lexsort((~of_range, -iou, found))  # equals keep the order of the ground truth
        best[order[np.flatnonzero(np.diff(found[order], prepend=-1))], size] = True
    return best


def _turns(images: np.ndarray, found: np.ndarray, overlap: np.ndarray) -> list[np.ndarray]:
    """Split the pairs into those of every image's first detection that has any, of every second, and so on.

    Within a turn they are sorted by detection and rising overlap.
    """
    detections, which = np.unique(found, return_inverse=True)
    owners = images[detections]
    turn = (np.arange(len(owners)) - np.searchsorted(owners, owners))[which]
    order = np.lexsort((overlap, found, turn))  # equals keep the order of the ground truth
    return np.split(order, np.flatnonzero(np.diff(turn[order])) + 1) if len(order) else []
