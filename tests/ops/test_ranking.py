"""Assignment by rank and by receptive field, and max-IoU's by other similarities, against float64 loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.boxes.similarity import SIMILARITIES
from cfinet_jax.ops import matching, ranking
from cfinet_jax.ops.matching import Assignment
from cfinet_jax.structures import GroundTruth
from configs.sodad import get_config
from tests import plain

CONSTANTS = get_config().detector.similarities.to_dict()
MEASURES = {name: partial(function, **CONSTANTS[name]) for name, function in SIMILARITIES.items()}
FIELDS = np.float32([17.5] * 24 + [45.5] * 16)
RKA = {"most": 2, "negative": 0.3}
RFLA: dict = {"most": (3, 1), "shrink": 0.9, "negative": 0.8}
THRESHOLDS = {"positive": 0.7, "negative": 0.3, "min_positive": 0.3}
seeds = st.integers(0, 2**32 - 1)


def by_threshold(name: str):
    """Max-IoU assignment by another similarity."""
    return jax.jit(
        lambda boxes, truth: matching.match_max_iou(
            boxes, truth, **THRESHOLDS, ignore_overlap=0.5, similarity=MEASURES[name]
        )
    )


def by_receptive_field(boxes, truth, **changed) -> Assignment:
    """RFLA; the last boxes are of a coarser level."""
    return ranking.match_receptive_field(
        jnp.asarray(boxes), jnp.asarray(FIELDS), truth, MEASURES["kl"], **RFLA | changed, ignore_overlap=0.5
    )


RULES = {
    "nwd": by_threshold("nwd"),
    "dotd": by_threshold("dotd"),
    "rka": jax.jit(lambda b, t: ranking.match_ranking(b, t, MEASURES["nwd"], **RKA, ignore_overlap=0.5)),
    "rfla": jax.jit(by_receptive_field),
}


def scene(seed: int, objects: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Forty boxes and some objects, a few of them near a box; no two similarities are equal."""
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 100, (40, 2, 2)), 1).reshape(40, 4)
    corner = rng.uniform(0, 80, (objects, 2))
    truth = np.concatenate([corner, corner + rng.uniform(3, 20, (objects, 2))], 1)
    near = min(objects, 6)
    boxes[:near] = truth[:near] + rng.uniform(-2, 2, (near, 4))
    return boxes.astype(np.float32), truth.astype(np.float32)


