"""Oriented boxes: scores, mistakes and DOTA's files, compared with plain loops and with upright boxes."""

import dataclasses
import math

import numpy as np
import pytest
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.metrics import overlaps
from cfinet_jax.metrics.dota_files import write_task1
from cfinet_jax.metrics.error_types import OUTCOMES, count_outcomes
from cfinet_jax.metrics.protocols import PROTOCOLS, Protocol
from cfinet_jax.metrics.results import columns_of_image
from cfinet_jax.metrics.score import score
from tests import plain
from tests.metrics.test_score import random_case

SODA_A, SODA_A_2025, SODA_D = (PROTOCOLS[name] for name in ("soda_a", "soda_a_2025", "soda_d"))


def some_case(seed: int, images: int = 3, classes: int = 2) -> tuple[dict, list[dict]]:
    """Draw crowded boxes at all angles, and jittered, doubled and invented detections."""
    rng = np.random.default_rng(seed)

    def some_box() -> np.ndarray:
        sides = np.sort(rng.uniform(3, 45, 2))[::-1]
        return np.r_[rng.uniform(0, 100, 2), sides, rng.uniform(-math.pi / 2, math.pi / 2)]

    annotations, detections = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 14)):
            box, owner = some_box(), {"image_id": image, "category_id": int(rng.integers(0, classes))}
            annotations.append(owner | {"rbox": box.tolist(), "bbox": [0, 0, 1, 1], "area": 1.0, "ignore": 0})
            for _ in range(rng.integers(0, 4)):
                near = box * np.r_[1, 1, rng.uniform(0.8, 1.2, 2), 1] + np.r_[rng.normal(0, 1.5, 2), 0, 0, 0]
                near[4] += rng.normal(0, 0.1)
                detections.append(owner | {"bbox": near.tolist()})
        for _ in range(rng.integers(0, 4)):
            detections.append({"image_id": image, "category_id": 0, "bbox": some_box().tolist()})
    for detection, rank in zip(detections, rng.permutation(len(detections)), strict=True):
        detection["score"] = float(rank + 1) / (len(detections) + 1)
    categories = [{"id": k, "name": f"class{k}"} for k in range(classes)]
    return {
        "images": [{"id": i} for i in range(images)],
        "annotations": annotations,
        "categories": categories,
    }, detections


def fate(box: list, truths: list, taken: set, threshold: float, low: float, high: float, best_only: bool) -> str:
    """Decide the fate of an image's next detection: hit, miss or free; the object that it takes joins `taken`."""
    values = [plain.oriented_iou(box, truth) for truth in truths]
    inside = [low <= truth[2] * truth[3] <= high for truth in truths]
    candidates = [k for k, value in enumerate(values) if value >= threshold and k not in taken]
    if best_only and values:
        first = max(range(len(values)), key=lambda k: (values[k], inside[k], -k))
        candidates = [k for k in candidates if k == first]
    candidates.sort(key=lambda k: (inside[k], values[k]))
    if not candidates:
        return "miss" if low <= box[2] * box[3] <= high else "free"
    taken.add(candidates[-1])
    return "hit" if inside[candidates[-1]] else "free"


def plain_ap(ground_truth: dict, detections: list[dict], protocol: Protocol, size: str) -> float | None:
    """The mean over classes and IoUs of the precision at 101 recalls."""
    (low, high), of_classes = protocol.ranges[size], []
    for category in ground_truth["categories"]:
        own = [entry for entry in ground_truth["annotations"] if entry["category_id"] == category["id"]]
        total = sum(low <= entry["rbox"][2] * entry["rbox"][3] <= high for entry in own)
        if not total:
            continue
        for threshold in protocol.overlaps:
            taken, ranked = {image["id"]: set() for image in ground_truth["images"]}, []
            for found in sorted(detections, key=lambda entry: -entry["score"]):
                if found["category_id"] == category["id"]:
                    truths = [entry["rbox"] for entry in own if entry["image_id"] == found["image_id"]]
                    rules = threshold, low, high, protocol.best_only
                    ranked.append(fate(found["bbox"], truths, taken[found["image_id"]], *rules))
            hits = np.cumsum([each == "hit" for each in ranked if each != "free"])
            precision, recall = hits / np.arange(1, len(hits) + 1), hits / total
            steps = np.linspace(0, 1, 101)
            of_classes.append(np.mean([max(precision[recall >= step], default=0.0) for step in steps]))
    return float(np.mean(of_classes)) if of_classes else None


