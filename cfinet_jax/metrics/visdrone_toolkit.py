"""Compute precision and recall as VisDrone2018-DET-toolkit does, which differs from COCO (docs/fidelity.md)."""

import numpy as np
from jaxtyping import Bool, Float

from cfinet_jax.metrics.curves import (
    RECALLS,
    annotations_of,
    best_precision,
    classes,
    detections_of,
    fates_of,
    truth_of,
)
from cfinet_jax.metrics.protocols import Protocol
from cfinet_jax.metrics.results import Columns


def curves(ground_truth: dict, detections: list[dict] | Columns, protocol: Protocol) -> tuple[np.ndarray, ...]:
    """Return what COCO's `curves` returns, and the number of pictures with each class.

    The numbers of boxes include ignored ones. Every precision is an average over a part of the recall, so that the mean
    of all is the area under the curve.
    """
    found, annotations = detections_of(ground_truth, detections, protocol), annotations_of(ground_truth, protocol)
    regions = annotations.classes < 0
    dropped, dropped_boxes = np.zeros(len(found.images), bool), regions.copy()
    for image in np.unique(annotations.images[regions]):
        of_image = annotations.boxes[regions & (annotations.images == image)]
        for each, some in ((found, dropped), (annotations, dropped_boxes)):
            own = np.flatnonzero(each.images == image)
            some[own] |= mostly_inside(each.boxes[own], of_image)
    found = found._make(column[~dropped] for column in found)
    annotations = annotations._make(column[~dropped_boxes] for column in annotations)
    order = np.argsort(found.images, kind="stable")
    row = np.empty(len(order), int)  # in the picture's file, which holds all classes
    row[order] = np.arange(len(order)) - np.searchsorted(found.images[order], found.images[order])

    shape = len(classes(ground_truth)), 1, len(protocol.limits)
    precision = np.full((len(protocol.overlaps), len(RECALLS), *shape), -1.0)
    recall = np.full((len(protocol.overlaps), *shape), -1.0)
    boxes, pictures = np.zeros(shape[:2], int), np.zeros(shape[0], int)
    for k in np.unique(annotations.classes):
        truth = truth_of(annotations, k, protocol)
        boxes[k], pictures[k] = len(truth.images), len(np.unique(truth.images))
        for place, limit in enumerate(protocol.limits):
            first = found._make(column[row < limit] for column in found)
            _, fates, orders = fates_of(first, k, truth, protocol)
            for overlap, of_overlap in enumerate(fates[:, 0, orders[-1]]):
                best = np.append(0.0, best_precision(of_overlap)) / boxes[k]
                ends = np.linspace(0, 1, len(RECALLS) + 1) * boxes[k]
                areas = np.interp(ends, np.arange(len(best)), np.cumsum(best))
                precision[overlap, :, k, 0, place] = np.diff(areas) * len(RECALLS)
                recall[overlap, k, 0, place] = (len(best) - 1) / boxes[k, 0]
    return precision, recall, boxes, pictures


def mostly_inside(boxes: Float[np.ndarray, "n 4"], regions: Float[np.ndarray, "m 4"]) -> Bool[np.ndarray, "n"]:
    """Return which boxes have half of their area in regions, in whole pixels that count from 1, as the toolkit does."""
    boxes, regions = (np.maximum(np.floor(each + 0.5), 1).astype(int) for each in (boxes, regions))
    # Cells between the edges of regions are painted, not pixels, so that boxes of any size take the same memory.
    firsts, ends = regions[:, :2], regions[:, :2] + regions[:, 2:] + 1
    xs, ys = (np.unique([firsts[:, axis], ends[:, axis]]) for axis in (0, 1))
    painted = np.zeros((len(xs) - 1, len(ys) - 1), int)
    for (left, top), (right, bottom) in zip(firsts, ends, strict=True):
        painted |= np.outer((left <= xs[:-1]) & (xs[:-1] < right), (top <= ys[:-1]) & (ys[:-1] < bottom))
    low, high = boxes[:, :2, None] + 1, boxes[:, :2, None] + boxes[:, 2:, None] + 1
    across, down = (
        (np.minimum(high[:, axis], edges[1:]) - np.maximum(low[:, axis], edges[:-1])).clip(0)
        for axis, edges in enumerate((xs, ys))
    )
    return (across @ painted * down).sum(1) / boxes[:, 2:].prod(1) >= 0.5
