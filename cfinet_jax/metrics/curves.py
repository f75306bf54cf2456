"""Compute precision over recall for every IoU, class, range of sizes and limit of a protocol (COCO's procedure)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.detection_matching import FREE, HIT, MISS, Truth, match
from cfinet_jax.metrics.overlaps import as_oriented
from cfinet_jax.metrics.protocols import Protocol, is_regions
from cfinet_jax.metrics.results import Columns, box_of, columns

RECALLS = np.linspace(0, 1, 101)


def classes(ground_truth: dict) -> list[dict]:
    """Return the categories to detect, by id; categories that stand for ignore regions are left out."""
    categories = (category for category in ground_truth["categories"] if not is_regions(category["name"]))
    return sorted(categories, key=lambda category: category["id"])


def curves(ground_truth: dict, detections: list[dict] | Columns, protocol: Protocol) -> tuple[np.ndarray, ...]:
    """Compute the arrays that COCO's metrics are means of.

    Args:
      ground_truth: COCO's dict, oriented boxes as `rbox`.
      detections: COCO results, a list or its columns.
      protocol: the rules.

    Returns:
      precision [overlap, recall 0:.01:1, class, range, limit], recall [overlap, class, range, limit], and the number of
      objects [class, range], classes in the order of their ids. The first two are -1 where there is no object.

    Raises:
      UserError: a box or score is not finite, or an id is not in the ground truth.
    """
    found = detections_of(ground_truth, detections, protocol)
    annotations = annotations_of(ground_truth, protocol)
    shape = len(classes(ground_truth)), len(protocol.ranges), len(protocol.limits)
    precision = np.full((len(protocol.overlaps), len(RECALLS), *shape), -1.0)
    recall = np.full((len(protocol.overlaps), *shape), -1.0)
    boxes = np.zeros(shape[:2], int)
    for k in range(len(boxes)):
        truth = truth_of(annotations, k, protocol)
        boxes[k] = np.sum(~truth.ignored, 0)
        _, fates, orders = fates_of(found, k, truth, protocol)
        for size in np.flatnonzero(boxes[k]):
            for overlap, of_overlap in enumerate(fates[:, size]):
                for limit, order in enumerate(orders):
                    values = precision_recall(of_overlap[order], boxes[k, size])
                    precision[overlap, :, k, size, limit], recall[overlap, k, size, limit] = values
    return precision, recall, boxes


def precision_recall(fates: UInt8[np.ndarray, "n"], boxes: int) -> tuple[Float[np.ndarray, "recalls"], float]:
    """Return the best precision at each of `RECALLS` or beyond, and the final recall. Detections are best first."""
    best = best_precision(fates)
    recall = np.arange(1, len(best) + 1) / boxes
    return np.append(best, 0.0)[np.searchsorted(recall, RECALLS)], len(best) / boxes


def best_precision(fates: UInt8[np.ndarray, "n"]) -> Float[np.ndarray, "hits"]:
    """Return the best precision at the recall of every hit or beyond. Detections are best first."""
    hits = np.flatnonzero(fates == HIT)  # recall and precision rise only there
    counted = np.cumsum(fates != FREE)[hits]
    precision = np.arange(1, len(hits) + 1) / (counted + np.spacing(1))  # as COCO computes it, to the last digit
    return np.maximum.accumulate(precision[::-1])[::-1]


class _Annotations(NamedTuple):
    """Ground truth, image by image, with indices instead of ids."""

    images: Int[np.ndarray, "m"]
    classes: Int[np.ndarray, "m"]  # -1: a region of every class
    boxes: Float[np.ndarray, "m numbers"]  # x y w h or cx cy w h angle, as the protocol scores
    areas: Float[np.ndarray, "m"]
    regions: Bool[np.ndarray, "m"]  # to be ignored


class _Detections(NamedTuple):
    """Detections in the given order, with indices instead of ids."""

    images: Int[np.ndarray, "n"]
    classes: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n numbers"]  # x y w h or cx cy w h angle, as the protocol scores
    scores: Float[np.ndarray, "n"]


def detections_of(ground_truth: dict, detections: list[dict] | Columns, protocol: Protocol) -> _Detections:
    """Check detections and replace ids by indices; an oriented protocol turns upright boxes into oriented ones."""
    found = detections if isinstance(detections, Columns) else columns(detections)
    boxes, scores = (np.asarray(values, np.float64) for values in (found.boxes, found.scores))
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):  # comparisons with NaN would count it as a hit
        raise UserError(
            "a detection has a box or score that is not finite: correct it (if the detector was trained here, the "
            "training diverged: lower the learning rate)"
        )
    if protocol.boxes == "oriented":
        boxes = _oriented(boxes, "detections")
    elif boxes.shape[1] != 4:
        raise UserError(
            f"the detections are oriented, but {protocol.name} scores upright boxes: choose oriented or soda_a"
        )
    images, owners = _indices(ground_truth, found.image_ids, found.category_ids, "detections")
    return _Detections(images, owners, boxes, scores)


def annotations_of(ground_truth: dict, protocol: Protocol) -> _Annotations:
    """Check the annotations that a protocol uses, and replace ids by indices."""
    entries = ground_truth["annotations"]
    image_ids, category_ids = (np.array([entry[key] for entry in entries], int) for key in ("image_id", "category_id"))
    images, owners = _indices(ground_truth, image_ids, category_ids, "annotations")
    if protocol.boxes == "oriented":
        boxes = np.array([box_of(entry) for entry in entries], float)
        boxes = _oriented(boxes.reshape(len(entries), -1), "annotations") if entries else np.zeros((0, 5))
        areas = boxes[:, 2] * boxes[:, 3]
    else:
        boxes = np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4)
        areas = np.array([entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in entries], float)
    flags = [[entry.get(flag) for flag in protocol.region_flags] for entry in entries]
    if any(isinstance(flag, str) for of_entry in flags for flag in of_entry):  # "0" would be true
        raise UserError(f"{' or '.join(protocol.region_flags)} of an annotation is a text: write 0 or 1")
    flagged = np.array([any(of_entry) for of_entry in flags], bool)
    kept = np.argsort(images, kind="stable")
    if not protocol.regions_are_crowds:
        kept = kept[owners[kept] >= 0]
    return _Annotations(*(column[kept] for column in (images, owners, boxes, areas, flagged | (owners < 0))))


def _oriented(boxes: np.ndarray, what: str) -> np.ndarray:
    """Convert boxes of either kind to oriented ones and check their sides."""
    boxes = as_oriented(boxes)
    if (boxes[:, 2:4] < 0).any():
        raise UserError(
            f"some {what} have a negative side: give oriented boxes as cx cy w h angle with positive w and h"
        )
    return boxes


def _indices(
    ground_truth: dict, image_ids: np.ndarray, category_ids: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of images and classes in the order of their ids, -1 for a category of ignore regions."""
    images = np.unique(np.array([image["id"] for image in ground_truth["images"]], int))
    categories = np.array([category["id"] for category in ground_truth["categories"]], int)
    for key, ids, listed in (("image_id", image_ids, images), ("category_id", category_ids, categories)):
        unknown = ids[~np.isin(ids, listed)]
        if unknown.size:
            none_fits = key == "image_id" and unknown.size == ids.size
            raise UserError(
                f"{unknown.size} of {ids.size} {what} have an id that is not in the ground truth, such as {key} "
                f"{unknown[0]}: {'they are probably of another split' if none_fits else 'correct the ids'}"
            )
    class_ids = np.array([category["id"] for category in classes(ground_truth)], int)
    wanted = np.isin(category_ids, class_ids)
    return np.searchsorted(images, image_ids), np.where(wanted, np.searchsorted(class_ids, category_ids), -1)


