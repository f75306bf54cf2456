"""Compute the AP of resampled images, to see how much a score depends on the choice of pictures."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cfinet_jax.metrics.curves import RECALLS, annotations_of, classes, detections_of, fates_of, truth_of
from cfinet_jax.metrics.detection_matching import FREE, HIT
from cfinet_jax.metrics.protocols import Protocol
from cfinet_jax.metrics.results import Columns


class Ranked(NamedTuple):
    """Detections of a class that are right or wrong at one IoU in one range of sizes, best first."""

    images: Int[np.ndarray, "n"]
    hits: Int[np.ndarray, "hits"]  # places of the right ones


class Evidence(NamedTuple):
    """All that is needed to compute the AP of any choice of images; images are in the order of their ids."""

    boxes: Int[np.ndarray, "classes ranges images"]  # numbers of objects
    ranked: list[list[list[Ranked]]]  # by class, range and IoU


def gather(ground_truth: dict, detections: Columns, protocol: Protocol, ranges: tuple[str, ...]) -> Evidence:
    """Match detections once, in the given ranges of a protocol."""
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
    """Drop the detections that are neither right nor wrong."""
    counted = fates != FREE
    return Ranked(images[counted], np.flatnonzero(fates[counted] == HIT))


def average_precision(evidence: Evidence, times: Int[np.ndarray, "images"]) -> Float[np.ndarray, "ranges"]:
    """Compute AP if each image counts `times` times, averaged over IoU and classes; NaN where there is no object."""
    boxes = evidence.boxes @ times  # [classes, ranges]
    values = np.full(boxes.shape, np.nan)
    for k, size in zip(*np.nonzero(boxes), strict=True):
        of_iou = [precision(ranked, times, int(boxes[k, size])) for ranked in evidence.ranked[k][size]]
        values[k, size] = np.mean(of_iou)
    known = ~np.isnan(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def precision(ranked: Ranked, times: np.ndarray, boxes: int) -> float:
    """Return the mean of the best precision at each of `RECALLS` or beyond."""
    weights = times[ranked.images]
    counted, right = np.cumsum(weights)[ranked.hits], np.cumsum(weights[ranked.hits])
    best = np.maximum.accumulate((right / np.maximum(counted, 1))[::-1])[::-1]
    return float(np.append(best, 0.0)[np.searchsorted(right / boxes, RECALLS)].mean())
