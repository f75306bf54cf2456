"""The second stage: sampling as the reference's, losses and detections against plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.roi_head import Predictions, RoiHead
from cfinet_jax.structures import Proposals, RoiSamples
from configs.sodad import get_config
from tests import plain, tiny

SETTINGS = tiny.settings().roi_head.to_dict()
STDS = SETTINGS["stds"]
MOST = 150  # objects of the golden cases


def head(**changed) -> RoiHead:
    return RoiHead(**{"classes": 9, "ignore_overlap": 0.5} | SETTINGS | changed)


# Sampling


def sample(proposals: Proposals, truth, priorities, **changed) -> RoiSamples:
    """Return the samples of one image."""
    one = jax.tree.map(lambda x: x[None], (proposals, truth, priorities))
    samples = jax.jit(lambda *a: head(**changed).apply({}, *a, method="sample"))(*one)
    return jax.tree.map(lambda x: np.asarray(x[0]), samples)


def propose(boxes, valid=None) -> Proposals:
    boxes = jnp.asarray(boxes, jnp.float32)
    valid = jnp.ones(len(boxes), bool) if valid is None else jnp.asarray(valid)
    return Proposals(boxes, jnp.where(valid, 0.5, 0.0), valid)


def test_samples_agree_with_the_reference(golden):
    data = golden("fi_quality")
    full = get_config().detector.roi_head
    module = head(samples=full.samples, positive_fraction=full.positive_fraction)
    draw = jax.jit(lambda *a: module.apply({}, *a, method="sample"))
    for number in range(int(data["n_cases"])):
        case = f"c{number:02d}"
        objects, boxes = len(data[f"{case}_gt"]), data[f"{case}_proposals"][:, :4]
        truth = plain.ground_truth(data[f"{case}_gt"], data[f"{case}_gt_labels"], MOST)
        first = jnp.linspace(1, 0, MOST + len(boxes))  # the reference was made to take the first n
        one = jax.tree.map(lambda x: x[None], (propose(boxes), truth, first))
        ours = jax.tree.map(lambda x: np.asarray(x[0]), draw(*one))
        source = np.where(ours.source < MOST, ours.source, ours.source - MOST + objects)
        positives, negatives = data[f"{case}_pos_inds"], data[f"{case}_neg_inds"]
        count = len(positives)
        np.testing.assert_array_equal(source[ours.is_object], positives)
        np.testing.assert_array_equal(source[ours.valid & ~ours.is_object], negatives)
        np.testing.assert_array_equal(ours.matched[:count], data[f"{case}_pos_assigned_gt_inds"])
        np.testing.assert_array_equal(ours.labels[:count], data[f"{case}_pos_gt_labels"])
        assert (ours.labels[count:] == 9).all()
        np.testing.assert_allclose(ours.overlaps[:count], data[f"{case}_pos_ious"], rtol=1e-4)
        boxes = data[f"{case}_sampled_boxes"]
        np.testing.assert_allclose(ours.boxes[: len(boxes)], boxes, rtol=1e-5)


def test_objects_are_matched_to_themselves_and_padding_to_nothing():
    truth = plain.ground_truth([[0, 0, 10, 10], [1, 0, 11, 10]], [3, 4], 5)
    proposals = propose([[1, 0, 11, 10], [30, 30, 40, 40], [0, 0, 10, 10]], [True, True, False])
    ours = sample(proposals, truth, jnp.ones(8))
    assert ours.source[ours.is_object].tolist() == [0, 1, 5]
    assert ours.matched[ours.is_object].tolist() == [0, 1, 1]
    assert ours.labels[ours.is_object].tolist() == [3, 4, 4]
    assert ours.source[ours.valid & ~ours.is_object].tolist() == [6]


def test_equal_objects_are_each_matched_to_themselves():
    truth = plain.ground_truth([[0, 0, 10, 10], [0, 0, 10, 10]], [1, 2])
    ours = sample(propose([[50, 50, 60, 60]]), truth, jnp.ones(3))
    assert ours.labels[ours.is_object].tolist() == [1, 2]


def test_ignore_regions_leave_out_proposals_but_no_objects():
    truth = plain.ground_truth([[5, 5, 15, 15]], [2], 3, regions=[[0, 0, 40, 40]])
    ours = sample(propose([[5, 5, 15, 15], [20, 20, 30, 30], [50, 50, 60, 60]]), truth, jnp.ones(6))
    assert ours.source[ours.valid].tolist() == [0, 5]
    assert ours.is_object[:2].tolist() == [True, False]


# Losses


@pytest.fixture
def predicted(rng):
    """Samples of two images, with predictions."""
    batch = tiny.batch()
    kind = np.repeat([0, 1, 2], [9, 11, 4])
    matched = rng.integers(0, 6, (2, 24)).astype(np.int32)
    labels = np.take_along_axis(np.asarray(batch.ground_truth.labels), matched, 1)
    boxes = plain.some_boxes(rng, 48).reshape(2, 24, 4)
    boxes[..., 2:] += 2
    both = np.broadcast_to(kind, (2, 24))
    samples = RoiSamples(
        boxes, np.where(both == 0, labels, 9).astype(np.int32), matched, rng.random((2, 24)).astype(np.float32),
        np.tile(np.arange(24, dtype=np.int32), (2, 1)), both == 0, both < 2,
    )  # fmt: skip
    predictions = Predictions(rng.normal(size=(2, 24, 10)), rng.normal(size=(2, 24, 9, 4)))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None), (
        predictions, samples, batch,
    ))  # fmt: skip


losses = jax.jit(lambda *a: head().apply({}, *a, method="losses"))


def test_losses_equal_the_loop(predicted):
    predictions, samples, batch = predicted
    terms, statistics = losses(*predicted)
    for image in range(2):
        entropy = distance = right = 0.0
        for k in range(20):
            logits, label = np.asarray(predictions.logits[image, k]), int(samples.labels[image, k])
            entropy += np.log(np.exp(logits).sum()) - logits[label]
            right += logits.argmax() == label
            if k < 9:
                x1, y1, x2, y2 = np.asarray(samples.boxes[image, k])
                a1, b1, a2, b2 = np.asarray(batch.ground_truth.boxes[image, samples.matched[image, k]])
                target = np.array([
                    (a1 + a2 - x1 - x2) / 2 / (x2 - x1) / 0.1, (b1 + b2 - y1 - y2) / 2 / (y2 - y1) / 0.1,
                    np.log((a2 - a1) / (x2 - x1)) / 0.2, np.log((b2 - b1) / (y2 - y1)) / 0.2,
                ])  # fmt: skip
                distance += np.abs(np.asarray(predictions.deltas[image, k, label]) - target).sum()
        np.testing.assert_allclose(terms["class"].total[image], entropy, rtol=1e-4)
        np.testing.assert_allclose(terms["box"].total[image], distance, rtol=1e-4)
        assert terms["class"].count[image] == terms["box"].count[image] == 20
        np.testing.assert_allclose(statistics["accuracy"].total[image], right)


def test_only_the_class_of_an_object_learns_its_box(predicted):
    predictions, samples, batch = predicted

    def total(deltas):
        return losses(predictions._replace(deltas=deltas), samples, batch)[0]["box"].total.sum()

    touched = (np.asarray(jax.grad(total)(predictions.deltas)) != 0).any(-1)
    expected = (np.asarray(samples.labels)[..., None] == np.arange(9)) & np.asarray(samples.is_object)[..., None]
    np.testing.assert_array_equal(touched, expected)


def test_without_samples_losses_are_zero_and_finite(predicted):
    predictions, samples, batch = predicted
    nothing = jnp.zeros((2, 24), bool)
    samples = dataclasses.replace(samples, boxes=0 * samples.boxes, is_object=nothing, valid=nothing)
    gradient, (terms, _) = jax.grad(
        lambda p: (sum(t.total.sum() for t in losses(p, samples, batch)[0].values()), losses(p, samples, batch)),
        has_aux=True,
    )(predictions)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves((gradient, terms)))


# Pooling, prediction, detection


def test_the_head_is_two_hidden_layers(rng):
    module, regions = head(), jnp.asarray(rng.normal(size=(2, 3, 7, 7, 4)), jnp.float32)
    predictions, variables = jax.jit(module.init_with_output)(jax.random.key(0), regions)
    params = jax.tree.map(np.asarray, variables["params"])

    def linear(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    x = np.asarray(regions).reshape(6, -1)
    x = np.maximum(linear(np.maximum(linear(x, "hidden1"), 0), "hidden2"), 0)
    np.testing.assert_allclose(predictions.logits.reshape(6, 10), linear(x, "classify"), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predictions.deltas.reshape(6, 36), linear(x, "regress"), rtol=1e-4, atol=1e-6)


def test_regions_are_pooled_from_the_level_of_their_size_and_never_from_the_sixth():
    maps = tuple(jnp.full((1, 64 >> k, 64 >> k, 1), k, jnp.float32) for k in range(5))
    boxes = jnp.array([[[8.0, 8, 8 + side, 8 + side] for side in (20, 60, 111, 113, 170, 225, 230)]])
    pooled = jax.jit(lambda *a: head().apply({}, *a, method="pool"))(maps, boxes)
    np.testing.assert_allclose(pooled[0, :, 3, 3, 0], [0, 0, 0, 1, 1, 2, 2])
    large = jax.jit(lambda *a: head(finest_scale=2.0).apply({}, *a, method="pool"))(maps, boxes)
    np.testing.assert_allclose(large[0, :, 3, 3, 0], [3] * 7)


def test_detections_equal_the_loop(rng):
    boxes = plain.some_boxes(rng, 12, 60.0)
    boxes[:, 2:] += 3
    proposals = propose(boxes, np.arange(12) < 10)
    logits, deltas = rng.normal(0, 2, (12, 4)).astype(np.float32), rng.normal(size=(12, 3, 4)).astype(np.float32)
    height, width = 50.0, 70.0
    module = head(classes=3, min_score=0.2, nms_overlap=0.3, max_detections=9)
    one = jax.tree.map(lambda x: jnp.asarray(x)[None], (Predictions(logits, deltas), proposals))
    found = jax.jit(lambda *a: module.apply({}, *a, jnp.array([[height, width]]), method="detect"))(*one)
    kept = []
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for label in range(3):
        of_class: list[np.ndarray] = []
        for k in np.argsort(-scores[:, label]):
            x1, y1, x2, y2 = boxes[k]
            dx, dy, dw, dh = deltas[k, label] * STDS
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            w, h = (x2 - x1) * np.exp(dw), (y2 - y1) * np.exp(dh)
            box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [width, height, width, height])
            if k < 10 and scores[k, label] > 0.2 and all(plain.iou(box, other) <= 0.3 for other in of_class):
                of_class.append(box)
                kept.append((scores[k, label], label, box))
    kept = sorted(kept, key=lambda one: -one[0])[:9]
    assert len(kept) > 4
    assert int(found.valid.sum()) == len(kept)
    for k, (score, label, box) in enumerate(kept):
        np.testing.assert_allclose(found.scores[0, k], score, rtol=1e-4)
        np.testing.assert_allclose(found.boxes[0, k], box, rtol=1e-4, atol=1e-3)
        assert found.labels[0, k] == label
