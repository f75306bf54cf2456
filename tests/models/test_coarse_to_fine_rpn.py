"""CRPN: both stages' losses and the choice of proposals against plain loops; which gradients there are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.boxes import horizontal
from cfinet_jax.models.proposals.base import ProposalNetwork
from cfinet_jax.models.proposals.coarse_to_fine_rpn import Outputs
from cfinet_jax.ops.matching import Assignment
from cfinet_jax.structures import Priorities
from tests import plain, tiny

SETTINGS = tiny.settings().proposal_network.coarse_to_fine.to_dict()
STDS, FINE_STDS = SETTINGS["coarse_stds"], SETTINGS["fine_stds"]
MODES = sorted(SETTINGS["coarse_thresholds"])
SIDES = ((16, 16), (8, 8), (4, 4), (2, 2))
ANCHORS = sum(rows * columns for rows, columns in SIDES)


def network(**changed) -> ProposalNetwork:
    return tiny.network("coarse_to_fine", **changed)


NETWORK = network()
apply = jax.jit(NETWORK.apply)
losses_of = jax.jit(lambda *a: NETWORK.apply({}, *a, method="losses"))


@pytest.fixture
def pyramid(rng):
    """Random features of two images of 64 x 64."""
    return tuple(jnp.asarray(rng.normal(size=(2, *side, 16)), jnp.float32) for side in SIDES)


@pytest.fixture
def variables(pyramid):
    """Parameters large enough for boxes to move."""
    params = jax.jit(NETWORK.init)(jax.random.key(0), pyramid, jnp.full((2, 2), 64.0))
    return jax.tree.map(lambda x: 4 * x, params)


def priorities(numbers) -> Priorities:
    """Only those of the anchors are used here."""
    nothing = jnp.zeros((2, 1))
    return Priorities(jnp.asarray(numbers, jnp.float32), nothing, nothing[..., None], nothing[..., None])


def random_outputs(rng: np.random.Generator, pyramid, variables) -> Outputs:
    """Outputs whose coarse boxes are good enough for the fine stage to have positives."""
    outputs = apply(variables, pyramid, jnp.full((2, 2), 64.0))
    return jax.tree.map(jnp.asarray, outputs._replace(
        coarse_deltas=tuple(rng.normal(0, 2, x.shape).astype(np.float32) for x in outputs.coarse_deltas),
        anchors=tuple(plain.some_boxes(rng, 2 * x.shape[1]).reshape(x.shape) for x in outputs.anchors),
        logits=tuple(rng.normal(size=x.shape).astype(np.float32) for x in outputs.logits),
        deltas=tuple(rng.normal(size=x.shape).astype(np.float32) for x in outputs.deltas),
    ))  # fmt: skip


def decode(anchors, deltas, stds):
    return np.asarray(horizontal.decode(jnp.asarray(anchors), jnp.asarray(deltas), stds))


def coarse_loop(anchors, deltas, objects, mode, scale) -> float:
    """9 times the IoU loss of every anchor whose best object it overlaps by the object's threshold."""
    constants = SETTINGS["coarse_thresholds"][mode]
    total, boxes = 0.0, decode(anchors, deltas, STDS)
    overlaps = plain.ious(anchors, objects)
    for anchor, index in enumerate(overlaps.argmax(1)):
        side = np.sqrt(np.prod(objects[index, 2:] - objects[index, :2])) / scale
        threshold = constants["base"] + constants["slope"] * np.log2(side / 12)
        if overlaps[anchor, index] >= np.clip(threshold, constants["low"], constants["cap"]):
            total += 9 * (1 - max(plain.iou(boxes[anchor], objects[index]), 1e-6))
    return total


def fine_loop(anchors, logits, deltas, objects, order) -> tuple[float, float, int]:
    """Objectness and box loss of 32 anchors, at most half of them positive, and their divisor."""
    overlaps = plain.ious(anchors, objects)
    positive, matched = overlaps.max(1) >= 0.7, overlaps.argmax(1)
    for index in range(len(objects)):
        if overlaps[:, index].max() >= 0.3:
            best = overlaps[:, index] == overlaps[:, index].max()
            positive[best], matched[best] = True, index
    first = [k for k in order if positive[k]][:16]
    rest = [k for k in order if not positive[k]][: 32 - len(first)]
    assert first
    objectness = 0.9 * sum(np.log1p(np.exp(-logits[k])) for k in first)
    objectness += 0.9 * sum(np.log1p(np.exp(logits[k])) for k in rest)
    boxes = decode(anchors, deltas, FINE_STDS)
    box = sum(9 * (1 - max(plain.iou(boxes[k], objects[matched[k]]), 1e-6)) for k in first)
    return objectness, box, max(len(first), 1) + max(len(rest), 1)


