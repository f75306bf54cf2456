"""The plain RPN: losses against a plain loop, the order of its anchors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.structures import Priorities
from tests import plain, tiny

SIDES = ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
NETWORK = tiny.network("rpn")
SIZES = jnp.full((2, 2), 64.0)


@pytest.fixture
def pyramid(rng):
    return tuple(jnp.asarray(rng.normal(size=(2, *side, 16)), jnp.float32) for side in SIDES)


@pytest.fixture
def variables(pyramid):
    return jax.jit(NETWORK.init)(jax.random.key(0), pyramid, SIZES)


def test_losses_equal_the_loop(rng, pyramid, variables):
    outputs, batch = jax.jit(NETWORK.apply)(variables, pyramid, SIZES), tiny.batch()
    outputs = outputs._replace(logits=tuple(jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in outputs.logits))
    anchors = np.concatenate(outputs.anchors)
    chances = rng.random((2, len(anchors))).astype(np.float32)
    nothing = jnp.zeros((2, 1))
    priorities = Priorities(jnp.asarray(chances), nothing, nothing[..., None], nothing[..., None])
    terms, statistics = jax.jit(lambda *a: NETWORK.apply({}, *a, method="losses"))(outputs, batch, priorities)
    logits, deltas = np.concatenate(outputs.logits, 1), np.concatenate(outputs.deltas, 1)
    for image in range(2):
        objects = np.asarray(batch.ground_truth.boxes[image])
        overlaps = plain.ious(anchors, objects)
        positive, matched = overlaps.max(1) >= 0.7, overlaps.argmax(1)
        negative = overlaps.max(1) < 0.3
        for index in range(6):
            best = np.abs(overlaps[:, index] - overlaps[:, index].max()) < 1e-7
            if overlaps[:, index].max() >= 0.3:
                positive[best], matched[best] = True, index
        order = np.argsort(-chances[image])
        first = [k for k in order if positive[k]][:16]
        rest = [k for k in order if negative[k] and not positive[k]][: 32 - len(first)]
        box = 0.0
        for k in first:
            x1, y1, x2, y2 = anchors[k]
            a1, b1, a2, b2 = objects[matched[k]]
            target = [
                (a1 + a2 - x1 - x2) / 2 / (x2 - x1), (b1 + b2 - y1 - y2) / 2 / (y2 - y1),
                np.log((a2 - a1) / (x2 - x1)), np.log((b2 - b1) / (y2 - y1)),
            ]  # fmt: skip
            box += np.abs(deltas[image, k] - target).sum()
        objectness = sum(np.log1p(np.exp(-logits[image, k])) for k in first)
        objectness += sum(np.log1p(np.exp(logits[image, k])) for k in rest)
        assert first and rest
        np.testing.assert_allclose(terms["box"].total[image], box, rtol=1e-4)
        np.testing.assert_allclose(terms["objectness"].total[image], objectness, rtol=1e-4)
        assert terms["box"].count[image] == terms["objectness"].count[image] == len(first) + len(rest)
        assert statistics["positive_anchors"].total[image] == positive.sum()


def test_the_anchors_of_a_cell_are_its_ratios_in_order(pyramid, variables):
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["objectness"]["bias"] = jnp.array([1.0, 2.0, 3.0])
    params["box"]["bias"] = jnp.arange(12.0)
    outputs = jax.jit(NETWORK.apply)({"params": params}, pyramid, SIZES)
    for anchors, logits, deltas in zip(outputs.anchors, outputs.logits, outputs.deltas, strict=True):
        cells = len(anchors) // 3
        np.testing.assert_allclose(logits[0], np.tile([1, 2, 3], cells))
        np.testing.assert_allclose(deltas[0], np.tile(np.arange(12).reshape(3, 4), (cells, 1)))
        sides = np.asarray(anchors[:, 2:] - anchors[:, :2])
        np.testing.assert_allclose(sides[:, 1] / sides[:, 0], np.tile([0.5, 1, 2], cells), rtol=1e-5)
    assert NETWORK.count_anchors((64, 64), 5) == sum(len(grid) for grid in outputs.anchors)


def test_proposals_of_both_phases_lie_in_the_picture(pyramid, variables):
    scales, sizes = jnp.ones(2), jnp.array([[64.0, 64.0], [40.0, 52.0]])
    outputs = jax.jit(NETWORK.apply)(variables, pyramid, sizes)
    for phase in ("train", "test"):
        found = jax.jit(lambda o, p=phase: NETWORK.apply({}, o, sizes, scales, p, method="choose"))(outputs)
        assert found.valid.any()
        limit = np.asarray(sizes)[:, None, ::-1]
        assert (found.boxes >= 0).all() and (found.boxes[..., 2:] <= limit).all()
        assert (np.diff(found.scores, axis=1) <= 0).all()
