"""Cascade RPN: the loss of the coarse stage against a loop; the rest is CRPN's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.boxes import horizontal
from cfinet_jax.models.proposals.coarse_to_fine_rpn import Outputs
from cfinet_jax.structures import Priorities
from tests import plain, tiny

NETWORK = tiny.network("cascade")
SIDES = ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
STRIDES = (4, 8, 16, 32, 64)
ANCHORS = sum(rows * columns for rows, columns in SIDES)
TABLE_1 = [(0.2, 0.5), (0.5, 0.8), (0.8, 1.0)]  # centre and ignore ratio


@pytest.fixture
def outputs(rng) -> Outputs:
    """Outputs for two images of 64 x 64, with coarse boxes good enough for the fine stage to have positives."""
    pyramid = tuple(jnp.asarray(rng.normal(size=(2, *side, 16)), jnp.float32) for side in SIDES)
    sizes = jnp.full((2, 2), 64.0)
    outputs, _ = jax.jit(NETWORK.init_with_output)(jax.random.key(0), pyramid, sizes)
    boxes = tuple(np.array(x) for x in outputs.anchors)
    boxes[0][:, :60:10] = np.asarray(tiny.batch().ground_truth.boxes) + 0.5
    return jax.tree.map(jnp.asarray, outputs._replace(
        coarse_deltas=tuple(rng.normal(0, 2, x.shape).astype(np.float32) for x in outputs.coarse_deltas),
        anchors=boxes,
        logits=tuple(rng.normal(size=x.shape).astype(np.float32) for x in outputs.logits),
        deltas=tuple(rng.normal(size=x.shape).astype(np.float32) for x in outputs.deltas),
    ))  # fmt: skip


def priorities(rng: np.random.Generator) -> Priorities:
    """Only those of the anchors are used here."""
    nothing = jnp.zeros((2, 1))
    chances = jnp.asarray(rng.random((2, ANCHORS)), jnp.float32)
    return Priorities(chances, nothing, nothing[..., None], nothing[..., None])


def losses_of(module, outputs, batch, chances):
    return jax.jit(lambda *a: module.apply({}, *a, method="losses"))(outputs, batch, chances)


@pytest.mark.parametrize(("centre", "ignore"), TABLE_1)
def test_the_coarse_loss_equals_the_loop(rng, outputs, centre, ignore):
    batch = tiny.batch()
    module = tiny.network("cascade", centre_ratio=centre, ignore_ratio=ignore)
    terms, statistics = losses_of(module, outputs, batch, priorities(rng))
    anchors = np.concatenate(outputs.grids)
    for image in range(2):
        objects = np.asarray(batch.ground_truth.boxes[image])
        deltas = jnp.concatenate(outputs.coarse_deltas, 1)[image]
        boxes = np.asarray(horizontal.decode(jnp.asarray(anchors), deltas, NETWORK.coarse_stds))
        painted, _ = plain.paint_middles(objects, SIDES, STRIDES, 2.0, centre, ignore)
        positive = np.flatnonzero(painted > 0)
        expected = sum(7 * (1 - max(plain.iou(boxes[k], objects[painted[k] - 1]), 1e-6)) for k in positive)
        assert expected > 0
        np.testing.assert_allclose(terms["coarse_box"].total[image], expected, rtol=1e-3)
        np.testing.assert_allclose(terms["coarse_box"].count[image], ANCHORS / 200, rtol=1e-6)
        assert statistics["positive_anchors"].total[image] == len(positive)
        assert statistics["objects_with_anchor"].total[image] == len(set(painted[positive]))


def test_the_fine_losses_are_those_of_crpn_but_for_their_weights(rng, outputs):
    """CRPN's are compared with loops, and whole with the reference's."""
    batch, chances = tiny.batch(), priorities(rng)
    ours, _ = losses_of(NETWORK, outputs, batch, chances)
    others, _ = losses_of(tiny.network("coarse_to_fine"), outputs, batch, chances)
    assert (others["box"].total > 0).all()
    np.testing.assert_allclose(ours["objectness"].total, others["objectness"].total * 0.7 / 0.9, rtol=1e-5)
    np.testing.assert_allclose(ours["box"].total, others["box"].total * 7 / 9, rtol=1e-5)
    np.testing.assert_array_equal(ours["box"].count, others["box"].count)


def test_wider_regions_have_more_positives(rng, outputs):
    found = [
        losses_of(
            tiny.network("cascade", centre_ratio=centre, ignore_ratio=ignore), outputs, tiny.batch(2), priorities(rng)
        )[1]
        for centre, ignore in TABLE_1
    ]
    counts = np.stack([each["positive_anchors"].total for each in found])
    assert (np.diff(counts, axis=0) >= 0).all() and (counts[-1] > counts[0]).all()


def test_an_ignore_region_leaves_out_all_anchors_in_it(rng, outputs):
    batch = tiny.batch(5, regions=[[-100, -100, 200, 200]])
    terms, statistics = losses_of(NETWORK, outputs, batch, priorities(rng))
    for name in ("coarse_box", "box", "objectness"):
        assert terms[name].total.tolist() == [0, 0], name
    assert statistics["positive_anchors"].total.tolist() == [0, 0]


def test_training_chooses_proposals_as_testing_does(outputs):
    sizes, scales = jnp.full((2, 2), 64.0), jnp.ones(2)
    choose = jax.jit(lambda o, phase: NETWORK.apply({}, o, sizes, scales, phase, method="choose"), static_argnums=1)
    jax.tree.map(np.testing.assert_array_equal, choose(outputs, "train"), choose(outputs, "test"))
