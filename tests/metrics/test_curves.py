"""Precision and recall equal those of pycocotools to the last digit, ties included, however the input is given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.metrics import detection_matching
from cfinet_jax.metrics.curves import annotations_of, curves
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.results import Columns, columns
from tests import coco_reference

UPRIGHT = [protocol for protocol in PROTOCOLS.values() if protocol.boxes == "horizontal" and not protocol.toolkit]
AS_COCO = [protocol for protocol in UPRIGHT if not protocol.sizes_are_crowds]
CATEGORIES = [{"id": key, "name": f"class{key}"} for key in (9, 2)]
FLAGS = ("ignore", "iscrowd", "uncertain")


def entries(draw, count: int, images: list[int], side, **fields) -> list[dict]:
    """Draw boxes with their image, class and other fields."""
    kinds = {
        "image_id": st.sampled_from(images),
        "category_id": st.sampled_from([2, 9]),
        "bbox": st.lists(side, min_size=4, max_size=4),
    }
    return draw(st.lists(st.fixed_dictionaries(kinds | fields), max_size=count))


@st.composite
def cases(draw) -> tuple[dict, list[dict]]:
    """Draw few places, sizes and scores, so that overlaps and scores tie, areas lie on bounds and boxes are empty."""
    images = draw(st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True))
    side = st.sampled_from([0, 2, 4, 6, 8, 12, 16, 32])
    flags = dict.fromkeys(FLAGS, st.sampled_from([0, 0, 0, 0, 1]))
    annotations = entries(draw, 12, images, side, **flags)
    annotations = [entry | {"area": entry["bbox"][2] * entry["bbox"][3]} for entry in annotations]
    detections = entries(draw, 14, images, side, score=st.sampled_from([0.25, 0.5, 0.75]))
    described = [{"id": image} for image in images]
    return {"images": described, "categories": CATEGORIES, "annotations": annotations}, detections


@st.composite
def untied_cases(draw) -> tuple[dict, list[dict]]:
    """Draw cases without ties of scores or overlaps."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ground_truth, found = draw(cases())
    annotations, detections = (
        [entry | {"bbox": [*(rng.uniform(0, 20, 2)), *rng.uniform(4, 30, 2)]} for entry in some]
        for some in (ground_truth["annotations"], found)
    )
    annotations = [entry | {"area": float(np.prod(entry["bbox"][2:]))} for entry in annotations]
    scores = rng.permutation(len(detections)) / max(len(detections), 1)
    detections = [entry | {"score": float(each)} for entry, each in zip(detections, scores, strict=True)]
    return ground_truth | {"annotations": annotations}, detections


def same(first: tuple, second: tuple) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("protocol", AS_COCO, ids=lambda protocol: protocol.name)
@given(cases())
def test_agrees_with_pycocotools_to_the_last_digit(protocol, case):
    same(curves(*case, protocol)[:2], coco_reference.curves(coco_reference.Evaluation(*case, protocol)))


@pytest.mark.parametrize("name", ["soda_d", "tiny_person"])
@given(untied_cases(), st.randoms())
def test_order_does_not_matter_where_nothing_ties(name, case, random):
    ground_truth, detections = case
    shuffled = {key: random.sample(values, len(values)) for key, values in ground_truth.items()}
    same(
        curves(shuffled, random.sample(detections, len(detections)), PROTOCOLS[name]),
        curves(*case, PROTOCOLS[name]),
    )


@given(cases())
def test_neither_columns_nor_blocks_change_the_result(case):
    ground_truth, detections = case
    found = columns(detections)
    halves = Columns(found.image_ids, found.category_ids, *(values.astype(np.float32) for values in found[2:]))
    expected = curves(*case, PROTOCOLS["coco"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_matching, "BLOCK", 3)
        same(curves(ground_truth, halves, PROTOCOLS["coco"]), expected)


def precision_of(boxes: list[list], found: list[list]) -> float:
    """The precision at IoU 0.5 of one image and class with equal scores."""
    entry = {"image_id": 1, "category_id": 2}
    annotations = [entry | {"bbox": box} for box in boxes]
    detections = [entry | {"bbox": box, "score": 0.5} for box in found]
    ground_truth = {"images": [{"id": 1}], "categories": CATEGORIES, "annotations": annotations}
    return curves(ground_truth, detections, PROTOCOLS["soda_d"])[0][0, :, 0, 0, 0].mean()


LEFT, BETWEEN, RIGHT, FAR = ([x, 0, 10, 10] for x in (0, 2, 4, 50))


def test_ties_go_to_the_earlier_detection_and_the_later_object():
    assert precision_of([LEFT], [LEFT, FAR]) == pytest.approx(1)
    assert precision_of([LEFT], [FAR, LEFT]) == pytest.approx(1 / 2)
    assert precision_of([RIGHT, LEFT], [BETWEEN, RIGHT]) == pytest.approx(1)
    assert precision_of([LEFT, RIGHT], [BETWEEN, RIGHT]) == pytest.approx(51 / 101)  # the right one is taken


@pytest.mark.parametrize("flag", [None, "iscrowd"])
def test_annotations_of_the_category_of_regions_are_flagged(flag):
    """A region belongs to no class; a protocol with crowds keeps it as a crowd, the others drop it."""
    entries = [{"id": k, "image_id": 1, "category_id": k, "bbox": [0, 0, 5, 5]} for k in (1, 2)]
    if flag:
        entries[0][flag] = 1
    categories = [{"id": 1, "name": "ship"}, {"id": 2, "name": "ignore"}]
    ground_truth = {"images": [{"id": 1}], "categories": categories, "annotations": entries}
    for protocol in PROTOCOLS.values():
        if protocol.boxes == "horizontal":
            found = annotations_of(ground_truth, protocol)
            of_region = [True] * protocol.regions_are_crowds
            assert (found[1] < 0).tolist() == [False] + of_region
            assert found[4].tolist() == [flag in protocol.region_flags] + of_region
