"""AP and AR of detections under a protocol; the only door to pycocotools."""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.protocols import Protocol

IGNORE = "ignore"  # the category of regions without a class


def score(ground_truth: dict, detections: list[dict], protocol: Protocol) -> dict:
    """Score detections (COCO results, boxes x y w h) against COCO ground truth.

    Returns fractions, ready for JSON and None where there is no box to find: `protocol`, `AP`, `AP50`, `AP75`,
    `AP_<size>`, `AP50_<size>`, `AR<limit>`, `AR_<size>`; `boxes`, the number to be found in each range; `per_class`,
    name -> `AP`, `AP50`, `boxes` in the headline range and `precision50`, the precision at IoU 0.5 and recall
    0:.01:1. Annotations of a category called "ignore" are regions of every class where the protocol has crowds, and
    are left out where it has none (SODA's "wo_ignore" files).
    Raises UserError for a detection or annotation of unknown image or category, and for boxes that are not finite.
    """
    precision, recall, boxes = curves(ground_truth, detections, protocol)
    precision = precision[..., protocol.limits.index(protocol.precision_limit)]
    ranges = {name: index for index, name in enumerate(protocol.ranges)}
    headline = ranges[protocol.headline]
    half, three_quarters = protocol.overlaps.index(0.5), protocol.overlaps.index(0.75)
    return {
        "protocol": protocol.name,
        "AP": _mean(precision[..., headline]),
        "AP50": _mean(precision[half, ..., headline]),
        "AP75": _mean(precision[three_quarters, ..., headline]),
        **{f"AP_{size}": _mean(precision[..., ranges[size]]) for size in protocol.sizes},
        **{f"AP50_{size}": _mean(precision[half, ..., ranges[size]]) for size in protocol.sizes},
        **{f"AR{limit}": _mean(recall[:, :, headline, i]) for i, limit in enumerate(protocol.limits)},
        **{f"AR_{size}": _mean(recall[:, :, ranges[size], -1]) for size in protocol.sizes},
        "boxes": {name: int(boxes[:, index].sum()) for name, index in ranges.items()},
        "per_class": {
            category["name"]: {
                "AP": _mean(precision[:, :, k, headline]),
                "AP50": _mean(precision[half, :, k, headline]),
                "boxes": int(boxes[k, headline]),
                "precision50": _curve(precision[half, :, k, headline]),
            }
            for k, category in enumerate(_classes(ground_truth))
        },
    }


def curves(ground_truth: dict, detections: list[dict], protocol: Protocol) -> tuple[np.ndarray, ...]:
    """What the numbers of `score` are means of: precision, recall and the number of boxes to find.

    Precision is [overlap, recall 0:.01:1, class, range, limit], recall [overlap, class, range, limit], the number
    [class, range]; classes in the order of their ids. The first two are -1 where there is no box to find.
    """
    classes = _classes(ground_truth)
    annotations = _annotations(ground_truth, classes, protocol)
    results = _results(ground_truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(
            _index(ground_truth, classes, annotations), _index(ground_truth, classes, results), protocol
        )
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"], _count(annotations, classes, protocol)


class _Evaluation(COCOeval):
    """COCO's matching with the numbers of a protocol, and ignored boxes that need not be crowds."""

    def __init__(self, ground_truth: COCO, detections: COCO, protocol: Protocol):
        super().__init__(ground_truth, detections, "bbox")
        params: Any = self.params  # pycocotools declares types that it does not keep
        params.iouThrs = np.array(protocol.overlaps)
        params.areaRng = list(protocol.ranges.values())
        params.areaRngLbl = list(protocol.ranges)
        params.maxDets = list(protocol.limits)

    def _prepare(self):
        super()._prepare()  # overwrites `ignore` by `iscrowd`  # pyright: ignore[reportAttributeAccessIssue]
        truth: Any = self.cocoGt
        for annotation in truth.dataset["annotations"]:
            annotation["ignore"] = annotation["region"]


def _classes(ground_truth: dict) -> list[dict]:
    """The categories to be found, by id."""
    categories = (category for category in ground_truth["categories"] if category["name"] != IGNORE)
    return sorted(categories, key=lambda category: category["id"])


def _annotations(ground_truth: dict, classes: list[dict], protocol: Protocol) -> list[dict]:
    """The ground truth as the protocol reads it, one entry per class; `region` marks what is not to be found."""
    class_ids = [category["id"] for category in classes]
    check = _checker(ground_truth, "an annotation")
    annotations = []
    for annotation in ground_truth["annotations"]:
        check(annotation)
        crowds = protocol.regions_are_crowds
        classless = annotation["category_id"] not in class_ids
        region = classless or bool(annotation.get("ignore")) or (crowds and bool(annotation.get("iscrowd")))
        entry = {
            "image_id": annotation["image_id"],
            "bbox": annotation["bbox"],
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": int(region and crowds),
            "region": region,
        }
        every_class = class_ids if crowds else []
        for category_id in every_class if classless else [annotation["category_id"]]:
            annotations.append({**entry, "category_id": category_id})
    return _numbered(annotations)


def _results(ground_truth: dict, detections: list[dict]) -> list[dict]:
    """The detections with the fields that COCO's matching reads."""
    check = _checker(ground_truth, "a detection")
    for detection in detections:
        check(detection)
        if not all(map(math.isfinite, [*detection["bbox"], detection["score"]])):  # COCO counts such a box as a hit
            raise UserError("a detection has a box or score that is not finite: lower the learning rate")
    return _numbered([{**d, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0} for d in detections])


def _numbered(entries: list[dict]) -> list[dict]:
    # From 1: COCO's matching takes id 0 for "not matched".
    return [{**entry, "id": number} for number, entry in enumerate(entries, start=1)]


def _checker(ground_truth: dict, what: str) -> Callable[[dict], None]:
    """A function that refuses entries of images or categories unknown to the ground truth."""
    known = {
        "image_id": {image["id"] for image in ground_truth["images"]},
        "category_id": {category["id"] for category in ground_truth["categories"]},
    }

    def check(entry: dict) -> None:
        for key, ids in known.items():
            if entry[key] not in ids:
                raise UserError(f"{what} has {key} {entry[key]}, which the ground truth does not list: match the files")

    return check


def _index(ground_truth: dict, classes: list[dict], annotations: list[dict]) -> COCO:
    coco: Any = COCO()
    coco.dataset = {"images": ground_truth["images"], "categories": classes, "annotations": annotations}
    coco.createIndex()
    return coco


def _count(annotations: list[dict], classes: list[dict], protocol: Protocol) -> np.ndarray:
    """Boxes to be found [class, range]."""
    objects = [annotation for annotation in annotations if not annotation["region"]]
    owners = np.array([annotation["category_id"] for annotation in objects])
    areas = np.array([annotation["area"] for annotation in objects])
    counts = np.zeros((len(classes), len(protocol.ranges)), int)
    for k, category in enumerate(classes):
        for r, (low, high) in enumerate(protocol.ranges.values()):
            counts[k, r] = np.sum((owners == category["id"]) & (low <= areas) & (areas <= high))
    return counts


def _mean(values: np.ndarray) -> float | None:
    """Over what there is to find."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _curve(precision: np.ndarray) -> list[float] | None:
    """To four digits, which is plenty to draw."""
    return None if (precision < 0).any() else precision.round(4).tolist()
