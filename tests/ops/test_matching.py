"""Assignment of boxes to objects against plain loops and the reference's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.boxes import oriented
from cfinet_jax.boxes.anchors import anchor_grid
from cfinet_jax.ops import matching
from cfinet_jax.structures import GroundTruth
from configs.sodad import get_config
from tests import plain

COARSE = get_config().detector.proposal_network.coarse_to_fine
MODES = COARSE.coarse_thresholds.to_dict()
MOST = 128  # the golden cases hold up to 120 objects
seeds = st.integers(0, 2**32 - 1)
best_match = jax.jit(lambda boxes, truth: matching.best_match(boxes, truth, 0.3))


@jax.jit
def match_fine(boxes: jax.Array, truth: GroundTruth) -> matching.Assignment:
    return matching.match_max_iou(boxes, truth, positive=0.7, negative=0.7, min_positive=0.3, ignore_overlap=0.5)


@jax.jit
def match_rpn(boxes: jax.Array, truth: GroundTruth) -> matching.Assignment:
    return matching.match_max_iou(boxes, truth, positive=0.6, negative=0.3, min_positive=0.2, ignore_overlap=0.5)


@jax.jit
def match_regions(boxes: jax.Array, truth: GroundTruth) -> matching.Assignment:
    return matching.match_max_iou(boxes, truth, positive=0.5, negative=0.5, min_positive=None, ignore_overlap=0.5)


def thresholds_of(mode: str, boxes: jax.Array, scale: jax.Array) -> jax.Array:
    return matching.dynamic_thresholds(boxes, scale, base_size=12.0, **MODES[mode])


@jax.jit
def match_released(boxes: jax.Array, truth: GroundTruth, scale: jax.Array) -> matching.Assignment:
    thresholds = thresholds_of("released", truth.boxes, scale)
    return matching.match_dynamic(boxes, truth, thresholds, ignore_overlap=0.5)


def whole_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes on whole pixels: their overlaps are exact, so equal means equal."""
    return plain.some_boxes(rng, count).round()


def squares(*sides: float) -> jax.Array:
    """Square boxes of the given sides."""
    return jnp.array([[0.0, 0.0, side, side] for side in sides])


def assert_assignment(ours, positive, negative, indices) -> None:
    np.testing.assert_array_equal(ours.positive, positive)
    np.testing.assert_array_equal(ours.negative, negative)
    np.testing.assert_array_equal(np.asarray(ours.indices)[np.asarray(positive)], np.asarray(indices)[positive])


# Thresholds


@pytest.mark.parametrize(
    ("mode", "expected"),
    [  # by hand, for sides of 8, 10, 12, 16, 24 and 96 pixels of the stored image
        ("paper", [0.25, 0.25, 0.25, 0.2623, 0.35, 0.65]),
        ("literal", [0.20, 0.2105, 0.25, 0.3123, 0.40, 0.70]),
        ("released", [0.20, 0.2105, 0.25, 0.25, 0.25, 0.25]),
        ("fixed", [0.20] * 6),
    ],
)
def test_thresholds_of_equation_1_and_of_its_variants(mode, expected):
    boxes = squares(*(1.5 * side for side in (8, 10, 12, 16, 24, 96)))
    np.testing.assert_allclose(thresholds_of(mode, boxes, jnp.array(1.5)), expected, atol=5e-5)


def test_the_side_is_the_root_of_the_area_and_may_be_zero():
    elongated, square = jnp.array([[0.0, 0.0, 6.0, 96.0]]), squares(24.0)
    for mode in MODES:
        ours, expected = (thresholds_of(mode, boxes, jnp.array(1.5)) for boxes in (elongated, square))
        np.testing.assert_allclose(ours, expected)
        assert np.isfinite(thresholds_of(mode, jnp.zeros((2, 4)), jnp.array(1.5))).all()


# The best object of every box