@pytest.mark.parametrize("protocol", [SODA_A, SODA_A_2025], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_plain_loops(seed, protocol):
    ground_truth, detections = some_case(seed)
    result = score(ground_truth, detections, protocol)
    for size in protocol.ranges:
        suffix = "" if size == protocol.headline else f"_{size}"
        assert result[f"AP{suffix}"] == pytest.approx(plain_ap(ground_truth, detections, protocol, size), abs=1e-9)
    assert result["protocol"] == protocol.name and "oriented boxes" in str(protocol)


def ships(boxes, found) -> tuple[dict, list[dict]]:
    """A ground truth of one image and class, and detections with falling scores."""
    entry = {"image_id": 1, "category_id": 1}
    annotations = [entry | {"bbox": [0, 0, 1, 1], "rbox": box} for box in boxes]
    ground_truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "ship"}], "annotations": annotations}
    return ground_truth, [entry | {"bbox": box, "score": 0.9 - 0.1 * k} for k, box in enumerate(found)]


def test_the_two_variants_of_soda_a_differ():
    """Two objects, and two detections that are both nearest to the first object."""
    boxes = [50, 50, 20, 10, 0.3], [52, 50, 20, 10, 0.3]
    ground_truth, found = ships(boxes, [boxes[0]] * 2)
    recalls = [score(ground_truth, found, protocol)["AP50"] for protocol in (SODA_A, SODA_A_2025)]
    assert recalls == [pytest.approx(1), pytest.approx(51 / 101)]


HALF, TWICE = [48, 50, 8, 8, 0], [50, 50, 16, 16, 0]  # of areas 64 and 256; IoU .5 with the detection
OUTER = [50, 50, 32, 16, 0]  # area 512, IoU .25
TIED = {  # boxes of the ground truth, detections, and the AP50 of eS (0-144) and rS (144-400)
    "the small object first": ([HALF, TWICE], 1, (1, 1)),
    "the small object last": ([TWICE, HALF], 1, (1, 1)),
    "a third that does not tie": ([OUTER, TWICE, HALF], 1, (1, 1)),
    "two of a size: the second is never found": ([HALF, [52, 50, 8, 8, 0], TWICE], 2, (51 / 101, 1)),
    "only one of a size": ([TWICE], 1, (None, 1)),
}


@pytest.mark.parametrize("row", TIED)
def test_of_objects_that_tie_the_one_inside_the_range_counts(row):
    boxes, number, expected = TIED[row]
    result = score(*ships(boxes, [[50, 50, 16, 8, 0]] * number), SODA_A_2025)
    assert (result["AP50_eS"], result["AP50_rS"]) == tuple(
        each if each is None else pytest.approx(each) for each in expected
    )


@pytest.mark.parametrize("seed", range(4))
def test_upright_boxes_score_as_in_the_horizontal_protocol(seed):
    ground_truth, detections = random_case(seed)
    rules = dataclasses.replace(SODA_D, limits=SODA_A.limits, precision_limit=SODA_A.precision_limit, name="soda_a")
    expected = score(ground_truth, detections, rules)
    assert score(ground_truth, detections, SODA_A) == expected
    for entry in ground_truth["annotations"]:
        entry["rbox"] = as_rbox(entry["bbox"])
    turned = [entry | {"bbox": as_rbox(entry["bbox"])} for entry in detections]
    assert score(ground_truth, turned, SODA_A) == expected


def test_only_the_plain_protocol_counts_large_objects():
    """An object of 50 x 60 pixels; SODA-A's sizes end at 2,000 square pixels."""
    box = [50.0, 50.0, 60.0, 50.0, 0.3]
    ground_truth, found = ships([box], [box])
    scores = score(ground_truth, found, PROTOCOLS["oriented"])
    assert scores["AP"] == scores["AP_larger"] == pytest.approx(1) and scores["AP_N"] is None
    assert score(ground_truth, found, SODA_A)["AP"] is None


@pytest.mark.parametrize("flag", ["ignore", "iscrowd"])
def test_regions_of_own_data_absorb_all_detections(flag):
    boxes = [50.0, 50.0, 60.0, 50.0, 0.3], [200.0, 200.0, 100.0, 100.0, 0.5]
    inside = [[200.0 + shift, 200.0, 10.0, 10.0, 0.0] for shift in (-20, 0, 20)]
    ground_truth, found = ships(boxes, [*inside, boxes[0]])
    ground_truth["annotations"][1][flag] = 1
    assert score(ground_truth, found, PROTOCOLS["oriented"])["AP"] == pytest.approx(1)