def truth_of(annotations: _Annotations, k: int, protocol: Protocol) -> Truth:
    """Return the boxes that detections of class `k` are matched with: its objects and the regions."""
    own = (annotations.classes == k) | (annotations.classes < 0)
    regions = annotations.regions[own, None]
    ignored = regions | _outside(annotations.areas[own], protocol).T
    absorbs = ignored & protocol.regions_are_crowds & (regions | protocol.sizes_are_crowds)
    return Truth(annotations.images[own], annotations.boxes[own], ignored, absorbs)


def fates_of(
    found: _Detections, k: int, truth: Truth, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Match the detections of class `k`.

    Returns:
      their images, their fates [overlap, range, detection], and for every limit their order, best first.
    """
    own = np.flatnonzero(found.classes == k)
    own = own[np.lexsort((-found.scores[own], found.images[own]))]
    place = np.arange(len(own)) - np.searchsorted(found.images[own], found.images[own])  # rank in the image
    own, place = own[place < protocol.limits[-1]], place[place < protocol.limits[-1]]
    boxes = found.boxes[own]
    unmatched = np.where(_outside(boxes[:, 2] * boxes[:, 3], protocol), FREE, MISS)
    fates = match(found.images[own], boxes, truth, protocol.overlaps, unmatched, protocol.best_only)
    order = np.argsort(-found.scores[own], kind="stable")
    return found.images[own], fates, [order[place[order] < limit] for limit in protocol.limits]


def _outside(areas: Float[np.ndarray, "n"], protocol: Protocol) -> Bool[np.ndarray, "ranges n"]:
    """Return which areas lie outside each range of sizes."""
    return np.array([(areas < low) | (areas > high) for low, high in protocol.ranges.values()])
