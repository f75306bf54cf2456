"""Heads for oriented boxes: losses and detections against plain loops, and which region stands for which object."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.boxes import oriented
from cfinet_jax.models.roi_head import Predictions
from cfinet_jax.models.rotated_roi_head import OrientedRoiHead, RotatedRoiHead
from cfinet_jax.ops.rotated_roi_align import rotated_roi_align
from cfinet_jax.structures import GroundTruth, Proposals, RoiSamples
from configs import sodaa
from tests import plain, tiny
from tests.oriented import ious, some_boxes

SETTINGS = {k: v for k, v in tiny.settings("", sodaa).roi_head.to_dict().items() if k != "name"}
STDS = np.array(SETTINGS["stds"])
IMAGES, REGIONS, OBJECTS = 2, 24, 9  # of the regions these are objects, the last four are padding


def head(kind=RotatedRoiHead, **changed) -> RotatedRoiHead:
    return kind(**{"classes": 9, "ignore_overlap": 0.5} | SETTINGS | changed)


def encode(region: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The numbers that lead from an upright region to an oriented box, one by one."""
    x1, y1, x2, y2 = region
    x, y, w, h, angle = box

    def norm(value):
        return (value + math.pi / 2) % math.pi - math.pi / 2

    straight, swapped = norm(angle), norm(angle + math.pi / 2)
    if abs(swapped) <= abs(straight):
        w, h, straight = h, w, swapped
    offset = (x - (x1 + x2) / 2) / (x2 - x1), (y - (y1 + y2) / 2) / (y2 - y1)
    return np.array([*offset, np.log(w / (x2 - x1)), np.log(h / (y2 - y1)), straight / (2 * math.pi)]) / STDS


def decode(region: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """The box to which numbers lead from an upright region; its longer side is w."""
    x1, y1, x2, y2 = region
    dx, dy, dw, dh, turn = deltas * STDS
    w, h, angle = (x2 - x1) * np.exp(dw), (y2 - y1) * np.exp(dh), turn * 2 * math.pi
    w, h, angle = (w, h, angle) if w >= h else (h, w, angle + math.pi / 2)
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    return np.array([x, y, w, h, (angle + math.pi / 2) % math.pi - math.pi / 2])


@pytest.fixture
def predicted(rng):
    """Samples of two images, with predictions."""
    batch = tiny.turned(tiny.batch())
    matched = rng.integers(0, 6, (IMAGES, REGIONS)).astype(np.int32)
    kind = np.broadcast_to(np.repeat([0, 1, 2], [OBJECTS, REGIONS - OBJECTS - 4, 4]), (IMAGES, REGIONS))
    labels = np.take_along_axis(np.asarray(batch.ground_truth.labels), matched, 1)
    boxes = plain.some_boxes(rng, IMAGES * REGIONS).reshape(IMAGES, REGIONS, 4) + np.float32([0, 0, 2, 2])
    samples = RoiSamples(
        boxes, np.where(kind == 0, labels, 9).astype(np.int32), matched,
        rng.random((IMAGES, REGIONS)).astype(np.float32),
        np.tile(np.arange(REGIONS, dtype=np.int32), (IMAGES, 1)), kind == 0, kind < 2,
    )  # fmt: skip
    logits, deltas = rng.normal(size=(IMAGES, REGIONS, 10)), rng.normal(size=(IMAGES, REGIONS, 1, 5))
    predictions = Predictions(np.float32(logits), np.float32(deltas))
    return jax.tree.map(jnp.asarray, (predictions, samples, batch))


losses = jax.jit(lambda *a: head().apply({}, *a, method="losses"))


@pytest.mark.parametrize("kind", [RotatedRoiHead, OrientedRoiHead])
def test_a_head_predicts_as_many_numbers_as_a_box_has(kind):
    assert kind.numbers == len(encode(np.array([0, 0, 4, 4]), np.array([1, 2, 3, 1, 0.1])))


def test_losses_equal_the_loop(predicted):
    predictions, samples, batch = predicted
    terms, _ = losses(*predicted)
    for image in range(IMAGES):
        distance = 0.0
        for k in range(OBJECTS):
            box = np.asarray(batch.ground_truth.oriented[image, samples.matched[image, k]], np.float64)
            target = encode(np.asarray(samples.boxes[image, k], np.float64), box)
            apart = np.abs(np.asarray(predictions.deltas[image, k, 0]) - target)
            distance += np.where(apart < 1, apart**2 / 2, apart - 0.5).sum()
        np.testing.assert_allclose(terms["box"].total[image], distance, rtol=1e-3)
        assert terms["class"].count[image] == terms["box"].count[image] == REGIONS - 4


def test_without_samples_losses_are_zero_and_finite(predicted):
    predictions, samples, batch = predicted
    nothing = jnp.zeros((IMAGES, REGIONS), bool)
    samples = dataclasses.replace(samples, boxes=0 * samples.boxes, is_object=nothing, valid=nothing)
    gradient = jax.grad(lambda p: sum(t.total.sum() for t in losses(p, samples, batch)[0].values()))(predictions)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient))


