"""Scores of proposals equal those of pycocotools and of a plain loop, and do not depend on classes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given

from cfinet_jax.metrics import proposal_scores
from cfinet_jax.metrics.proposal_scores import OBJECT, endings, summarise, tally_proposals
from cfinet_jax.metrics.protocols import OVERLAPS, PROTOCOLS, Protocol
from cfinet_jax.metrics.results import Columns, columns
from tests import coco_reference, plain
from tests.metrics.test_curves import AS_COCO, untied_cases
from tests.metrics.test_score import random_case

FEW = (1, 3, 8)  # limits that small cases reach
each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)


@pytest.fixture(autouse=True, scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposal_scores, "LIMITS", FEW)
        yield


def score_proposals(ground_truth: dict, proposals: Columns, protocol: Protocol) -> dict[str, float | None]:
    """Return the scores of `summarise` for proposals."""
    return summarise(tally_proposals(ground_truth, proposals, protocol), protocol)


def of_any_class(detections: list[dict]) -> Columns:
    """Convert detections to proposals."""
    return columns([entry | {"category_id": OBJECT} for entry in detections])


@pytest.mark.parametrize("protocol", AS_COCO, ids=lambda protocol: protocol.name)
@given(case=untied_cases())
def test_recall_equals_that_of_pycocotools_without_categories(protocol, case):
    ground_truth, detections = case
    rules = dataclasses.replace(protocol, overlaps=OVERLAPS, limits=FEW)
    evaluation = coco_reference.Evaluation(ground_truth, detections, rules)
    evaluation.params.useCats = 0
    expected = coco_reference.curves(evaluation)[1][:, 0].mean(0)
    scores = score_proposals(ground_truth, of_any_class(detections), protocol)
    for size, ending in endings(protocol).items():
        of_range = expected[list(protocol.ranges).index(size)]
        for limit, value in zip(FEW, of_range, strict=True):
            ours = scores[f"AR{limit}{ending}"]
            assert ours == pytest.approx(value) if value >= 0 else ours is None, (size, limit)


@each_protocol
def test_the_proposals_of_an_object_are_counted_one_by_one(protocol):
    ground_truth, detections = random_case(5)
    scores = score_proposals(ground_truth, of_any_class(detections), protocol)
    for size, ending in endings(protocol).items():
        low, high = protocol.ranges[size]
        counts = [
            sum(
                near["image_id"] == box["image_id"] and plain.iou(corners(near), corners(box)) > 0.5
                for near in detections
            )
            for box in ground_truth["annotations"]
            if low <= box["area"] <= high and not any(box[flag] for flag in protocol.region_flags)
        ]
        assert scores[f"per_object{ending}"] == (pytest.approx(np.mean(counts)) if counts else None)


def corners(entry: dict) -> list[float]:
    x, y, width, height = entry["bbox"]
    return [x, y, x + width, y + height]


@each_protocol
@given(case=untied_cases())
def test_more_proposals_never_find_less(protocol, case):
    ground_truth, detections = case
    scores = score_proposals(ground_truth, of_any_class(detections), protocol)
    for ending in endings(protocol).values():
        recalls = [scores[f"AR{limit}{ending}"] for limit in FEW]
        assert recalls == sorted(recalls) if recalls[0] is not None else set(recalls) == {None}


@each_protocol
@given(case=untied_cases())
def test_classes_and_regions_do_not_matter(protocol, case):
    ground_truth, detections = case
    others = [entry | {"category_id": 9} for entry in ground_truth["annotations"]]
    objects = [entry for entry in others if not any(entry[flag] for flag in protocol.region_flags)]
    regions = ground_truth["categories"] + [{"id": 1, "name": "ignore"}]
    everywhere = {"image_id": ground_truth["images"][0]["id"], "category_id": 1, "bbox": [0, 0, 99, 99]}
    expected = score_proposals(ground_truth, of_any_class(detections), protocol)
    for changed in (
        {"annotations": others},
        {"annotations": objects},
        {"annotations": [*others, everywhere], "categories": regions},
    ):
        assert score_proposals(ground_truth | changed, of_any_class(detections), protocol) == pytest.approx(expected)


def test_only_the_best_count():
    box, wrong = ([x, 0, 10, 10] for x in (0, 50))
    ground_truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 7, "name": "car"}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": box}],
    }
    ranked = [wrong, wrong, box, box]
    found = [{"image_id": 1, "category_id": OBJECT, "bbox": each, "score": 1 / k} for k, each in enumerate(ranked, 1)]
    scores = score_proposals(ground_truth, columns(found), PROTOCOLS["soda_d"])
    expected = {"AR1": 0.0, "AR3": 1.0, "AR8": 1.0, "per_object": 2.0}
    expected |= {f"{key}_eS": value for key, value in expected.items()}
    assert {key: value for key, value in scores.items() if value is not None} == expected
    assert scores["AR3_N"] is scores["per_object_N"] is None