def matrix(name: str, boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Similarities of every pair in float64."""
    return np.array([[plain.similarity(name, x, y, CONSTANTS[name]) for y in objects] for x in boxes])


def claims(similarities: np.ndarray, most: int, allowed: np.ndarray) -> np.ndarray:
    """The object that gets each box, -1 where none wants it: every object wants its best ones of those `allowed`."""
    claimed = np.full(len(similarities), -1)
    for index in range(similarities.shape[1]):
        for box in sorted(np.flatnonzero(allowed), key=lambda k: -similarities[k, index])[:most]:
            if claimed[box] < 0 or similarities[box, index] > similarities[box, claimed[box]]:
                claimed[box] = index
    return claimed


def resized(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Around the same centre, at the same ratio, with another area."""
    result = []
    for (x1, y1, x2, y2), side in zip(np.float64(boxes), np.float64(sides), strict=True):
        width, height = max(x2 - x1, 1e-6), max(y2 - y1, 1e-6)
        width, height = side * np.sqrt(width / height), side * np.sqrt(height / width)
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        result.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return np.array(result)


def kinds(rule: str, boxes: np.ndarray, objects: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By a loop: 1 for positive boxes, 0 for negative ones, -1 for the others; and their objects."""
    allowed = plain.shares(boxes, regions).max(1, initial=0) <= 0.5
    if rule == "rfla":
        first, second = (matrix("kl", resized(boxes, scale * FIELDS), objects) for scale in (1.0, 0.9))
        earlier, later = claims(first, 3, allowed), claims(second, 1, allowed)
        claimed, best, low = np.where(earlier >= 0, earlier, later), second.max(1), 0.8
    elif rule == "rka":
        similarities = matrix("nwd", boxes, objects)
        claimed, best, low = claims(similarities, 2, allowed), similarities.max(1), 0.3
    else:
        similarities = matrix(rule, boxes, objects)
        best, low = similarities.max(1), 0.3
        claimed = np.where((best >= 0.7) & allowed, similarities.argmax(1), -1)
        for index in range(len(objects)):
            if similarities[allowed, index].max() >= 0.3:
                claimed[np.where(allowed, similarities[:, index], -1).argmax()] = index
    return np.where(claimed >= 0, 1, np.where((best < low) & allowed, 0, -1)), claimed


def assert_kinds(ours: Assignment, kind: np.ndarray, claimed: np.ndarray) -> None:
    found = np.where(ours.positive, 1, np.where(ours.negative, 0, -1))
    np.testing.assert_array_equal(found, kind)
    assert not (np.asarray(ours.positive) & np.asarray(ours.negative)).any()
    np.testing.assert_array_equal(np.asarray(ours.indices)[kind == 1], claimed[kind == 1])


@given(seeds, st.sampled_from(sorted(RULES)), st.integers(0, 3))
def test_assignments_equal_the_loop(seed, rule, count):
    """Boxes in one of `count` ignore regions are taken out before any object gets its best."""
    boxes, objects = scene(seed)
    regions = objects[:count] + np.float32([-1.5, -1.5, 7, 1.5])
    kind, claimed = kinds(rule, boxes, objects, regions)
    assert (kind == 1).any()
    assert_kinds(RULES[rule](boxes, plain.ground_truth(objects, regions=regions, size=12)), kind, claimed)


@given(seeds)
def test_streamed_ranking_equals_the_whole_matrix(seed):
    """70 objects are three chunks; equal boxes and objects tie, and the first of them wins."""
    rng = np.random.default_rng(seed)
    boxes, objects = plain.some_boxes(rng, 40).round(), plain.some_boxes(rng, 70).round()
    boxes[20:30], objects[50:60] = boxes[:10], objects[:10]
    real = rng.random(70) < 0.8
    truth = GroundTruth(jnp.asarray(objects), jnp.zeros(70, jnp.int32), jnp.asarray(real), jnp.zeros(70, bool))
    ours = ranked(boxes, truth)
    similarities = np.where(real, MEASURES["nwd"](jnp.asarray(boxes), jnp.asarray(objects)), -1)
    np.testing.assert_allclose(ours.overlaps, similarities.max(1), rtol=1e-6)
    best = np.asarray(ours.indices)
    np.testing.assert_allclose(similarities[np.arange(40), best], similarities.max(1), rtol=1e-6)
    assert not (real[best - 50] & (best >= 50) & (best < 60)).any()  # its equal comes first
    wanted = np.full((40, 70), -1.0)
    for index in np.flatnonzero(real):
        chosen = np.argsort(-similarities[:, index], kind="stable")[:3]
        wanted[chosen, index] = similarities[chosen, index]
    claimed = np.asarray(ours.strength) >= 0
    np.testing.assert_array_equal(claimed, wanted.max(1) >= 0)
    np.testing.assert_array_equal(np.asarray(ours.claims)[claimed], wanted.argmax(1)[claimed])


ranked = jax.jit(lambda boxes, truth: ranking.rank(boxes, truth, 3, MEASURES["nwd"], jnp.ones(40, bool)))


def test_of_equal_boxes_the_first_are_taken_and_exactly_as_many_as_wanted():
    boxes = jnp.tile(jnp.array([[0.0, 0.0, 8.0, 8.0]]), (40, 1))
    truth = plain.ground_truth([[1, 0, 9, 8], [0, 1, 8, 9]])  # both as far away
    ours = RULES["rka"](boxes, truth)
    assert ours.positive.tolist() == [True, True] + [False] * 38
    assert ours.indices[:2].tolist() == [0, 0]
    assert not ours.negative.any()  # nor are the others: they resemble an object


def test_a_box_that_two_objects_want_goes_to_the_more_similar():
    boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [60.0, 60.0, 68.0, 68.0]])
    for first, second in (([3, 0, 11, 8], [1, 0, 9, 8]), ([1, 0, 9, 8], [3, 0, 11, 8])):
        ours = ranking.rank(boxes, plain.ground_truth([first, second]), 1, MEASURES["nwd"], jnp.ones(2, bool))
        assert ours.strength.tolist()[1] == -1 and ours.claims[0] == (first[0] > second[0])


def test_there_may_be_fewer_boxes_than_an_object_wants():
    """All boxes there are, or those of three that are not in an ignore region."""
    of_five = partial(ranking.match_ranking, similarity=MEASURES["nwd"], most=5, negative=0.3, ignore_overlap=0.5)
    assert of_five(jnp.zeros((1, 4)), plain.ground_truth([[0, 0, 8, 8]])).positive.tolist() == [True]
    boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [2.0, 0.0, 10.0, 8.0], [30.0, 0.0, 38.0, 8.0]])
    ours = of_five(boxes, plain.ground_truth([[0, 0, 8, 8]], regions=[[-2, -2, 12, 12]]))
    assert ours.positive.tolist() == [False, False, True] and not ours.negative.any()


@pytest.mark.parametrize("rule", RULES)
def test_without_objects_all_is_background(rule):
    boxes, _ = scene(0)
    ours = RULES[rule](boxes, plain.ground_truth(np.zeros((0, 4)), size=70))
    assert not ours.positive.any() and ours.negative.all() and not np.asarray(ours.overlaps).any()


@given(seeds, st.sampled_from(sorted(RULES)))
def test_padding_never_matters(seed, rule):
    boxes, objects = scene(seed)
    tight, padded = (RULES[rule](boxes, plain.ground_truth(objects, size=size)) for size in (0, 70))
    jax.tree.map(np.testing.assert_array_equal, tight, padded)


@pytest.mark.parametrize("rule", RULES)
def test_regions_silence_the_boxes_inside_them_and_are_no_objects(rule):
    boxes, objects = scene(1)
    boxes[10], boxes[11] = [210, 210, 220, 220], [195, 205, 205, 215]  # inside; half inside
    region = [200, 200, 240, 240]
    without = RULES[rule](boxes, plain.ground_truth(objects, size=12))
    within = RULES[rule](boxes, plain.ground_truth(objects, regions=[region], size=12))
    ignored = np.arange(40) == 10
    assert not (within.positive | within.negative)[ignored].any()
    for field in ("positive", "negative", "indices"):
        np.testing.assert_array_equal(getattr(within, field)[~ignored], getattr(without, field)[~ignored])
    assert within.negative[11]


def test_priors_have_the_area_of_the_field_and_the_ratio_of_the_box(rng):
    boxes = plain.some_boxes(rng, 40)
    boxes[:, 2:] += 1
    ours = np.asarray(ranking.resize(jnp.asarray(boxes), jnp.asarray(FIELDS)))
    np.testing.assert_allclose(ours, resized(boxes, FIELDS), rtol=1e-4, atol=1e-3)
    empty = ranking.resize(jnp.array([[5.0, 6.0, 5.0, 6.0]]), jnp.array([4.0]))
    np.testing.assert_allclose(empty, [[3, 4, 7, 8]], rtol=1e-5)


def test_the_smaller_priors_add_a_box_where_another_level_has_become_the_best():
    """An object of 30 pixels lies between priors of 17.5 and 45.5: the former win at first, the latter when smaller."""
    boxes = np.tile(np.float32([[500, 500, 510, 510]]), (40, 1))
    boxes[[0, 1, 2, 24]] = [40, 40, 60, 60]
    truth = plain.ground_truth([[35, 35, 65, 65]])
    assert np.flatnonzero(RULES["rfla"](boxes, truth).positive).tolist() == [0, 1, 2, 24]
    ours = jax.jit(partial(by_receptive_field, most=(3, 0)))(boxes, truth)
    assert np.flatnonzero(ours.positive).tolist() == [0, 1, 2]
    assert not ours.positive[24] and ours.negative.sum() == 36
