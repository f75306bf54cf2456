"""Scores equal the reference's numbers and those of plain loops, and depend only on what they should."""

import json
import pathlib

import numpy as np
import pytest

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.curves import curves
from cfinet_jax.metrics.protocols import PROTOCOLS, Protocol
from cfinet_jax.metrics.score import score

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
COCO, SODA_D = PROTOCOLS["coco"], PROTOCOLS["soda_d"]
as_coco = [protocol for protocol in PROTOCOLS.values() if not protocol.toolkit]
each_protocol = pytest.mark.parametrize("protocol", as_coco, ids=lambda protocol: protocol.name)


def golden(case: str) -> tuple[dict, list[dict], dict]:
    return tuple(json.loads((GOLDEN / f"eval_{case}_{part}.json").read_text()) for part in ("gt", "dets", "expected"))


def random_case(seed: int, images: int = 3, classes: int = 2) -> tuple[dict, list[dict]]:
    """Draw crowded boxes of all sizes, some ignored, and jittered, missed, doubled and invented detections."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 12)):
            box = np.r_[rng.uniform(0, 120, 2), rng.uniform(4, 60, 2)]
            category = int(rng.integers(1, classes + 1))
            flag = {name: int(rng.random() < 0.1) for name in ("ignore", "iscrowd", "uncertain")}
            area = float(box[2] * box[3])
            annotations.append({"image_id": image, "category_id": category, "bbox": box.tolist(), "area": area, **flag})
            for _ in range(rng.integers(0, 4)):
                near = box * np.r_[1, 1, rng.uniform(0.7, 1.3, 2)] + np.r_[rng.normal(0, 2, 2), 0, 0]
                detections.append({"image_id": image, "category_id": category, "bbox": near.tolist()})
        for _ in range(rng.integers(0, 5)):
            box = np.r_[rng.uniform(0, 120, 2), rng.uniform(4, 60, 2)].tolist()
            detections.append({"image_id": image, "category_id": int(rng.integers(1, classes + 1)), "bbox": box})
    for number, annotation in enumerate(annotations):
        annotation["id"] = number  # from 0, which must not cost a match
    for detection, confidence in zip(detections, rng.permutation(len(detections)), strict=True):
        detection["score"] = float(confidence + 1) / (len(detections) + 1)
    categories = [{"id": k + 1, "name": f"class{k + 1}"} for k in range(classes)]
    return {
        "images": [{"id": i} for i in range(images)],
        "annotations": annotations,
        "categories": categories,
    }, detections


# --- the reference's numbers -----------------------------------------------------------------------------------------

NAMES = {"AP_50": "AP50", "AP_75": "AP75", "AP_Normal": "AP_N", "AR_Normal@1000": "AR_N"}
NAMES |= {f"AR@{limit}": f"AR{limit}" for limit in (100, 300, 1000)}
NAMES |= {f"AR_{size}@1000": f"AR_{size}" for size in ("eS", "rS", "gS")}


@pytest.mark.parametrize("case", "abcd")
def test_soda_agrees_with_the_reference(case):
    ground_truth, detections, expected = golden(case)
    result = score(ground_truth, detections, SODA_D)
    for name, value in expected["stats"].items():
        assert result[NAMES.get(name, name)] == pytest.approx(value, abs=1e-12), name
    for name, numbers in expected["n_gt"].items():
        assert result["boxes"]["N" if name == "Normal" else name] == sum(numbers)
    assert [entry["boxes"] for entry in result["per_class"].values()] == expected["n_gt"]["Small"]
    assert list(result["per_class"]) == list(expected["per_class_AP"]) and len(expected["stats"]) == 14

    reference = np.load(GOLDEN / f"eval_{case}_curves.npz")
    precision, recall, boxes = curves(ground_truth, detections, SODA_D)
    np.testing.assert_array_equal(precision.astype(np.float32), reference["precision"])
    np.testing.assert_allclose(recall, reference["recall"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(boxes.T, list(expected["n_gt"].values()))
    for k, value in enumerate(expected["per_class_AP"].values()):  # the reference prints these with 1000 detections
        of_class = precision[:, :, k, 0, -1]
        if value is None:
            assert (of_class == -1).all()
        else:
            assert of_class[of_class > -1].mean() == pytest.approx(value, abs=1e-12)


@each_protocol
def test_ap50_of_a_class_is_the_mean_of_its_curve(protocol):
    ground_truth, detections = random_case(3)
    precision = curves(ground_truth, detections, protocol)[0]
    limit, headline = protocol.limits.index(protocol.precision_limit), list(protocol.ranges).index(protocol.headline)
    for k, values in enumerate(score(ground_truth, detections, protocol)["per_class"].values()):
        half = precision[protocol.marks["AP50"], :, k, headline, limit]
        np.testing.assert_allclose(values["precision50"], half, atol=5.1e-5)
        assert np.mean(values["precision50"]) == pytest.approx(values["AP50"], abs=5.1e-5)


# --- plain loops -----------------------------------------------------------------------------------------------------


def overlap(detection: list, box: list, crowd: bool) -> float:
    """Return the IoU of two x y w h boxes, or for a crowd the share of the detection inside it."""
    width = min(detection[0] + detection[2], box[0] + box[2]) - max(detection[0], box[0])
    height = min(detection[1] + detection[3], box[1] + box[3]) - max(detection[1], box[1])
    shared = max(width, 0) * max(height, 0)
    union = detection[2] * detection[3] + (0 if crowd else box[2] * box[3] - shared)
    return shared / union


def match(
    detections: list[dict], boxes: list[tuple[dict, bool, bool]], threshold: float, best_only: bool = False
) -> list[str]:
    """Return the fate of each detection of one image and class, best first: hit, miss or free (neither)."""
    taken, fates = set(), []
    for detection in sorted(detections, key=lambda d: -d["score"]):
        best = None
        for wanted in (True, False):  # ordinary boxes come first, however large the overlap with an ignored one
            for index, (box, ignored, crowd) in enumerate(boxes):
                if ignored == wanted or (index in taken and not crowd):
                    continue
                value = overlap(detection["bbox"], box["bbox"], crowd)
                others = [overlap(detection["bbox"], other["bbox"], False) for other, _, _ in boxes]
                if best_only and index != int(np.argmax(others)):
                    continue
                if value >= threshold and (best is None or value >= best[0]):
                    best = value, index, ignored
            if best is not None:
                break
        if best is None:
            fates.append("miss")
        else:
            taken.add(best[1])
            fates.append("free" if best[2] else "hit")
    return fates


def average_precision(ground_truth: dict, detections: list[dict], protocol: Protocol, category: int, size: str):
    """Compute AP per overlap by the definition."""
    low, high = protocol.ranges[size]
    outcome = []
    for threshold in protocol.overlaps:
        ranked, total = [], 0
        for image in (entry["id"] for entry in ground_truth["images"]):
            boxes = []
            for box in ground_truth["annotations"]:
                if (box["image_id"], box["category_id"]) == (image, category):
                    region = any(box[flag] for flag in protocol.region_flags)
                    outside = not low <= box["area"] <= high
                    crowd = protocol.regions_are_crowds if region else outside and protocol.sizes_are_crowds
                    boxes.append((box, region or outside, crowd))
            total += sum(not ignored for _, ignored, _ in boxes)
            own = [d for d in detections if (d["image_id"], d["category_id"]) == (image, category)]
            own = sorted(own, key=lambda d: -d["score"])[: protocol.precision_limit]
            for detection, fate in zip(own, match(own, boxes, threshold, protocol.best_only), strict=True):
                outside = not low <= detection["bbox"][2] * detection["bbox"][3] <= high
                if fate != "free" and not (fate == "miss" and outside):
                    ranked.append((detection["score"], fate == "hit"))
        if not total:
            return None
        hits, points = 0, []
        for rank, (_, hit) in enumerate(sorted(ranked, key=lambda pair: -pair[0]), start=1):
            hits += hit
            points.append((hits / total, hits / rank))
        steps = np.linspace(0, 1, 101)
        outcome.append(np.mean([max((p for r, p in points if r >= step), default=0.0) for step in steps]))
    return outcome


@each_protocol
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_plain_loops(seed, protocol):
    ground_truth, detections = random_case(seed)
    result = score(ground_truth, detections, protocol)
    for size in protocol.ranges:
        suffix = "" if size == protocol.headline else f"_{size}"
        per_class = [average_precision(ground_truth, detections, protocol, k, size) for k in (1, 2)]
        per_class = [values for values in per_class if values is not None]
        if not per_class:
            assert result[f"AP{suffix}"] is None and result[f"AP50{suffix}"] is None
            continue
        assert result[f"AP{suffix}"] == pytest.approx(np.mean(per_class), abs=1e-9)
        assert result[f"AP50{suffix}"] == pytest.approx(
            np.mean([values[protocol.marks["AP50"]] for values in per_class]), abs=1e-9
        )


# --- properties ------------------------------------------------------------------------------------------------------


@each_protocol
@pytest.mark.parametrize("seed", range(3))
def test_only_the_order_of_the_scores_matters(seed, protocol):
    ground_truth, detections = random_case(seed)
    expected, random = score(ground_truth, detections, protocol), np.random.default_rng(seed)

    def shuffled(entries: list[dict]) -> list[dict]:
        return [entries[i] for i in random.permutation(len(entries))]

    lowered = [{**detection, "score": detection["score"] ** 3 / 2} for detection in detections]
    assert score(ground_truth, shuffled(detections), protocol) == expected
    assert score(ground_truth, lowered, protocol) == expected
    for part in ground_truth:  # images, annotations, categories
        assert score(ground_truth | {part: shuffled(ground_truth[part])}, detections, protocol) == expected


@each_protocol
def test_perfect_detections_score_one(protocol):
    ground_truth, _ = random_case(4)
    detections = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for annotation in ground_truth["annotations"]
        if not annotation["ignore"] and not annotation["uncertain"]
    ]
    result = score(ground_truth, detections, protocol)
    values = [value for name, value in result.items() if name.startswith(("AP", "AR")) and name not in ("AR1", "AR10")]
    assert all(value is None or value == pytest.approx(1) for value in values)
    assert result["AP"] == pytest.approx(1)


@each_protocol
def test_no_detections_score_zero_and_no_objects_none(protocol, capsys):
    ground_truth, detections = random_case(1)
    result = score(ground_truth, [], protocol)
    assert result["AP"] == result["AP50"] == result[f"AR{protocol.limits[0]}"] == 0.0
    empty = score({**ground_truth, "annotations": []}, detections, protocol)
    nothing = {"AP": None, "AP50": None, "boxes": 0, "precision50": None}
    assert empty["AP"] is None and empty["per_class"]["class1"] == nothing
    json.dumps([result, empty], allow_nan=False)
    assert capsys.readouterr().out == ""


def one_box(**extra) -> tuple[dict, list[dict]]:
    """One object, and apart from it a region with two equally good detections."""
    region = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 50, 20, 20], "area": 400, **extra}
    ground_truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "car"}, {"id": 10, "name": "ignore"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400}, region],
    }
    places = ([50, 50, 20, 20], 0.9), ([51, 50, 20, 20], 0.8), ([5, 5, 20, 20], 0.7)
    return ground_truth, [{"image_id": 1, "category_id": 1, "bbox": box, "score": s} for box, s in places]


@pytest.mark.parametrize(
    ("protocol", "region", "expected"),
    [
        (COCO, {"ignore": 1}, 1.0),
        (COCO, {"iscrowd": 1}, 1.0),
        (COCO, {"category_id": 10}, 1.0),  # a region without a class is one of every class
        (SODA_D, {"ignore": 1}, 1 / 2),  # absorbs one of the two
        (SODA_D, {"category_id": 10, "ignore": 1}, 1 / 3),  # left out: both are wrong
    ],
)
def test_ignored_boxes_absorb_what_the_protocol_says(protocol, region, expected):
    result = score(*one_box(**region), protocol)
    assert result["AP50"] == pytest.approx(expected)
    assert result["boxes"][protocol.headline] == 1 and list(result["per_class"]) == ["car"]


def test_a_box_that_absorbs_in_other_ranges_is_chosen_by_its_iou():
    """The second box contains the whole first detection, whose IoU with the first box is higher."""
    boxes = [0, 0, 10, 10], [0, 0, 12, 20]
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    ground_truth = {**one_box()[0], "annotations": annotations}
    places = ([0, 0, 10, 12], 0.9), ([0, 0, 12, 20], 0.8)
    detections = [{"image_id": 1, "category_id": 1, "bbox": box, "score": s} for box, s in places]
    assert score(ground_truth, detections, PROTOCOLS["tiny_person"])["AP50"] == pytest.approx(1)


def test_crowd_flag_is_off_in_soda():
    assert score(*one_box(iscrowd=1), SODA_D)["boxes"]["Small"] == 2


def test_inputs_are_left_as_they_were():
    ground_truth, detections = random_case(0)
    before = json.dumps([ground_truth, detections])
    score(ground_truth, detections, COCO)
    assert json.dumps([ground_truth, detections]) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "image_id 77"),
        ({"category_id": 77}, "category_id 77"),
        ({"bbox": [float("nan")] * 4}, "not finite"),
        ({"score": float("inf")}, "not finite"),
    ],
)
def test_detections_of_other_files_or_not_finite_are_refused(change, message):
    ground_truth, detections = random_case(0)
    with pytest.raises(UserError, match=message):
        score(ground_truth, [detections[0] | change], COCO)