@given(seeds)
def test_streamed_matching_equals_the_full_matrix(seed):
    rng = np.random.default_rng(seed)
    boxes, objects = whole_boxes(rng, 40), whole_boxes(rng, 70)
    objects[50:60] = objects[:10]  # equal objects in different chunks
    objects[60] = boxes[0]
    real = rng.random(70) < 0.8
    truth = GroundTruth(jnp.asarray(objects), jnp.zeros(70, jnp.int32), jnp.asarray(real), jnp.zeros(70, bool))
    ours = best_match(boxes, truth)
    overlaps = np.where(real, plain.ious(boxes, objects), -1)
    np.testing.assert_array_equal(ours.overlaps, overlaps.max(1))
    np.testing.assert_array_equal(ours.indices, overlaps.argmax(1))
    forced = np.full(40, -1)
    for index in np.flatnonzero(real):
        if overlaps[:, index].max() >= 0.3:
            forced[overlaps[:, index] == overlaps[:, index].max()] = index
    assert (forced >= 0).any()
    np.testing.assert_array_equal(ours.forced, forced)


def test_without_objects_nothing_matches(rng):
    boxes = jnp.asarray(plain.some_boxes(rng, 40))
    truth = plain.ground_truth(np.zeros((0, 4)), size=70)
    ours = match_fine(boxes, truth)
    assert not ours.positive.any() and ours.negative.all()
    np.testing.assert_array_equal(ours.overlaps, np.zeros(40))
    assert not match_released(boxes, truth, jnp.array(1.0)).positive.any()


@given(seeds)
def test_padding_never_matters(seed):
    rng = np.random.default_rng(seed)
    boxes, objects = whole_boxes(rng, 40), whole_boxes(rng, 10)
    boxes[:10] = objects + 1
    tight, padded = plain.ground_truth(objects), plain.ground_truth(objects, size=70)
    for match in (match_fine, match_regions, lambda *a: match_released(*a, jnp.array(1.5))):
        jax.tree.map(np.testing.assert_array_equal, match(boxes, tight), match(boxes, padded))


# Assignments against plain statements


@given(seeds, st.integers(0, 3))
def test_max_iou_assignment_equals_the_loop(seed, count):
    """Boxes in one of `count` ignore regions are taken out before any best box is chosen."""
    rng = np.random.default_rng(seed)
    boxes, objects = whole_boxes(rng, 40), whole_boxes(rng, 9)
    boxes[:9] = objects + rng.integers(0, 3, (9, 1))
    boxes[9:18] = objects + rng.integers(0, 5, (9, 1))
    regions = objects[:count] + [-2, -2, rng.integers(2, 12), 2]
    truth = plain.ground_truth(objects, regions=regions)
    overlaps = plain.ious(boxes, objects)
    overlaps[plain.shares(boxes, regions).max(1, initial=0) > 0.5] = -1
    kind, indices = np.full(40, "nothing "), overlaps.argmax(1)
    for box in range(40):
        best = overlaps[box].max()
        kind[box] = "positive" if best >= 0.6 else "negative" if 0 <= best < 0.3 else "nothing "
    for index in range(9):
        if overlaps[:, index].max() >= 0.2:
            winners = overlaps[:, index] == overlaps[:, index].max()
            kind[winners], indices[winners] = "positive", index
    assert_assignment(match_rpn(boxes, truth), kind == "positive", kind == "negative", indices)


@given(seeds)
def test_the_best_of_several_shapes_counts(seed):
    rng = np.random.default_rng(seed)
    squares, objects = whole_boxes(rng, 40), whole_boxes(rng, 9)
    factors = ((1.0, 1.0), (2.0, 1.0), (1.0, 0.5))
    truth = plain.ground_truth(objects)
    ours = matching.best_match(jnp.asarray(squares), truth, 0.3, matching.iou_of_shapes(factors))
    centre, size = (squares[:, :2] + squares[:, 2:]) / 2, squares[:, 2:] - squares[:, :2]
    overlaps = np.max([
        plain.ious(np.concatenate([centre - size * each / 2, centre + size * each / 2], 1), objects)
        for each in np.array(factors)
    ], axis=0)  # fmt: skip
    np.testing.assert_allclose(ours.overlaps, overlaps.max(1), rtol=1e-5)
    np.testing.assert_array_equal(ours.indices, overlaps.argmax(1))


