"""Classify detections by kind of mistake, and find missed objects."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from cfinet_jax.metrics.overlaps import shared_areas
from cfinet_jax.metrics.results import box_of

OVERLAP = 0.5  # lowest IoU of a detection of an object
NEAR = 0.1  # lowest IoU of a detection near an object
INSIDE = 0.5  # a region absorbs a detection with more than this share of its area inside

# A detection is of the first kind that applies; the better detections of an image take their objects first.
KINDS = {
    "true": f"IoU of at least {OVERLAP} with an object of its class that no better detection has taken",
    "absorbed": f"more than {100 * INSIDE:.0f} % of it lies in an ignore region of any class: neither right nor wrong",
    "duplicate": f"IoU of at least {OVERLAP} with an object of its class that is taken already",
    "class": f"IoU of at least {OVERLAP} with an object of another class",
    "localisation": f"IoU of {NEAR} to {OVERLAP} with an object of its class",
    "background": "anything else",
}
OUTCOMES = (*KINDS, "missed")
TRUE, MISSED = OUTCOMES.index("true"), OUTCOMES.index("missed")
MISTAKES = ("duplicate", "class", "localisation", "background")
WRONG = [OUTCOMES.index(name) for name in (*MISTAKES, "missed")]


def count_outcomes(
    ground_truth: dict, detections: list[dict], category_ids: Sequence[int], min_score: float
) -> Int[np.ndarray, "images classes outcomes"]:
    """Count the detections of each kind and the missed objects.

    Args:
      ground_truth: COCO's dict. Annotations of another category than `category_ids`, or with `ignore` or `iscrowd`, are
        ignore regions.
      detections: COCO results, boxes x y w h or oriented. A detection counts for the class that it names.
      category_ids: of the classes, in the order of the result.
      min_score: detections with lower scores are left out.

    Returns:
      counts, images in the order of the ground truth, outcomes as in `OUTCOMES`.
    """
    rows = {image["id"]: row for row, image in enumerate(ground_truth["images"])}
    columns = {category_id: column for column, category_id in enumerate(category_ids)}
    found, objects, regions = ([[] for _ in rows] for _ in range(3))
    for detection in sorted(detections, key=lambda detection: -detection["score"]):
        if detection["score"] >= min_score:
            found[rows[detection["image_id"]]].append(detection)
    for annotation in ground_truth["annotations"]:
        ignored = annotation.get("ignore") or annotation.get("iscrowd") or annotation["category_id"] not in columns
        (regions if ignored else objects)[rows[annotation["image_id"]]].append(annotation)

    numbers = max((len(box_of(entry)) for entry in (*detections, *ground_truth["annotations"])), default=4)
    counts = np.zeros((len(rows), len(columns), len(OUTCOMES)), int)
    for row, of_image in enumerate(counts):
        boxes, labels = _arrays(found[row], columns, numbers)
        truth, truth_labels = _arrays(objects[row], columns, numbers)
        kinds, missed = match(boxes, labels, truth, truth_labels, _arrays(regions[row], {}, numbers)[0])
        np.add.at(of_image, (labels, kinds), 1)
        np.add.at(of_image[:, MISSED], truth_labels[missed], 1)
    return counts


def f1(counts: Int[np.ndarray, "images classes outcomes"]) -> Float[np.ndarray, "images"]:
    """Return 2 true / (2 true + mistakes + missed) of every image; NaN for one without objects and mistakes."""
    of_image = counts.sum(axis=1)
    total = 2 * of_image[:, TRUE] + of_image[:, WRONG].sum(axis=1)
    return np.where(total > 0, 2 * of_image[:, TRUE] / np.maximum(total, 1), np.nan)


def match(
    boxes: Float[np.ndarray, "n numbers"],
    labels: Int[np.ndarray, "n"],
    objects: Float[np.ndarray, "m numbers"],
    object_labels: Int[np.ndarray, "m"],
    regions: Float[np.ndarray, "k numbers"],
) -> tuple[Int[np.ndarray, "n"], Bool[np.ndarray, "m"]]:
    """Return the kind of every detection of one image, as its place in `KINDS`, and which objects are missed.

    Boxes are all x y w h or all cx cy w h angle, detections best first. A detection takes the free object of highest
    IoU.
    """
    overlaps = _iou(boxes, objects)
    same = labels[:, None] == object_labels
    reached = same & (overlaps >= OVERLAP)
    true, free = np.zeros(len(boxes), bool), np.ones(len(objects), bool)
    for number, overlap in enumerate(np.where(reached, overlaps, 0.0)):
        within_reach = overlap * free
        if within_reach.any():
            true[number] = True
            free[within_reach.argmax()] = False
    fits = {
        "true": true,
        "absorbed": (shared_areas(boxes, regions) > INSIDE * _area(boxes)[:, None]).any(1),
        "duplicate": reached.any(1),
        "class": (overlaps >= OVERLAP).any(1),  # of another class, since its own class is covered above
        "localisation": (same & (overlaps >= NEAR)).any(1),
        "background": np.ones(len(boxes), bool),
    }
    return np.stack([fits[kind] for kind in KINDS]).argmax(0), free


def _arrays(entries: list[dict], columns: dict[int, int], numbers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes [n, numbers] and labels [n] of COCO entries."""
    boxes = np.array([box_of(entry) for entry in entries], float).reshape(-1, numbers)
    return boxes, np.array([columns.get(entry["category_id"], 0) for entry in entries], int)


def _area(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] * boxes[:, 3]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return IoU [n, m]; 0 between empty boxes."""
    shared = shared_areas(a, b)
    union = _area(a)[:, None] + _area(b)[None] - shared
    return shared / np.maximum(union, 1e-9)
