"""AP of resampled images: how much of a score is the choice of pictures."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cfinet_jax.metrics.curves import RECALLS, annotations_of, classes, detections_of, fates_of, truth_of
from cfinet_jax.metrics.detection_matching import FREE, HIT
from cfinet_jax.metrics.protocols import Protocol
from cfinet_jax.metrics.results import Columns


class Ranked(NamedTuple):
    """The detections of a class that are right or wrong at one IoU in one range of sizes, best first."""

    images: Int[np.ndarray, "n"]
    hits: Int[np.ndarray, "hits"]  # which of them are right


class Evidence(NamedTuple):
    """What the AP of every choice of images follows from, image by image by rising id."""

    boxes: Int[np.ndarray, "classes ranges images"]  # to be found
    ranked: list[list[list[Ranked]]]  # by class, range and IoU


def gather(ground_truth: dict, detections: Columns, protocol: Protocol, ranges: tuple[str, ...]) -> Evidence:
    """That of detections, in the given ranges of a protocol."""
    found, annotations = detections_of(ground_truth, detections, protocol), annotations_of(ground_truth, protocol)
    places = [list(protocol.ranges).index(name) for name in ranges]
    limit = protocol.limits.index(protocol.precision_limit)
    boxes, ranked = [], []
    for k in range(len(classes(ground_truth))):
        truth = truth_of(annotations, k, protocol)
        owners = [truth.images[~truth.ignored[:, place]] for place in places]
        boxes.append([np.bincount(of_range, minlength=len(ground_truth["images"])) for of_range in owners])
        images, fates, orders = fates_of(found, k, truth, protocol)
        order = orders[limit]
        ranked.append([[rank(images[order], of_iou[place, order]) for of_iou in fates] for place in places])
    return Evidence(np.array(boxes), ranked)


def rank(images: np.ndarray, fates: np.ndarray) -> Ranked:
    """Without those that are neither right nor wrong."""
    counted = fates != FREE
    return Ranked(images[counted], np.flatnonzero(fates[counted] == HIT))


def average_precision(evidence: Evidence, times: Int[np.ndarray, "images"]) -> Float[np.ndarray, "ranges"]:
    """AP where every image counts so many times, a mean over IoU and classes; NaN where there is no box to find."""
    boxes = evidence.boxes @ times  # [classes, ranges]
    values = np.full(boxes.shape, np.nan)
    for k, size in zip(*np.nonzero(boxes), strict=True):
        of_iou = [precision(ranked, times, int(boxes[k, size])) for ranked in evidence.ranked[k][size]]
        values[k, size] = np.mean(of_iou)
    known = ~np.isnan(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def precision(ranked: Ranked, times: np.ndarray, boxes: int) -> float:
    """Mean of the best precision at each of `RECALLS` or beyond."""
    weights = times[ranked.images]
    counted, right = np.cumsum(weights)[ranked.hits], np.cumsum(weights[ranked.hits])
    best = np.maximum.accumulate((right / np.maximum(counted, 1))[::-1])[::-1]
    return float(np.append(best, 0.0)[np.searchsorted(right / boxes, RECALLS)].mean())
