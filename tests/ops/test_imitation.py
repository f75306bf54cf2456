"""Quality, jitter and choice of samples: the paper's equations as loops, and the reference's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.ops import imitation
from cfinet_jax.structures import RoiSamples
from tests import plain

SHIFTS, RESCALES = (0.3, 0.5), (0.97, 1.03)
OBJECTS, CLASSES, SLOTS, SAMPLES = 6, 3, 5, 20
seeds = st.integers(0, 2**32 - 1)


def some_samples(rng: np.random.Generator) -> RoiSamples:
    """Objects first (two of them ground truth), then background, then invalid slots."""
    kind = np.repeat([0, 1, 2], [8, 9, 3])
    is_object, valid = kind == 0, kind < 2
    matched = rng.integers(0, OBJECTS, SAMPLES)
    return jax.tree.map(
        jnp.asarray,
        RoiSamples(
            boxes=plain.some_boxes(rng, SAMPLES),
            labels=np.where(is_object, matched % CLASSES, CLASSES).astype(np.int32),
            matched=matched.astype(np.int32),
            overlaps=np.where(is_object, rng.uniform(0.5, 1, SAMPLES), rng.uniform(0, 0.5, SAMPLES)).astype(np.float32),
            source=np.r_[[1, 4], OBJECTS + np.arange(SAMPLES - 2)].astype(np.int32),
            is_object=is_object,
            valid=valid,
        ),
    )


# Quality


@given(seeds, st.sampled_from(["paper", "released"]))
def test_quality_equals_equations_3_and_4(seed, rule):
    rng = np.random.default_rng(seed)
    samples = some_samples(rng)
    probabilities = rng.dirichlet([0.3] * (CLASSES + 1), SAMPLES).astype(np.float32)
    predicted, true = plain.some_boxes(rng, SAMPLES, 30.0), plain.some_boxes(rng, SAMPLES, 30.0)
    ours = quality_of[rule](probabilities, samples, (predicted, true), 1.0)
    totals, counts = np.zeros(OBJECTS), np.zeros(OBJECTS)
    for k in range(8):
        label, index = int(samples.labels[k]), int(samples.matched[k])
        if samples.source[k] < OBJECTS:
            continue  # the ground truth itself is no prediction
        if rule == "paper" and probabilities[k].argmax() == label:  # Eq. 3
            totals[index] += probabilities[k, label] * plain.iou(predicted[k], true[k])
            counts[index] += 1
        if rule == "released" and probabilities[k, label] >= 0.05:
            totals[index] += probabilities[k, label] * float(samples.overlaps[k])
            counts[index] += 1
    np.testing.assert_array_equal(ours.count, counts)
    np.testing.assert_allclose(ours.value, totals / np.maximum(counts, 1), rtol=1e-4, atol=1e-6)  # Eq. 4


quality_of = {
    rule: jax.jit(lambda p, s, b, scale, f=function: f(p, s, b, OBJECTS, 0.05, scale))
    for rule, function in imitation.QUALITIES.items()
}


@given(seeds, st.sampled_from([0.5, 1.0, 1.5]))
def test_quality_by_size_knows_nothing_but_the_object(seed, scale):
    """Whatever is predicted; in stored pixels; every sampled object counts."""
    rng = np.random.default_rng(seed)
    samples = some_samples(rng)
    boxes = plain.some_boxes(rng, OBJECTS, 100.0, 80.0)
    predicted = plain.some_boxes(rng, SAMPLES)
    ours = quality_of["size"](rng.random((SAMPLES, CLASSES + 1)), samples, (predicted, boxes[samples.matched]), scale)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        sampled = (samples.is_object & samples.valid & (samples.matched == index)).any()
        side = np.sqrt((x2 - x1) * (y2 - y1)) / scale
        expected = min(1.0, side * 0.65 / 32) if sampled else 0.0
        np.testing.assert_allclose(ours.value[index], expected, rtol=1e-4, atol=1e-6)
        assert (ours.count[index] >= SAMPLES) == (expected > 0)


REGIONS, MOST = 256, 150  # of the golden cases, so that all have one shape


def golden_samples(data: dict, case: str) -> RoiSamples:
    """The regions that the reference sampled, objects first, padded."""
    positives, negatives = data[f"{case}_pos_inds"], data[f"{case}_neg_inds"]
    padding = REGIONS - len(positives) - len(negatives)

    def pad(of_objects: np.ndarray, otherwise: float = 0) -> jax.Array:
        rest = np.full(REGIONS - len(positives), otherwise)
        return jnp.asarray(np.r_[of_objects, rest].astype(of_objects.dtype))

    return RoiSamples(
        boxes=jnp.asarray(np.pad(data[f"{case}_sampled_boxes"], ((0, padding), (0, 0)))),
        labels=pad(data[f"{case}_pos_gt_labels"], 9),
        matched=pad(data[f"{case}_pos_assigned_gt_inds"]),
        overlaps=pad(data[f"{case}_pos_ious"]),
        source=jnp.asarray(np.r_[positives, negatives, np.full(padding, MOST)]),
        is_object=pad(np.ones(len(positives), bool)),
        valid=jnp.arange(REGIONS) < REGIONS - padding,
    )


@jax.jit
def golden_quality(probabilities: jax.Array, samples: RoiSamples, boxes: tuple) -> imitation.Quality:
    return imitation.quality_released(probabilities, samples, boxes, MOST, 0.05, jnp.ones(()))


def test_quality_agrees_with_the_reference(golden):
    data = golden("fi_quality")
    for number in range(int(data["n_cases"])):
        case = f"c{number:02d}"
        samples, objects = golden_samples(data, case), len(data[f"{case}_gt"])
        is_self = np.asarray(samples.source[samples.is_object]) < objects
        np.testing.assert_array_equal(is_self, data[f"{case}_pos_is_gt"])
        # Regions are counted behind the padded objects.
        source = samples.source + jnp.where(samples.source < objects, 0, MOST - objects)
        samples = dataclasses.replace(samples, source=source)
        logits = data[f"{case}_cls_logits"]
        probabilities = jax.nn.softmax(jnp.asarray(np.pad(logits, ((0, REGIONS - len(logits)), (0, 0)))))
        ours = golden_quality(probabilities, samples, (samples.boxes, samples.boxes))
        np.testing.assert_allclose(ours.value[:objects], data[f"{case}_iq"], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(ours.count[:objects], data[f"{case}_count"])


# Jitter


def jitter(boxes: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    return np.asarray(imitation.jitter(jnp.asarray(boxes, jnp.float32), jnp.array(size), SHIFTS, RESCALES))


def test_jitter_equals_the_intended_transformation():
    size = (50.0, 100.0)  # height, width
    boxes = np.float32([[10, 10, 30, 20], [80, 2, 98, 45], [0, 0, 100, 50]])
    expected = np.zeros((3, 10, 4))
    for box, row in zip(boxes, expected, strict=True):
        x1, y1, x2, y2 = box
        width, height, copies = x2 - x1, y2 - y1, []
        for shift in SHIFTS:
            for x, y in ((shift * width, 0), (0, shift * height), (-shift * width, 0), (0, -shift * height)):
                copies.append([x1 + x, y1 + y, x2 + x, y2 + y])
        for scale in RESCALES:
            x, y = (scale - 1) * width / 2, (scale - 1) * height / 2
            copies.append([x1 - x, y1 - y, x2 + x, y2 + y])
        row[:] = np.clip(copies, 0, [size[1], size[0], size[1], size[0]])
    np.testing.assert_allclose(jitter(boxes, size), expected, rtol=1e-5, atol=1e-4)


def test_jitter_agrees_with_the_reference_but_for_its_errors(golden):
    data = golden("fi_quality")
    compared = 0
    for number in range(int(data["n_cases"])):
        case = f"c{number:02d}"
        if f"{case}_hq_boxes_in" not in data:
            continue
        boxes, size = data[f"{case}_hq_boxes_in"], data[f"{case}_image_size"]
        assert size[0] == size[1]  # the reference clips both axes to the height
        count = len(boxes)
        theirs = data[f"{case}_aug_boxes"].reshape(count, 10, 4)
        # Error of the reference: the rescaled boxes come scale by scale but are cut up object by object.
        rescaled = theirs[:, 8:].reshape(2, count, 4).transpose(1, 0, 2)
        np.testing.assert_allclose(jitter(boxes, tuple(map(float, size)))[:, 8:], rescaled, rtol=1e-4, atol=1e-3)
        # Error of the reference: a shift in x uses the height and one in y the width. So turn the boxes by 90
        # degrees about their centres before, and back after; boxes that were clipped cannot be turned back.
        turned = jitter(turn(boxes), (1e4, 1e4))[:, :8]
        inside = (theirs[:, :8] > 0).all(-1) & (theirs[:, :8] < size[0]).all(-1) & (turned > 0).all(-1)
        np.testing.assert_allclose(turn(turned)[inside], theirs[:, :8][inside], rtol=1e-4, atol=1e-3)
        compared += inside.sum()
    assert compared > 20


def turn(boxes: np.ndarray) -> np.ndarray:
    """Boxes turned by 90 degrees about their centres."""
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2])[..., ::-1] / 2
    return np.concatenate([centre - half, centre + half], -1)


# Choice of samples


def highest(priorities: np.ndarray, candidates: list[int], quota: int) -> set[int]:
    return set(sorted(candidates, key=lambda k: -priorities[k])[: max(quota, 0)])


def algorithm_1(labels, quality_class, own_exemplar, samples, filled, priorities, negatives, size):
    """Lines 4-10 of Algorithm 1: positives of the memory, whether jittered boxes, negatives, for every object."""
    background = [k for k in range(SAMPLES) if samples.valid[k] and not samples.is_object[k]]
    total = min(len(background), size)
    for index, label in enumerate(labels):
        share = (0.5, 0.25, 0.0)[quality_class[index]]
        own = [slot for slot in range(SLOTS) if filled[label, slot]]
        positives = {label * SLOTS + slot for slot in highest(priorities[0][index], own, int(total * share))}
        jitters = int(own_exemplar[index].any()) * 10
        if negatives == "paper":
            others = [c * SLOTS + s for c in range(CLASSES) for s in range(SLOTS) if c != label and filled[c, s]]
            candidates = background + [SAMPLES + slot for slot in others]
        else:
            candidates = [k for k in range(SAMPLES) if samples.valid[k] and int(samples.labels[k]) != label]
        yield positives, jitters, highest(priorities[1][index], candidates, total - len(positives) - jitters)


@given(seeds, st.sampled_from(["paper", "image"]), st.sampled_from([6, 16]))
def test_choice_equals_algorithm_1(seed, negatives, size):
    rng = np.random.default_rng(seed)
    samples, filled = some_samples(rng), np.arange(SLOTS) < rng.integers(0, SLOTS + 1, (CLASSES, 1))
    labels, quality_class = rng.integers(0, CLASSES, OBJECTS), rng.integers(0, 3, OBJECTS)
    own_exemplar = np.zeros((OBJECTS, 2), bool)
    for place, index in enumerate(np.flatnonzero(quality_class == 2)[:2]):
        own_exemplar[index, place] = True
    candidates = SAMPLES + (CLASSES * SLOTS if negatives == "paper" else 0)
    priorities = rng.random((OBJECTS, SLOTS)).astype(np.float32), rng.random((OBJECTS, candidates)).astype(np.float32)
    contrast = jax.tree.map(
        np.asarray,
        choose_of[negatives, size](labels, quality_class, own_exemplar, samples, filled, priorities),
    )
    expected = algorithm_1(labels, quality_class, own_exemplar, samples, filled, priorities, negatives, size)
    for index, (positives, jitters, rest) in enumerate(expected):
        assert set(np.flatnonzero(contrast.exemplars[index])) == positives
        assert contrast.jitters[index].sum() == jitters
        assert set(np.flatnonzero(contrast.negatives[index])) == rest
        slots = np.flatnonzero(contrast.negatives[index][SAMPLES:])
        assert labels[index] not in slots // SLOTS  # never an exemplar of its own class


choose_of = {
    (negatives, size): jax.jit(
        lambda *a, n=negatives, s=size: imitation.choose_contrast(
            *a, negatives=n, size=s, positive_fractions=(0.5, 0.25), jitters=10
        )
    )
    for negatives in ("paper", "image")
    for size in (6, 16)
}


@jax.jit
def golden_choice(labels, quality_class, own_exemplar, samples, filled):
    """The choice of the released code, drawing the first n, as the reference was made to do."""
    first = [jnp.tile(jnp.linspace(1, 0, n), (MOST, 1)) for n in (filled.shape[1], REGIONS)]
    return imitation.choose_contrast(
        labels, quality_class, own_exemplar, samples, filled, tuple(first),
        negatives="image", size=128, positive_fractions=(0.5, 0.25), jitters=10,
    )  # fmt: skip


def test_choice_agrees_with_the_reference(golden):
    data = golden("fi_quality")
    slots, compared = 128, 0
    for number in range(int(data["n_cases"])):
        case = f"c{number:02d}"
        if not data[f"{case}_sample_ok"]:
            continue
        padding = (0, MOST - len(data[f"{case}_gt"]))
        filled = np.arange(slots) < np.bincount(data[f"{case}_queue_labels"], minlength=9)[:, None]
        exemplars = np.pad(data[f"{case}_hq_gt_inds"], (0, 3 - len(data[f"{case}_hq_gt_inds"])), constant_values=-1)
        names = ("gt_labels", "iq_signs", "ex_pos_nums")
        labels, quality_class, wanted = (np.pad(data[f"{case}_{name}"].astype(np.int32), padding) for name in names)
        own = np.arange(MOST)[:, None] == exemplars
        samples = golden_samples(data, case)
        contrast = jax.tree.map(np.asarray, golden_choice(labels, quality_class, own, samples, filled))
        for place, index in enumerate(data[f"{case}_actual_gt_inds"]):  # the rows of the reference
            row, positive = data[f"{case}_sample_inds"][place], data[f"{case}_pos_signs"][place] > 0
            np.testing.assert_array_equal(np.flatnonzero(contrast.negatives[index]), np.sort(row[~positive]))
            kind = data[f"{case}_is_hq"][row[positive]]  # 1 from the queue, -1 jittered
            assert contrast.jitters[index].sum() == (kind == -1).sum()
            of_class = contrast.exemplars[index].reshape(9, slots)
            assert of_class.sum() == of_class[labels[index]].sum() == (kind == 1).sum()
            if quality_class[index] < 2:
                assert of_class.sum() == min(wanted[index], filled[labels[index]].sum())
            compared += 1
    assert compared > 200


@pytest.mark.parametrize("negatives", ["paper", "image"])
def test_without_background_there_is_nothing_to_compare_with(rng, negatives):
    samples = some_samples(rng)
    nothing = jnp.zeros(SAMPLES, bool)
    samples = dataclasses.replace(samples, valid=nothing, is_object=nothing)
    candidates = SAMPLES + (CLASSES * SLOTS if negatives == "paper" else 0)
    contrast = choose_of[negatives, 6](
        np.zeros(OBJECTS, int), np.zeros(OBJECTS, int), np.zeros((OBJECTS, 2), bool), samples,
        np.ones((CLASSES, SLOTS), bool), (np.ones((OBJECTS, SLOTS)), np.ones((OBJECTS, candidates))),
    )  # fmt: skip
    assert not any(np.asarray(part).any() for part in contrast)
