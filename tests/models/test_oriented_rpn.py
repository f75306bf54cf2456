"""Oriented R-CNN's proposal network: losses against a plain loop, proposals that upright boxes suppress."""

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax.boxes import midpoint_offset, oriented
from cfinet_jax.models.proposals.base import ProposalNetwork
from cfinet_jax.models.proposals.oriented_rpn import OrientedRPN
from cfinet_jax.models.proposals.rpn import Outputs
from cfinet_jax.structures import Priorities
from configs import sodaa
from tests import plain, tiny

SETTINGS = tiny.settings("oriented_rcnn", sodaa).proposal_network.oriented_rpn.to_dict()
STDS = SETTINGS["stds"]
SIDES = (16, 8)  # cells of the levels
ANCHORS = sum(3 * side**2 for side in SIDES)


def network(**changed) -> ProposalNetwork:
    return tiny.network("oriented_rpn", "oriented_rcnn", sodaa, **changed)


def outputs_of(rng: np.random.Generator, images: int = 2) -> Outputs:
    """Anchors near the objects' sizes, with random predictions."""
    counts = [3 * side**2 for side in SIDES]
    anchors = [plain.some_boxes(rng, count) + np.float32([0, 0, 3, 3]) for count in counts]
    logits = [rng.normal(size=(images, count)) for count in counts]
    deltas = [rng.normal(0, 0.3, (images, count, 6)) for count in counts]
    return Outputs(*(tuple(jnp.asarray(x, jnp.float32) for x in of) for of in (anchors, logits, deltas)))


def test_losses_equal_the_loop(rng):
    outputs, batch = outputs_of(rng), tiny.turned(tiny.batch())
    none = jnp.zeros((2, 1))
    chances = Priorities(jnp.asarray(rng.random((2, ANCHORS)), jnp.float32), none, none, none)
    module = network(samples=ANCHORS, positive_fraction=1.0)  # every anchor that is positive or negative
    terms, _ = jax.jit(lambda *a: module.apply({}, *a, method="losses"))(outputs, batch, chances)
    anchors = np.concatenate(outputs.anchors)
    for image in range(2):
        truth = jax.tree.map(lambda x, image=image: np.asarray(x[image]), batch.ground_truth)
        overlaps = plain.ious(anchors, truth.boxes)
        indices, best = overlaps.argmax(1), overlaps.max(1)
        positive = best >= SETTINGS["positive_overlap"]
        for index in range(len(truth.boxes)):
            own = overlaps[:, index]
            forced = (own == own.max()) & (own.max() >= SETTINGS["min_positive_overlap"])
            indices[forced], positive[forced] = index, True
        goals = midpoint_offset.encode(jnp.asarray(anchors), jnp.asarray(truth.oriented[indices]), STDS)
        assert goals.shape[1] == OrientedRPN.numbers
        apart = np.abs(np.concatenate(outputs.deltas, 1)[image] - goals)
        beta = SETTINGS["smooth_beta"]
        distance = np.where(apart < beta, apart**2 / (2 * beta), apart - beta / 2).sum(1)
        assert positive.sum() > 3
        np.testing.assert_allclose(terms["box"].total[image], distance[positive].sum(), rtol=1e-3)


def test_proposals_are_oriented_and_suppressed_by_their_upright_boxes(rng):
    outputs = outputs_of(rng, 1)
    size = np.float32([[60, 50]])
    module = network()
    found = jax.jit(lambda *a: module.apply({}, *a, "test", method="choose"))(outputs, size, jnp.ones(1))
    expected = []
    for anchors, logits, deltas in zip(*outputs, strict=True):
        boxes = np.array(midpoint_offset.decode(anchors, deltas[0], STDS))
        boxes[:, :2] = np.clip(boxes[:, :2], 0, size[0, ::-1])
        around, kept = np.asarray(oriented.enclose(jnp.asarray(boxes))), []
        for k in np.argsort(-np.asarray(logits[0]))[: SETTINGS["proposals"]["test"]["candidates"]]:
            if all(plain.iou(around[k], around[other]) <= 0.8 for other in kept):
                kept.append(k)
        expected += [(1 / (1 + np.exp(-float(logits[0, k]))), boxes[k]) for k in kept]
    expected = sorted(expected, key=lambda each: -each[0])[:40]
    assert found.valid.all() and len(expected) == 40
    np.testing.assert_allclose(found.scores[0], [score for score, _ in expected], rtol=1e-4)
    np.testing.assert_allclose(found.boxes[0], [box for _, box in expected], rtol=1e-3, atol=1e-2)