@pytest.mark.parametrize("mode", MODES)
def test_losses_equal_the_loop_in_every_mode(rng, pyramid, variables, mode):
    batch, outputs = tiny.batch(), random_outputs(rng, pyramid, variables)
    objects = np.asarray(batch.ground_truth.boxes)
    coarse_boxes = np.array(jnp.concatenate(outputs.anchors, 1))
    coarse_boxes[:, :60:10] = objects + 0.5
    cut = np.cumsum([0] + [rows * columns for rows, columns in SIDES])
    outputs = outputs._replace(
        anchors=tuple(jnp.asarray(coarse_boxes[:, a:b]) for a, b in zip(cut[:-1], cut[1:], strict=True))
    )
    chances = rng.random((2, ANCHORS))
    losses = jax.jit(lambda *a: network(coarse_threshold=mode).apply({}, *a, method="losses"))
    terms, statistics = losses(outputs, batch, priorities(chances))
    anchors = np.concatenate(outputs.grids)
    coarse_deltas, logits, deltas = (
        np.asarray(jnp.concatenate(x, 1)) for x in (outputs.coarse_deltas, outputs.logits, outputs.deltas)
    )
    for image in range(2):
        expected = coarse_loop(anchors, coarse_deltas[image], objects[image], mode, 1.0)
        assert expected > 0
        np.testing.assert_allclose(terms["coarse_box"].total[image], expected, rtol=1e-3)
        np.testing.assert_allclose(terms["coarse_box"].count[image], ANCHORS / 200, rtol=1e-6)
        objectness, box, count = fine_loop(
            coarse_boxes[image], logits[image], deltas[image], objects[image], np.argsort(-chances[image])
        )
        np.testing.assert_allclose(terms["objectness"].total[image], objectness, rtol=1e-4)
        np.testing.assert_allclose(terms["box"].total[image], box, rtol=1e-4)
        assert terms["objectness"].count[image] == terms["box"].count[image] == count
        assert 0 < statistics["objects_with_anchor"].total[image] <= statistics["objects_with_anchor"].count[image] == 6


def test_the_threshold_counts_stored_pixels(rng, pyramid, variables):
    """The same picture, enlarged 1.5 times before it came here, has smaller objects and lower thresholds."""
    batch, outputs = tiny.batch(), random_outputs(rng, pyramid, variables)
    enlarged = dataclasses.replace(batch, scales=jnp.full(2, 1.5))
    losses = jax.jit(lambda *a: network(coarse_threshold="literal").apply({}, *a, method="losses"))
    few, many = (
        losses(outputs, b, priorities(np.ones((2, ANCHORS))))[1]["positive_anchors"] for b in (batch, enlarged)
    )
    assert (many.total > few.total).all()


@pytest.mark.parametrize(("positives", "negatives", "divisor"), [(0, 0, 2), (3, 0, 4), (0, 5, 6), (3, 5, 8), (1, 1, 2)])
def test_losses_are_divided_by_samples_of_each_kind_but_by_one_at_least(positives, negatives, divisor):
    place = jnp.arange(8)
    positive, negative = place < positives, (place >= 3) & (place < 3 + negatives)
    assignment = Assignment(positive, negative, jnp.zeros(8, jnp.int32), jnp.zeros(8))
    sample, count = network(samples=16).sample(assignment, jnp.linspace(0.0, 0.9, 8))
    assert float(count) == divisor and int(sample.positive.sum()) == positives


def test_an_object_without_positive_anchor_is_counted(pyramid, variables):
    outputs = apply(variables, pyramid, jnp.full((2, 2), 64.0))
    batch = tiny.batch(1)
    speck = batch.ground_truth.boxes.at[:, 0].set(jnp.array([9.0, 9.0, 10.0, 10.0]))
    batch = dataclasses.replace(batch, ground_truth=dataclasses.replace(batch.ground_truth, boxes=speck))
    statistics = losses_of(outputs, batch, priorities(np.ones((2, ANCHORS))))[1]
    assert statistics["objects_with_anchor"].total.tolist() == [0, 0]
    assert statistics["objects_with_anchor"].count.tolist() == [1, 1]
    assert statistics["positive_anchors"].total.tolist() == [0, 0]


def test_an_ignore_region_leaves_out_all_anchors_in_it(pyramid, variables):
    outputs = apply(variables, pyramid, jnp.full((2, 2), 64.0))
    batch = tiny.batch(5, regions=[[-100, -100, 200, 200]])
    terms, _ = losses_of(outputs, batch, priorities(np.ones((2, ANCHORS))))
    for name in ("coarse_box", "box", "objectness"):
        assert terms[name].total.tolist() == [0, 0], name
        assert (terms[name].count > 0).all()


# Refinement


def test_coarse_boxes_are_the_anchors_moved_by_the_coarse_deltas_and_clipped(pyramid, variables):
    sizes = jnp.array([[64.0, 64.0], [40.0, 52.0]])  # height, width
    outputs = apply(variables, pyramid, sizes)
    for anchors, deltas, boxes in zip(outputs.grids, outputs.coarse_deltas, outputs.anchors, strict=True):
        for image, (height, width) in enumerate(sizes.tolist()):
            moved = decode(anchors, deltas[image], STDS)
            expected = np.clip(moved, 0, [width, height, width, height])
            np.testing.assert_allclose(boxes[image], expected, rtol=1e-4, atol=1e-3)
    assert sum(len(grid) for grid in outputs.grids) == ANCHORS
    assert NETWORK.count_anchors((64, 64), 4) == ANCHORS
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(outputs))


