"""Recall of the proposals of any network: Table 4 and Fig. 4 of the paper.

The paper does not say how it measured recall. Here all classes count as one, the proposals of a picture are matched
with its objects by COCO's rule, and the proposals of windows are combined first (`merging.py:stitch`). So only
differences between proposal networks are comparable with the paper's.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cfinet_jax.metrics.curves import annotations_of, classes, detections_of, fates_of, truth_of
from cfinet_jax.metrics.detection_matching import HIT, pairs
from cfinet_jax.metrics.protocols import OVERLAPS, Protocol
from cfinet_jax.metrics.results import Columns

LIMITS = (100, 300, 1000)  # numbers of best proposals per picture, ascending
SHOWN = 300  # the limit of Table 4
NEAR = 0.5  # a proposal with a higher IoU counts for an object, in Fig. 4
OBJECT = 1  # category id of every proposal and object


class Tally(NamedTuple):
    """Counts of objects and proposals, for every image (by rising id) and every range of sizes of a protocol."""

    objects: Int[np.ndarray, "images ranges"]
    hits: Int[np.ndarray, "limits images ranges"]  # with the best `LIMITS` proposals, summed over IoU .5:.05:.95
    near: Int[np.ndarray, "images ranges"]  # proposals with an IoU above .5, summed over objects


def tally_proposals(ground_truth: dict, proposals: Columns, protocol: Protocol) -> Tally:
    """Count the objects that proposals find.

    Proposals are upright boxes, so oriented objects count by their enclosing `bbox`.
    """
    rules = dataclasses.replace(protocol, overlaps=OVERLAPS, limits=LIMITS, boxes="horizontal", best_only=False)
    ground_truth = of_one_class(ground_truth)
    truth = truth_of(annotations_of(ground_truth, rules), 0, rules)
    found = detections_of(ground_truth, proposals, rules)
    images, fates, orders = fates_of(found, 0, truth, rules)
    _, of_truth, iou, _ = pairs(found.images, found.boxes, truth, NEAR)
    near = np.bincount(of_truth[iou > NEAR], minlength=len(truth.boxes))

    def by_image(owners: np.ndarray, values: np.ndarray) -> np.ndarray:
        total = np.zeros((len(ground_truth["images"]), values.shape[1]), int)
        np.add.at(total, owners, values)
        return total

    hits = [by_image(images[order], (fates[..., order] == HIT).sum(0).T) for order in orders]
    wanted = ~truth.ignored
    return Tally(by_image(truth.images, wanted), np.stack(hits), by_image(truth.images, wanted * near[:, None]))


def summarise(tally: Tally, protocol: Protocol) -> dict[str, float | None]:
    """Compute average recall and the mean number of proposals per object.

    Returns:
      `AR<limit>`, the recall with the best proposals of each picture up to a limit of `LIMITS`, averaged over IoU
      .5:.05:.95, and `per_object`, the number of proposals with an IoU above .5, averaged over objects; both for the
      headline range and, with the suffix `_<size>`, for the other ranges. None where there is no object.
    """
    objects, hits, near = tally.objects.sum(0), tally.hits.sum(1), tally.near.sum(0)
    result = {}
    for size, ending in endings(protocol).items():
        place = list(protocol.ranges).index(size)
        some = objects[place] > 0
        for limit, of_limit in zip(LIMITS, hits, strict=True):
            result[f"AR{limit}{ending}"] = float(of_limit[place] / (len(OVERLAPS) * objects[place])) if some else None
        result[f"per_object{ending}"] = float(near[place] / objects[place]) if some else None
    return result


def endings(protocol: Protocol) -> dict[str, str]:
    """Return the suffix of the scores of every range of sizes; the headline range comes first."""
    return {protocol.headline: "", **{size: f"_{size}" for size in protocol.sizes}}


def of_one_class(ground_truth: dict) -> dict:
    """Give all objects the class `OBJECT`; drop regions without a class, which do not affect recall."""
    known = {category["id"] for category in classes(ground_truth)}
    objects = [each | {"category_id": OBJECT} for each in ground_truth["annotations"] if each["category_id"] in known]
    return ground_truth | {"annotations": objects, "categories": [{"id": OBJECT, "name": "object"}]}