@given(seeds)
def test_dynamic_assignment_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    boxes, objects = whole_boxes(rng, 40), whole_boxes(rng, 9)
    boxes[:9] = objects + rng.integers(0, 3, (9, 1))
    overlaps = plain.ious(boxes, objects)
    sides = np.sqrt((objects[:, 2:] - objects[:, :2]).prod(1)) / 1.5
    thresholds = np.clip(0.25 + 0.15 * np.log2(np.maximum(sides, 1e-3) / 12), 0.20, 0.25)
    indices = overlaps.argmax(1)
    distance = overlaps.max(1) - thresholds[indices]
    positive = distance >= 0
    ours = match_released(boxes, plain.ground_truth(objects), jnp.array(1.5))
    decided = np.abs(distance) > 1e-6
    np.testing.assert_array_equal(np.asarray(ours.positive)[decided], positive[decided])
    np.testing.assert_array_equal(ours.indices, indices)
    assert not ours.negative.any()


def test_thresholds_are_inclusive_for_positives_and_exclusive_for_negatives():
    truth = plain.ground_truth([[0, 0, 8, 8]])
    boxes = jnp.array([[0.0, 0.0, 8.0, 4.0], [0.0, 0.0, 8.0, 3.0]])  # IoU 1/2 and 3/8
    ours = match_regions(boxes, truth)
    assert ours.positive.tolist() == [True, False] and ours.negative.tolist() == [False, True]
    dynamic = matching.match_dynamic(boxes, truth, jnp.array([0.375]), ignore_overlap=0.5)
    assert dynamic.positive.tolist() == [True, True]
    bounds = {"positive": 0.75, "negative": 0.375, "min_positive": None, "ignore_overlap": 0.5}
    assert matching.match_max_iou(boxes, truth, **bounds).negative.tolist() == [False, False]


def test_a_box_apart_from_every_object_is_not_positive_at_threshold_zero():
    truth = plain.ground_truth([[0, 0, 8, 8]])
    boxes = jnp.array([[20.0, 20.0, 28.0, 28.0], [0.0, 0.0, 8.0, 1.0]])
    ours = matching.match_dynamic(boxes, truth, jnp.array([0.0]), ignore_overlap=0.5)
    assert ours.positive.tolist() == [False, True]


# Ignore regions


def test_boxes_inside_regions_are_neither_positive_nor_negative():
    region = [100, 100, 140, 140]
    truth = plain.ground_truth([[0, 0, 8, 8], [110, 110, 120, 120]], regions=[region], size=6)
    boxes = jnp.array([
        [0.0, 0.0, 8.0, 8.0],
        [110.0, 110.0, 120.0, 120.0],  # an object's very box, but inside the region
        [105.0, 105.0, 115.0, 115.0],
        [95.0, 105.0, 105.0, 115.0],  # half inside: not more than half
        [50.0, 50.0, 60.0, 60.0],
    ])  # fmt: skip
    ignored = np.array([False, True, True, False, False])
    for ours in (match_fine(boxes, truth), match_regions(boxes, truth)):
        assert not (ours.positive & ignored).any() and not (ours.negative & ignored).any()
        assert ours.positive.tolist() == [True, False, False, False, False]
        assert ours.negative.tolist() == [False, False, False, True, True]
    dynamic = match_released(boxes, truth, jnp.array(1.0))
    assert dynamic.positive.tolist() == [True, False, False, False, False]


def test_a_slanted_region_is_smaller_than_its_hull():
    """A bar of 200 x 20 at 45 degrees, and an object in a corner of its upright hull, outside the bar."""
    bar, corner, middle = [100, 100, 200, 20, np.pi / 4], [150.0, 40.0, 160.0, 50.0], [95.0, 95.0, 105.0, 105.0]
    boxes = jnp.array([corner, middle])
    upright = plain.ground_truth([corner, middle], regions=[np.asarray(oriented.enclose(np.array(bar)))])
    standing = np.array([[155, 45, 10, 10, 0], [100, 100, 10, 10, 0], bar], np.float32)
    truth = dataclasses.replace(upright, oriented=jnp.asarray(standing))
    assert matching.inside_region(boxes, upright, 0.5).tolist() == [True, True]
    assert matching.inside_region(boxes, truth, 0.5).tolist() == [False, True]