def as_rbox(box: list) -> list[float]:
    x, y, width, height = box
    return overlaps.as_oriented(np.array([[x, y, width, height]]))[0].tolist()


def test_flat_boxes_find_nothing_and_oriented_ones_have_no_upright_score():
    ground_truth, detections = some_case(2)
    flat = [entry | {"bbox": [*entry["bbox"][:3], 0.0, 0.7], "score": 1.0} for entry in detections]
    assert score(ground_truth, flat, SODA_A)["AP"] == 0
    with pytest.raises(UserError, match="scores upright boxes: choose oriented or soda_a"):
        score(ground_truth, detections, SODA_D)


def test_blocks_do_not_matter(monkeypatch):
    ground_truth, detections = some_case(1)
    expected = score(ground_truth, detections, SODA_A)
    monkeypatch.setattr("cfinet_jax.metrics.detection_matching.BLOCK", 3)
    monkeypatch.setattr(overlaps, "EXACT", 2)
    assert score(ground_truth, detections, SODA_A) == expected


def test_mistakes_of_oriented_boxes():
    """A long object is not found by a detection across it, though their upright boxes are the same."""
    across, along = [50, 50, 40, 5, math.pi / 4], [50, 50, 40, 5, -math.pi / 4]
    entry = {"image_id": 1, "category_id": 1}
    ground_truth = {"images": [{"id": 1}], "annotations": [entry | {"bbox": [34, 34, 32, 32], "rbox": along}]}
    found = [entry | {"bbox": across, "score": 0.9}, entry | {"bbox": along, "score": 0.8}]
    counts = count_outcomes(ground_truth, found, (1,), 0.3)[0, 0]
    assert {name: n for name, n in zip(OUTCOMES, counts.tolist(), strict=True) if n} == {"true": 1, "background": 1}
    region = ground_truth["annotations"][0] | {"category_id": 9, "rbox": [50, 50, 50, 50, 0.1]}
    ground_truth["annotations"].append(region)
    counts = count_outcomes(ground_truth, found, (1,), 0.3)[0, 0]
    assert counts[OUTCOMES.index("absorbed")] == 1 and counts[OUTCOMES.index("background")] == 0


@pytest.mark.parametrize("seed", range(3))
def test_mistakes_of_upright_boxes_are_the_same(seed):
    ground_truth, detections = random_case(seed)
    expected = count_outcomes(ground_truth, detections, (1, 2), 0.2)
    ground_truth["annotations"] = [entry | {"rbox": as_rbox(entry["bbox"])} for entry in ground_truth["annotations"]]
    turned = [entry | {"bbox": as_rbox(entry["bbox"])} for entry in detections]
    np.testing.assert_array_equal(count_outcomes(ground_truth, turned, (1, 2), 0.2), expected)


def test_files_of_dota(tmp_path):
    found = columns_of_image(np.array([[50, 40, 20, 10, 0]]), np.array([0.5]), np.array([3]), 7)
    folder = epath.Path(tmp_path) / "dota"
    for _ in range(2):  # a second time in place of the first
        write_task1(found, {7: "P0007"}, {3: "ship", 4: "large-vehicle"}, folder)
    assert (folder / "Task1_ship.txt").read_text() == (
        "P0007 0.500000 40.00 35.00 60.00 35.00 60.00 45.00 40.00 45.00\n"
    )
    assert (folder / "Task1_large-vehicle.txt").read_text() == ""


@pytest.mark.parametrize("seed", range(3))
def test_pairs_that_meet_are_found_once_and_no_box_meets_itself(seed):
    rng = np.random.default_rng(seed)
    boxes = np.c_[rng.uniform(0, 60, (30, 2)), rng.uniform(2, 30, (30, 2)), rng.uniform(-1.5, 1.5, 30)]
    found = [np.sort(pair).tolist() for some in overlaps.pairs_among(boxes) for pair in zip(*some[:2], strict=True)]
    shared = overlaps.intersection(*(boxes[index] for index in np.triu_indices(30, 1)))
    meeting = np.argwhere(shared > 0)[:, 0]
    assert sorted(found) == np.stack(np.triu_indices(30, 1), 1)[meeting].tolist()
