"""NMS against the greedy loop and the reference's numbers, at every threshold."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cfinet_jax.boxes import horizontal, oriented
from cfinet_jax.ops import nms
from tests import oriented as reference
from tests import plain

THRESHOLDS = (0.05, 0.3, 0.5, 0.7, 0.9)
COUNT = 24
seeds = st.integers(0, 2**32 - 1)
suppress = {threshold: jax.jit(lambda b, v, t=threshold: nms.suppress(b, v, t)) for threshold in THRESHOLDS}


def greedy(boxes: np.ndarray, valid: np.ndarray, threshold: float) -> np.ndarray:
    """The definition: best first, each kept unless a kept one overlaps it by more than the threshold."""
    kept: list[int] = []
    for index in np.flatnonzero(valid):
        if all(np.float32(plain.iou(boxes[k], boxes[index])) <= np.float32(threshold) for k in kept):
            kept.append(index)
    marks = np.zeros(len(boxes), bool)
    marks[kept] = True
    return marks


@given(seeds, st.sampled_from(THRESHOLDS))
def test_suppress_equals_the_greedy_loop_and_is_idempotent(seed, threshold):
    rng = np.random.default_rng(seed)
    boxes = plain.some_boxes(rng, COUNT, extent=40.0).round()
    boxes[5] = boxes[1]
    valid = rng.random(COUNT) < 0.8
    keep = np.asarray(suppress[threshold](boxes, valid))
    np.testing.assert_array_equal(keep, greedy(boxes, valid, threshold))
    np.testing.assert_array_equal(suppress[threshold](boxes, keep), keep)


def test_a_suppressed_box_suppresses_nobody():
    chain = np.float32([[x, 0, x + 10, 10] for x in (0, 4, 8, 12, 16)])  # neighbours overlap by 3/7
    assert suppress[0.3](chain, np.ones(5, bool)).tolist() == [True, False, True, False, True]


def test_an_overlap_of_exactly_the_threshold_is_allowed():
    boxes = np.float32([[0, 0, 8, 8], [0, 0, 8, 4]])
    assert suppress[0.5](boxes, np.ones(2, bool)).tolist() == [True, True]


def test_equal_scores_go_by_index_and_invalid_come_last():
    boxes = jnp.array([[0.0, 0.0, 8.0, 8.0]] * 4)
    valid = jnp.array([False, True, True, True])
    order, keep = nms.sort_and_suppress(boxes, jnp.array([0.9, 0.4, 0.7, 0.7]), valid, 0.5)
    assert order.tolist() == [2, 3, 1, 0]
    assert keep.tolist() == [True, False, False, False]


# The reference's numbers


def test_class_agnostic_nms_agrees_with_the_reference(golden):
    data = golden("nms")
    for case in range(int(data["n_plain"])):
        boxes, scores = jnp.asarray(data[f"plain{case}_boxes"]), jnp.asarray(data[f"plain{case}_scores"])
        order, keep = nms.sort_and_suppress(boxes, scores, scores >= 0, float(data[f"plain{case}_thr"]))
        np.testing.assert_array_equal(np.asarray(order)[np.asarray(keep)], data[f"plain{case}_keep"])


def test_nms_within_groups_agrees_with_the_reference(golden):
    data = golden("nms")
    for case in range(int(data["n_plain"])):
        boxes, scores = jnp.asarray(data[f"plain{case}_boxes"]), jnp.asarray(data[f"plain{case}_scores"])
        groups = data[f"batched{case}_ids"]
        of_group = jax.jit(lambda b, s, v, t=float(data[f"plain{case}_thr"]): nms.sort_and_suppress(b, s, v, t))
        kept = []
        for group in np.unique(groups):
            order, keep = of_group(boxes, scores, groups == group)
            kept.extend(np.asarray(order)[np.asarray(keep)])
        kept.sort(key=lambda index: -float(scores[index]))
        np.testing.assert_array_equal(kept, data[f"batched{case}_keep"])


class_wise = jax.jit(nms.class_wise, static_argnames=("min_score", "max_overlap", "max_detections"))


def test_class_wise_nms_agrees_with_the_reference(golden):
    data = golden("nms")
    for case in range(int(data["n_multi"])):
        found = class_wise(
            jnp.asarray(data[f"multi{case}_boxes"]).reshape(-1, 9, 4),
            jnp.asarray(data[f"multi{case}_scores"])[:, :9],  # the last is background
            jnp.ones(120, bool),
            min_score=float(data["multi_score_thr"]),
            max_overlap=float(data["multi_iou_thr"]),
            max_detections=int(data[f"multi{case}_max_num"]),
        )
        count = len(data[f"multi{case}_dets"])
        assert found.valid.tolist() == [True] * count + [False] * (len(found.valid) - count)
        np.testing.assert_array_equal(found.labels[:count], data[f"multi{case}_labels"])
        np.testing.assert_allclose(found.boxes[:count], data[f"multi{case}_dets"][:, :4], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.scores[:count], data[f"multi{case}_dets"][:, 4], rtol=1e-4)


# Detections


def test_classes_do_not_suppress_each_other_and_scores_must_exceed_the_limit():
    boxes = jnp.tile(jnp.array([0.0, 0.0, 8.0, 8.0]), (2, 2, 1))  # two equal boxes for each of two classes
    scores, limits = jnp.array([[0.9, 0.2], [0.8, 0.6]]), {"max_overlap": 0.5, "max_detections": 6}
    found = class_wise(boxes, scores, jnp.ones(2, bool), min_score=0.05, **limits)
    assert found.labels[found.valid].tolist() == [0, 1]
    np.testing.assert_allclose(found.scores, [0.9, 0.6, 0, 0, 0, 0])
    scores = jnp.array([[0.5, 0.25], [0.0, 0.75]])
    found = class_wise(boxes, scores, jnp.array([True, False]), min_score=0.25, **limits)
    np.testing.assert_allclose(found.scores, [0.5, 0, 0, 0, 0, 0])
    assert found.valid.tolist() == [True] + [False] * 5


# Oriented boxes

rotated = {t: jax.jit(lambda b, v, t=t: nms.suppress(b, v, t, oriented.iou)) for t in (0.1, *THRESHOLDS)}


@given(seeds, st.sampled_from(tuple(rotated)))
def test_rotated_nms_equals_the_greedy_loop(seed, threshold):
    rng = np.random.default_rng(seed)
    boxes, valid = reference.some_boxes(rng, COUNT, extent=40.0), rng.random(COUNT) < 0.8
    boxes[5] = boxes[1]
    overlaps = reference.ious(boxes, boxes)
    assume(np.abs(overlaps - threshold).min() > 1e-5)  # a tie is nobody's
    kept: list[int] = []
    for index in np.flatnonzero(valid):
        if (overlaps[index, kept] <= threshold).all():
            kept.append(index)
    np.testing.assert_array_equal(np.flatnonzero(rotated[threshold](boxes, valid)), kept)


@pytest.mark.parametrize("similarity", [horizontal.iou, oriented.iou])
def test_boxes_that_classes_share_are_treated_as_their_own(rng, similarity):
    boxes = plain.some_boxes(rng, 40) if similarity is horizontal.iou else reference.some_boxes(rng, 40)
    boxes, scores, valid = (
        jnp.asarray(boxes),
        jnp.asarray(rng.random((40, 3)).round(1)),
        jnp.asarray(rng.random(40) < 0.9),
    )
    limits = {"min_score": 0.2, "max_overlap": 0.3, "max_detections": 150, "similarity": similarity}
    of_classes = jax.jit(partial(nms.class_wise, **limits))(jnp.repeat(boxes[:, None], 3, 1), scores, valid)
    shared = jax.jit(partial(nms.class_wise_shared, **limits))(boxes, scores, valid)
    assert 20 < shared.valid.sum() < 110
    for name in ("valid", "boxes", "scores", "labels"):
        ours, expected = getattr(shared, name)[shared.valid], getattr(of_classes, name)[of_classes.valid]
        np.testing.assert_array_equal(ours, expected, err_msg=name)