def test_stages_equal_the_loop(pyramid, variables):
    """Dilated convolution, coarse boxes, adaptive convolution on these boxes, both heads; of the third level."""
    outputs = apply(variables, pyramid, jnp.full((2, 2), 64.0))
    params = jax.tree.map(np.asarray, variables["params"])
    level, stride = 2, 16

    def conv(x, name, dilation=1):
        return plain.convolve(x, params[name]["kernel"], dilation=dilation) + params[name]["bias"]

    features = np.maximum(conv(np.asarray(pyramid[level]), "coarse_conv", 3), 0)
    deltas = conv(features, "coarse_box").reshape(2, -1, 4)
    np.testing.assert_allclose(outputs.coarse_deltas[level], deltas, rtol=1e-4, atol=1e-4)
    adapted = np.zeros((2, 16, 16))
    for image in range(2):
        for cell, (x1, y1, x2, y2) in enumerate(np.asarray(outputs.anchors[level][image])):
            for i, y in enumerate((y1, (y1 + y2) / 2, y2)):
                for j, x in enumerate((x1, (x1 + x2) / 2, x2)):
                    read = plain.bilinear(features[image], y / stride, x / stride)
                    adapted[image, cell] += read @ params["fine_conv"]["kernel"][i, j]
    adapted = np.maximum(adapted.reshape(2, 4, 4, 16), 0)
    assert (adapted > 0).any()
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(outputs.logits[level], conv(adapted, "fine_objectness").reshape(2, -1), **close)
    np.testing.assert_allclose(outputs.deltas[level], conv(adapted, "fine_box").reshape(2, -1, 4), **close)


def test_the_fine_stage_sends_no_gradient_through_the_coarse_boxes(pyramid, variables):
    def total(params):
        outputs = NETWORK.apply({"params": params}, pyramid, jnp.full((2, 2), 64.0))
        return sum(x.sum() for x in (*outputs.logits, *outputs.deltas, *outputs.anchors))

    gradient = jax.jit(jax.grad(total))(variables["params"])
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient["coarse_box"]))
    for name in ("coarse_conv", "fine_conv", "fine_objectness", "fine_box"):
        assert any((np.asarray(x) != 0).any() for x in jax.tree.leaves(gradient[name])), name


# Proposals


@pytest.mark.parametrize("phase", ["train", "test"])
def test_proposals_equal_the_loop(rng, pyramid, variables, phase):
    limits = {"max_proposals": 25, "nms_similarity": "iou", "train": {"candidates": 30, "nms_overlap": 0.6},
              "test": {"candidates": 12, "nms_overlap": 0.2}}  # fmt: skip
    sizes = jnp.array([[64.0, 64.0], [40.0, 52.0]])
    outputs = random_outputs(rng, pyramid, variables)
    outputs = outputs._replace(logits=(outputs.logits[0], outputs.logits[1].at[:, :40].add(3), *outputs.logits[2:]))
    choose = jax.jit(lambda o: network(proposals=limits).apply({}, o, sizes, jnp.ones(2), phase, method="choose"))
    found = jax.tree.map(np.asarray, choose(outputs))
    for image, (height, width) in enumerate(sizes.tolist()):
        kept = []
        for boxes, logits, deltas in zip(outputs.anchors, outputs.logits, outputs.deltas, strict=True):
            moved = np.clip(decode(boxes[image], deltas[image], FINE_STDS), 0, [width, height, width, height])
            order = np.argsort(-np.asarray(logits[image]), kind="stable")[: limits[phase]["candidates"]]
            of_level: list[int] = []
            for k in order:
                if (moved[k, 2:] > moved[k, :2]).all() and all(
                    plain.iou(moved[k], moved[other]) <= limits[phase]["nms_overlap"] for other in of_level
                ):
                    of_level.append(k)
            kept += [(1 / (1 + np.exp(-float(logits[image][k]))), moved[k]) for k in of_level]
        kept.sort(key=lambda pair: -pair[0])
        count = min(len(kept), 25)
        assert found.valid[image].tolist() == [True] * count + [False] * (25 - count)
        np.testing.assert_allclose(found.scores[image, :count], [score for score, _ in kept[:count]], rtol=1e-4)
        np.testing.assert_allclose(found.boxes[image, :count], [box for _, box in kept[:count]], rtol=1e-4, atol=1e-3)


def test_fewer_boxes_than_wanted_leave_invalid_proposals_without_gradient(pyramid, variables):
    limits = {"max_proposals": 400, "nms_similarity": "iou", "test": {"candidates": 400}}
    chooser, sizes = network(proposals=limits), jnp.full((2, 2), 64.0)
    outputs = apply(variables, pyramid, sizes)

    def total(outputs):
        found = chooser.apply({}, outputs, sizes, jnp.ones(2), "test", method="choose")
        return found.boxes.sum() + found.scores.sum(), found

    gradient, found = jax.jit(jax.grad(total, has_aux=True, allow_int=True))(outputs)
    assert found.boxes.shape == (2, 400, 4)
    assert not found.valid[:, ANCHORS:].any() and np.isfinite(found.boxes).all()
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient))