def test_detections_equal_the_loop(rng):
    boxes = plain.some_boxes(rng, 12, 60.0) + np.float32([0, 0, 3, 3])
    proposals = Proposals(boxes, np.full(12, 0.5, np.float32), np.arange(12) < 10)
    logits, deltas = rng.normal(0, 2, (12, 4)).astype(np.float32), rng.normal(size=(12, 1, 5)).astype(np.float32)
    height, width = 50.0, 70.0
    module = head(classes=3, min_score=0.2, nms_overlap=0.1, max_detections=9)
    one = jax.tree.map(lambda x: jnp.asarray(x)[None], (Predictions(logits, deltas), proposals))
    found = jax.jit(lambda *a: module.apply({}, *a, jnp.array([[height, width]]), method="detect"))(*one)
    decoded = np.array([decode(box, of_box[0]) for box, of_box in zip(boxes, deltas, strict=True)])
    decoded[:, :2] = np.clip(decoded[:, :2], 0, [width, height])
    alike, scores = ious(decoded, decoded), np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    kept = []
    for label in range(3):
        of_class: list[int] = []
        for k in np.argsort(-scores[:, label]):
            if k < 10 and scores[k, label] > 0.2 and (alike[k, of_class] <= 0.1).all():
                of_class.append(k)
                kept.append((scores[k, label], label, decoded[k]))
    kept = sorted(kept, key=lambda each: -each[0])[:9]
    assert len(kept) > 4 and int(found.valid.sum()) == len(kept)
    for k, (score, label, box) in enumerate(kept):
        np.testing.assert_allclose(found.scores[0, k], score, rtol=1e-4)
        np.testing.assert_allclose(found.boxes[0, k], box, rtol=1e-3, atol=1e-2)
        assert found.labels[0, k] == label


# Two crossed bars: the upright boxes around them are one, and so is that of a proposal along the first.
BARS = np.float32([[30, 30, 40, 6, 0.785], [30, 30, 40, 6, -0.785]])


def sample(kind, proposals: np.ndarray) -> RoiSamples:
    one = jnp.ones((1, 2), bool)
    truth = GroundTruth(oriented.enclose(jnp.asarray(BARS))[None], jnp.asarray([[3, 4]]), one, ~one, BARS[None])
    count = len(proposals)
    given = Proposals(jnp.asarray(proposals)[None], jnp.full((1, count), 0.5), jnp.ones((1, count), bool))
    chances = jnp.ones((1, 2 + count))
    drawn = jax.jit(lambda *a: head(kind, samples=8, positive_fraction=1.0).apply({}, *a, method="sample"))
    return jax.tree.map(lambda x: np.asarray(x[0]), drawn(given, truth, chances))


def test_upright_regions_are_matched_to_upright_hulls():
    ours = sample(RotatedRoiHead, np.asarray(oriented.enclose(BARS[1:])))
    assert ours.boxes.shape == (8, 4) and ours.matched[ours.is_object].tolist() == [0, 1, 0]  # of equals the first
    np.testing.assert_allclose(ours.overlaps[ours.is_object], 1, rtol=1e-5)


def test_oriented_regions_are_matched_by_rotated_iou():
    across = np.float32([[30, 30, 40, 6, 0.1]])
    ours = sample(OrientedRoiHead, np.concatenate([BARS[1:], across]))
    assert ours.boxes.shape == (8, 5) and ours.matched[ours.is_object].tolist() == [0, 1, 1]
    assert ours.source[ours.valid & ~ours.is_object].tolist() == [3]


def test_oriented_regions_are_pooled_along_their_axes(rng):
    pyramid = tuple(jnp.asarray(rng.normal(size=(1, 64 >> k, 64 >> k, 2)), jnp.float32) for k in range(4))
    boxes = jnp.asarray(some_boxes(rng, 6, 200.0, 60.0))
    pooled = jax.jit(lambda *a: head(OrientedRoiHead).apply({}, *a, method="pool"))(pyramid, boxes[None])
    levels = (np.sqrt(np.prod(boxes[:, 2:4], 1)) >= 112).astype(np.int32)
    expected = rotated_roi_align([x[0] for x in pyramid], boxes, jnp.asarray(levels), (4, 8, 16, 32), size=7, grid=2)
    np.testing.assert_allclose(pooled[0], expected, rtol=1e-4, atol=1e-5)