def test_an_ignore_region_is_not_matched_as_an_object():
    truth = plain.ground_truth([[50, 50, 60, 60]], regions=[[0, 0, 8, 8]])
    ours = matching.best_match(jnp.array([[0.0, 0.0, 8.0, 8.0]]), truth)
    assert ours.overlaps[0] == 0 and ours.indices[0] == 0


# The reference's numbers


def golden_truth(data: dict, case: str, regions: bool) -> GroundTruth:
    """The objects of a golden case, and its ignore boxes where the case uses them."""
    ignored = data[f"{case}_gt_ignore"] if regions else ()
    return plain.ground_truth(data[f"{case}_gt"], size=MOST, regions=ignored)


def test_dynamic_assignment_agrees_with_the_reference(golden):
    data = golden("dynamic_assigner")
    checked = 0
    for number in range(int(data["n_cases"])):
        case = f"c{number:03d}"
        objects = len(data[f"{case}_gt"])
        if data[f"{case}_ignore_iof_thr"] > 0 and len(data[f"{case}_gt_ignore"]):
            continue  # with ignore boxes the reference measures the other share: of the ignore box, not of the anchor
        rows, columns = data[f"{case}_image_hw"]
        anchors = np.concatenate([
            anchor_grid((-(-int(rows) // stride), -(-int(columns) // stride)), stride, 2.0, (1.0,))
            for stride in (4, 8, 16, 32)
        ])  # fmt: skip
        truth, scale = golden_truth(data, case, regions=False), jnp.asarray(data[f"{case}_scale_ratio"])
        literal = thresholds_of("literal", truth.boxes, scale)[:objects]
        np.testing.assert_allclose(literal, data[f"{case}_gt_thr"], rtol=1e-4)
        ours = jax.tree.map(np.asarray, match_released(anchors, truth, scale))
        clear = data[f"{case}_ambiguous"] == 0
        expected = data[f"{case}_gt_inds"]  # -1 and 0 are both "not positive" here: the coarse stage has no negatives
        found = np.where(ours.positive, ours.indices + 1, 0)
        np.testing.assert_array_equal(found[clear], np.maximum(expected, 0)[clear], err_msg=case)
        if objects:
            np.testing.assert_allclose(ours.overlaps, data[f"{case}_max_overlaps"], rtol=1e-4, atol=1e-6)
        checked += (expected > 0).sum()
    assert checked > 1000


@pytest.mark.parametrize("match", [match_fine, match_regions], ids=["fine stage", "regions"])
def test_max_iou_assignment_agrees_with_the_reference(golden, match):
    data = golden("max_iou_assigner")
    first = 0 if match is match_fine else 1
    for number in range(first, int(data["n_cases"]), 2):
        case = f"c{number:03d}"
        boxes = data[f"{case}_boxes"]
        # Without objects the reference forgets the ignore boxes (cases 7, 8, ...): there all is negative.
        uses_regions = data[f"{case}_params"][4] > 0 and len(data[f"{case}_gt"]) > 0
        ours = jax.tree.map(np.asarray, match(boxes, golden_truth(data, case, regions=uses_regions)))
        clear = data[f"{case}_ambiguous"] == 0
        found = np.where(ours.positive, ours.indices + 1, np.where(ours.negative, 0, -1))
        np.testing.assert_array_equal(found[clear], data[f"{case}_gt_inds"][clear], err_msg=case)
        compared = data[f"{case}_max_overlaps"] >= 0  # the reference has -1 where a box is ignored
        np.testing.assert_allclose(
            ours.overlaps[compared], data[f"{case}_max_overlaps"][compared], rtol=1e-4, atol=1e-6, err_msg=case
        )
