"""Kinds of mistakes in hand-made cases, compared with plain loops, and invariants of the counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.metrics.error_types import KINDS, OUTCOMES, count_outcomes, f1
from tests import plain

CLASSES = (3, 7)
MIN_SCORE = 0.3


def box(category_id: int, x: float, y: float, side: float = 10, image_id: int = 1, **extra) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": [x, y, side, side], **extra}


def count(annotations: list[dict], detections: list[dict], images: tuple[int, ...] = (1,)) -> np.ndarray:
    """[images, classes, outcomes]."""
    ground_truth = {"images": [{"id": image_id} for image_id in images], "annotations": annotations}
    return count_outcomes(ground_truth, detections, CLASSES, MIN_SCORE)


def outcomes(annotations: list[dict], detections: list[dict]) -> dict[tuple[int, str], int]:
    """The counts of a single image, by category and outcome."""
    (of_image,) = count(annotations, detections)
    return {(CLASSES[k], OUTCOMES[o]): int(of_image[k, o]) for k, o in zip(*np.nonzero(of_image), strict=True)}


OBJECT = box(3, 0, 0)
CASES = {
    "found": ([OBJECT], [box(3, 1, 0, score=0.9)], {(3, "true"): 1}),
    "exactly half": ([OBJECT], [{**box(3, 0, 0, score=0.9), "bbox": [0, 0, 10, 5]}], {(3, "true"): 1}),
    "too weak": ([OBJECT], [box(3, 0, 0, score=0.29)], {(3, "missed"): 1}),
    "just strong enough": ([OBJECT], [box(3, 0, 0, score=0.3)], {(3, "true"): 1}),
    "better one first": (
        [OBJECT],
        [box(3, 1, 0, score=0.4), box(3, 2, 0, score=0.8)],
        {(3, "true"): 1, (3, "duplicate"): 1},
    ),
    "two objects, two detections": (
        [OBJECT, box(3, 3, 0)],
        [box(3, 1, 0, score=0.9), box(3, 2, 0, score=0.8)],
        {(3, "true"): 2},
    ),
    "the surer one chooses first": (
        [OBJECT, box(3, 3, 0)],
        [box(3, -2, 0, score=0.4), box(3, 1, 0, score=0.9)],
        {(3, "true"): 1, (3, "duplicate"): 1, (3, "missed"): 1},
    ),
    "another class": ([OBJECT], [box(7, 0, 0, score=0.9)], {(7, "class"): 1, (3, "missed"): 1}),
    "another class, which is found": (
        [OBJECT],
        [box(3, 0, 0, score=0.9), box(7, 0, 0, score=0.8)],
        {(3, "true"): 1, (7, "class"): 1},
    ),
    "badly placed": ([OBJECT], [box(3, 6, 0, score=0.9)], {(3, "localisation"): 1, (3, "missed"): 1}),
    "badly placed for another class": ([OBJECT], [box(7, 6, 0, score=0.9)], {(7, "background"): 1, (3, "missed"): 1}),
    "too far": ([OBJECT], [box(3, 9, 0, score=0.9)], {(3, "background"): 1, (3, "missed"): 1}),
    "nothing there": ([], [box(3, 0, 0, score=0.9)], {(3, "background"): 1}),
    "in an ignored box": ([box(3, 0, 0, 40, ignore=1)], [box(3, 30, 15, score=0.9)], {(3, "absorbed"): 1}),
    "in a crowd of another class": ([box(7, 0, 0, 40, iscrowd=1)], [box(3, 30, 15, score=0.9)], {(3, "absorbed"): 1}),
    "in a box without a class": ([box(99, 0, 0, 40)], [box(3, 35.1, 15, score=0.9)], {(3, "background"): 1}),
    "found inside a region": ([OBJECT, box(99, 0, 0, 40)], [box(3, 0, 0, score=0.9)], {(3, "true"): 1}),
    "found twice inside a region": (
        [OBJECT, box(99, 0, 0, 40)],
        [box(3, 0, 0, score=0.9), box(3, 0, 0, score=0.8)],
        {(3, "true"): 1, (3, "absorbed"): 1},
    ),
    "without area": ([box(3, 0, 0, 0)], [box(3, 0, 0, 0, score=0.9)], {(3, "background"): 1, (3, "missed"): 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    annotations, detections, expected = CASES[name]
    assert outcomes(annotations, detections) == expected


def test_f1_of_images():
    annotations = [box(3, 0, 0), box(3, 20, 0), box(7, 0, 0, image_id=2), box(99, 0, 0, 40, image_id=4)]
    detections = [
        box(3, 0, 0, score=0.9),
        box(7, 60, 0, score=0.9),
        box(7, 0, 0, image_id=2, score=0.9),
        box(3, 0, 0, image_id=4, score=0.9),
    ]
    np.testing.assert_array_equal(f1(count(annotations, detections, (1, 2, 3, 4))), [2 / 4, 1, np.nan, np.nan])


@st.composite
def cases(draw) -> tuple[tuple[int, ...], list[dict], list[dict]]:
    """Draw images, annotations and detections of few places and scores, so that overlaps and scores tie."""
    images = tuple(range(1, 1 + draw(st.integers(1, 3))))
    places = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(0, 6)] * 2).map(list)
    entry = {"image_id": st.sampled_from(images), "bbox": places}
    annotation = st.fixed_dictionaries(
        entry | {"category_id": st.sampled_from([3, 3, 7, 99]), "ignore": st.sampled_from([0, 0, 0, 1])}
    )
    detection = st.fixed_dictionaries(
        entry | {"category_id": st.sampled_from(CLASSES), "score": st.sampled_from([0.2, 0.3, 0.5, 0.9])}
    )
    return images, draw(st.lists(annotation, max_size=12)), draw(st.lists(detection, max_size=12))


def corners(entry: dict) -> list[float]:
    x, y, width, height = entry["bbox"]
    return [x, y, x + width, y + height]


def share_inside(entry: dict, region: dict) -> float:
    a, b = corners(entry), corners(region)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / max((a[2] - a[0]) * (a[3] - a[1]), 1e-9)


def kind_of(detection: dict, objects: list[dict], regions: list[dict], taken: list[dict]) -> str:
    """Apply the definition rule by rule; an object that is found joins `taken`."""
    overlaps = [plain.iou(corners(detection), corners(entry)) for entry in objects]
    own = [entry["category_id"] == detection["category_id"] for entry in objects]
    best = None
    for k, overlap in enumerate(overlaps):
        free = own[k] and overlap >= 0.5 and not any(objects[k] is entry for entry in taken)
        if free and (best is None or overlap > overlaps[best]):
            best = k
    if best is not None:
        taken.append(objects[best])
        return "true"
    if any(share_inside(detection, region) > 0.5 for region in regions):
        return "absorbed"
    for name, of_class, least in (("duplicate", True, 0.5), ("class", False, 0.5), ("localisation", True, 0.1)):
        if any(overlap >= least and own[k] == of_class for k, overlap in enumerate(overlaps)):
            return name
    return "background"


@given(cases())
def test_agrees_with_plain_loops(case):
    images, annotations, detections = case
    expected = np.zeros((len(images), len(CLASSES), len(OUTCOMES)), int)
    for row, image_id in enumerate(images):
        present = [entry for entry in annotations if entry["image_id"] == image_id]
        regions = [entry for entry in present if entry["ignore"] or entry["category_id"] not in CLASSES]
        objects = [entry for entry in present if not any(entry is region for region in regions)]
        shown = [d for d in detections if d["image_id"] == image_id and d["score"] >= MIN_SCORE]
        taken = []
        for detection in sorted(shown, key=lambda d: -d["score"]):
            kind = kind_of(detection, objects, regions, taken)
            expected[row, CLASSES.index(detection["category_id"]), OUTCOMES.index(kind)] += 1
        for entry in objects:
            if not any(entry is other for other in taken):
                expected[row, CLASSES.index(entry["category_id"]), OUTCOMES.index("missed")] += 1
    np.testing.assert_array_equal(count(annotations, detections, images), expected)


@given(cases(), st.randoms())
def test_every_detection_has_one_kind_and_the_order_of_images_does_not_matter(case, random):
    images, annotations, detections = case
    counts = count(annotations, detections, images)
    for k, category_id in enumerate(CLASSES):
        shown = sum(d["category_id"] == category_id and d["score"] >= MIN_SCORE for d in detections)
        objects = sum(a["category_id"] == category_id and not a["ignore"] for a in annotations)
        of_class = counts[:, k].sum(axis=0)
        assert of_class[: len(KINDS)].sum() == shown
        assert of_class[OUTCOMES.index("true")] + of_class[OUTCOMES.index("missed")] == objects

    order = random.sample(images, len(images))
    by_image = [sorted(entries, key=lambda e: order.index(e["image_id"])) for entries in (annotations, detections)]
    rows = [images.index(image_id) for image_id in order]
    np.testing.assert_array_equal(count(*by_image, tuple(order)), counts[rows])


def test_explanations_name_the_shares_that_decide():
    assert "more than 50 % of it" in KINDS["absorbed"] and "IoU of 0.1 to 0.5" in KINDS["localisation"]
