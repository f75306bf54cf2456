"""Precision over recall, for every IoU, class, range of sizes and limit of a protocol."""

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
    """The categories to be found, by id."""
    categories = (category for category in ground_truth["categories"] if not is_regions(category["name"]))
    return sorted(categories, key=lambda category: category["id"])


def curves(ground_truth: dict, detections: list[dict] | Columns, protocol: Protocol) -> tuple[np.ndarray, ...]:
    """What the numbers of COCO's procedure are means of: precision, recall and the number of boxes to find.

    Precision is [overlap, recall 0:.01:1, class, range, limit], recall [overlap, class, range, limit], the number
    [class, range]; classes in the order of their ids. The first two are -1 where there is no box to find.
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
    """Best precision at every one of `RECALLS` or beyond, and the final recall; detections best first."""
    best = best_precision(fates)
    recall = np.arange(1, len(best) + 1) / boxes
    return np.append(best, 0.0)[np.searchsorted(recall, RECALLS)], len(best) / boxes


def best_precision(fates: UInt8[np.ndarray, "n"]) -> Float[np.ndarray, "hits"]:
    """Best precision at the recall of every hit or beyond; detections best first."""
    hits = np.flatnonzero(fates == HIT)  # nowhere else does either of them rise
    counted = np.cumsum(fates != FREE)[hits]
    precision = np.arange(1, len(hits) + 1) / (counted + np.spacing(1))  # COCO's, to the last digit
    return np.maximum.accumulate(precision[::-1])[::-1]


class _Annotations(NamedTuple):
    """Ground truth by image, with indices in the place of ids; a region is not to be found."""

    images: Int[np.ndarray, "m"]
    classes: Int[np.ndarray, "m"]  # -1 is every class
    boxes: Float[np.ndarray, "m numbers"]  # as the protocol has them
    areas: Float[np.ndarray, "m"]
    regions: Bool[np.ndarray, "m"]


class _Detections(NamedTuple):
    """As they came, with indices in the place of ids."""

    images: Int[np.ndarray, "n"]
    classes: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n numbers"]  # as the protocol has them
    scores: Float[np.ndarray, "n"]


def detections_of(ground_truth: dict, detections: list[dict] | Columns, protocol: Protocol) -> _Detections:
    """Those of a list or of columns, checked; upright ones are oriented too where a protocol has such boxes."""
    found = detections if isinstance(detections, Columns) else columns(detections)
    boxes, scores = (np.asarray(values, np.float64) for values in (found.boxes, found.scores))
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):  # such a box would count as a hit
        raise UserError("a detection has a box or score that is not finite: lower the learning rate")
    if protocol.boxes == "oriented":
        boxes = _oriented(boxes, "detections")
    elif boxes.shape[1] != 4:
        raise UserError(
            f"the detections are oriented, and {protocol.name} scores upright boxes: choose oriented or soda_a"
        )
    images, owners = _indices(ground_truth, found.image_ids, found.category_ids, "detections")
    return _Detections(images, owners, boxes, scores)


def annotations_of(ground_truth: dict, protocol: Protocol) -> _Annotations:
    """What a protocol takes notice of, checked."""
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
        raise UserError(f"{' or '.join(protocol.region_flags)} of an annotation is a text: make it a number, 0 or 1")
    flagged = np.array([any(of_entry) for of_entry in flags], bool)
    kept = np.argsort(images, kind="stable")
    if not protocol.regions_are_crowds:
        kept = kept[owners[kept] >= 0]
    return _Annotations(*(column[kept] for column in (images, owners, boxes, areas, flagged | (owners < 0))))


def _oriented(boxes: np.ndarray, what: str) -> np.ndarray:
    """Oriented boxes of either kind, checked."""
    boxes = as_oriented(boxes)
    if (boxes[:, 2:4] < 0).any():
        raise UserError(
            f"some of the {what} have a negative side: give oriented boxes as cx cy w h angle, w and h positive"
        )
    return boxes


def _indices(
    ground_truth: dict, image_ids: np.ndarray, category_ids: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Those of images and classes in the order of their ids, -1 for a category that is none to be found."""
    images = np.unique(np.array([image["id"] for image in ground_truth["images"]], int))
    categories = np.array([category["id"] for category in ground_truth["categories"]], int)
    for key, ids, listed in (("image_id", image_ids, images), ("category_id", category_ids, categories)):
        strange = ids[~np.isin(ids, listed)]
        if strange.size:
            none_fits = key == "image_id" and strange.size == ids.size
            raise UserError(
                f"{strange.size} of {ids.size} {what} have an id that the ground truth does not list, such as {key} "
                f"{strange[0]}: {'they are probably of another split' if none_fits else 'match the ids'}"
            )
    class_ids = np.array([category["id"] for category in classes(ground_truth)], int)
    to_be_found = np.isin(category_ids, class_ids)
    return np.searchsorted(images, image_ids), np.where(to_be_found, np.searchsorted(class_ids, category_ids), -1)


def truth_of(annotations: _Annotations, k: int, protocol: Protocol) -> Truth:
    """What there is of class `k`."""
    own = (annotations.classes == k) | (annotations.classes < 0)
    regions = annotations.regions[own, None]
    ignored = regions | _outside(annotations.areas[own], protocol).T
    absorbs = ignored & protocol.regions_are_crowds & (regions | protocol.sizes_are_crowds)
    return Truth(annotations.images[own], annotations.boxes[own], ignored, absorbs)


def fates_of(
    found: _Detections, k: int, truth: Truth, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Of the detections of class `k`: images, fates [overlap, range, detection], and their order, best first.

    There is an order for each limit.
    """
    own = np.flatnonzero(found.classes == k)
    own = own[np.lexsort((-found.scores[own], found.images[own]))]
    place = np.arange(len(own)) - np.searchsorted(found.images[own], found.images[own])  # in the image
    own, place = own[place < protocol.limits[-1]], place[place < protocol.limits[-1]]
    boxes = found.boxes[own]
    unmatched = np.where(_outside(boxes[:, 2] * boxes[:, 3], protocol), FREE, MISS)
    fates = match(found.images[own], boxes, truth, protocol.overlaps, unmatched, protocol.best_only)
    order = np.argsort(-found.scores[own], kind="stable")
    return found.images[own], fates, [order[place[order] < limit] for limit in protocol.limits]


def _outside(areas: Float[np.ndarray, "n"], protocol: Protocol) -> Bool[np.ndarray, "ranges n"]:
    return np.array([(areas < low) | (areas > high) for low, high in protocol.ranges.values()])
