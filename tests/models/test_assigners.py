"""Every rule of assignment of the configuration: its anchors, its units, a compiled step, and refused names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.boxes import horizontal, similarity
from cfinet_jax.models.detector import build_detector
from cfinet_jax.models.proposals import PROPOSAL_NETWORKS
from cfinet_jax.models.proposals.assigners import RULES
from cfinet_jax.models.proposals.base import ProposalNetwork, levels_of
from cfinet_jax.models.proposals.rpn import Outputs
from cfinet_jax.ops import matching, nms, ranking
from configs.sodad import get_config
from tests import plain, tiny

SETTINGS = get_config().detector
ROWS = SETTINGS.assigners.to_dict()
CASES = (  # assigner, similarity in NMS, box loss
    ("max_iou", "dotd", "l1"),
    ("nwd", "nwd", "nwd"),
    ("dotd", "iou", "iou"),
    ("rka", "nwd", "iou"),
    ("rfla", "iou", "nwd"),
)


def changed_settings(network: str, assigner: str, nms_similarity: str, box_loss: str):
    """A tiny detector of other choices."""
    settings = tiny.settings()
    settings.imitation.enabled, settings.proposal_network.name = False, network
    section = settings.proposal_network[network]
    section.update(assigner=assigner, box_loss=box_loss)
    section.proposals.nms_similarity = nms_similarity
    return settings


def test_every_rule_is_tried():
    assert {assigner for assigner, _, _ in CASES} == set(ROWS)
    assert {row["rule"] for row in ROWS.values()} == set(RULES)


@pytest.mark.parametrize("network", PROPOSAL_NETWORKS)
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_step_has_finite_losses_and_gradients(network, case):
    detector = build_detector(changed_settings(network, *case), 9)
    key, batch = jax.random.key(0), dataclasses.replace(tiny.batch(), scales=jnp.array([1.5, 1.0]))
    pyramid = tuple(jax.random.normal(key, (2, side, side, 16)) for side in (16, 8, 4, 2))
    part = detector.proposal_network
    chances = detector.draw_priorities(key, batch.index, tiny.SHAPE, tiny.OBJECTS)
    params = jax.jit(part.init)(key, pyramid, batch.sizes)

    @jax.jit
    def step(params, batch):
        def total(params):
            outputs = part.apply(params, pyramid, batch.sizes)
            terms, statistics = part.apply(params, outputs, batch, chances, method="losses")
            found = part.apply(params, outputs, batch.sizes, batch.scales, "train", method="choose")
            return sum(term.total.sum() for term in terms.values()), (terms, statistics, found)

        return jax.value_and_grad(total, has_aux=True)(params)

    (_, (terms, statistics, found)), gradients = step(params, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((terms, statistics, gradients)))
    assert all((np.asarray(term.total) > 0).all() for term in terms.values())
    assert (statistics["positive_anchors"].total > 0).all() and found.valid.any()
    regions = tiny.batch(0, regions=[[-100.0, -100.0, 200.0, 200.0]])  # nothing is learnt, without a NaN
    (_, (terms, _, _)), gradients = step(params, regions)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


# What a rule gets


def network(assigner: str = "max_iou", **others) -> ProposalNetwork:
    """A plain RPN with thresholds of its own."""
    thresholds = {"positive_overlap": 0.6, "negative_overlap": 0.3, "min_positive_overlap": 0.2}
    return tiny.network("rpn", assigner=assigner, **thresholds | others)


def assert_equal(ours, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_rules_are_those_of_ops_with_constants_in_network_pixels(rng):
    boxes = jnp.asarray(plain.some_boxes(rng, 40))
    truth, scale = plain.ground_truth(plain.some_boxes(rng, 6), size=9), jnp.array(1.5)
    levels = jnp.repeat(jnp.array([0, 1]), 20)

    def nwd(a, b):
        return similarity.nwd(a, b, jnp.float32(1.5) * 12.7)

    def dotd(a, b):
        return similarity.dotd(a, b, jnp.float32(1.5) * 12.7)

    bounds = {"positive": 0.6, "negative": 0.3, "min_positive": 0.2, "ignore_overlap": 0.5}
    fields = jnp.repeat(jnp.array([17.5, 45.5]), 20)
    hierarchy = {"most": (3, 1), "shrink": 0.9, "negative": 0.8, "ignore_overlap": 0.5}
    expected = {
        "max_iou": matching.match_max_iou(boxes, truth, **bounds),
        "nwd": matching.match_max_iou(boxes, truth, **bounds, similarity=nwd),
        "dotd": matching.match_max_iou(boxes, truth, **bounds, similarity=dotd),
        "rka": ranking.match_ranking(boxes, truth, nwd, most=2, negative=0.3, ignore_overlap=0.5),
        "rfla": ranking.match_receptive_field(boxes, fields, truth, similarity.kl, **hierarchy),
    }
    for name, assignment in expected.items():
        assert_equal(network(name).assign(boxes, levels, truth, scale), assignment)
    positives = {name: np.asarray(assignment.positive).tolist() for name, assignment in expected.items()}
    assert len({tuple(of_rule) for of_rule in positives.values()}) > 3


@pytest.mark.parametrize("turned", [False, True], ids=["upright", "of oriented objects"])
@pytest.mark.parametrize(
    ("rule", "best", "left"),  # anchors positive without the region, and beside it
    [
        ("max_iou", [0], [2]),
        ("nwd", [0], [2]),
        ("dotd", [0], [2]),
        ("rka", [0, 1], [2, 3]),
        ("rfla", [0, 1, 2], [2, 3, 4]),
        ("shapes", [0], [2]),
    ],
)
def test_an_object_has_its_best_anchor_outside_of_a_region(rule, best, left, turned):
    """Each anchor is one pixel further away than the one before; the first two lie in the region."""
    away = np.float32([2, 3, -4, -5, -6, -40])[:, None]
    anchors = jnp.asarray(np.float32([[100, 100, 120, 120]]) + away * np.float32([1, 0, 1, 0]))
    objects, region = [[100, 100, 120, 120]], [[110, 90, 160, 130]]
    bounds = {"positive": 0.99, "negative": 0.3, "min_positive": 0.2, "ignore_overlap": 0.5}
    for regions, expected in (((), best), (region, left)):
        truth = plain.ground_truth(objects, regions=regions, size=2)
        if turned:
            standing = jnp.concatenate([*horizontal.centre_size(truth.boxes), jnp.zeros((2, 1))], 1)
            truth = dataclasses.replace(truth, oriented=standing)
        if rule == "shapes":  # of GA-RPN
            shapes = matching.iou_of_shapes(((1.0, 1.0), (1.2, 1.0)))
            found = matching.match_max_iou(anchors, truth, **bounds, similarity=shapes)
        else:
            part = network(rule, positive_overlap=0.99)
            found = part.assign(anchors, jnp.zeros(6, int), truth, jnp.array(1.0))
        assert np.flatnonzero(found.positive).tolist() == expected
        assert not (regions and found.negative[:2].any())


def test_the_levels_of_anchors_are_counted_from_the_finest():
    grids = tuple(jnp.zeros((count, 4)) for count in (3, 2, 1))
    assert levels_of(grids).tolist() == [0, 0, 0, 1, 1, 2]


def test_proposals_are_suppressed_by_the_similarity_of_the_configuration(rng):
    """Its constant counts stored pixels: in an enlarged picture it is larger."""
    boxes = jnp.sort(jnp.asarray(rng.uniform(0, 60, (1, 30, 2, 2)), jnp.float32), 2).reshape(1, 30, 4)
    logits = -jnp.arange(30.0)[None]
    kept = {}
    for name, scale in (("iou", 1.0), ("nwd", 1.0), ("nwd", 3.0)):
        proposals = {"max_proposals": 30, "nms_similarity": name, "test": {"candidates": 30, "nms_overlap": 0.5}}
        outputs = Outputs((boxes[0],), (logits,), (jnp.zeros((1, 30, 4)),))
        part = network(proposals=proposals)
        found = part.choose(outputs, jnp.full((1, 2), 64.0), jnp.array([scale]), "test")
        constants = {} if name == "iou" else {"constant": 12.7 * scale}
        overlaps = np.array([[plain.similarity(name, a, b, constants) for b in boxes[0]] for a in boxes[0]])
        keep = nms.suppress(boxes[0], jnp.ones(30, bool), 0.5, lambda a, b, o=overlaps: jnp.asarray(o, jnp.float32))
        kept[name, scale] = int(keep.sum())
        assert found.valid.sum() == keep.sum()
        np.testing.assert_allclose(found.boxes[0, : int(keep.sum())], boxes[0][np.asarray(keep)], atol=1e-4)
    assert len(set(kept.values())) == 3


@pytest.mark.parametrize("name", ["l1", "smooth_l1", "iou", "nwd"])
def test_box_losses_equal_the_loop(rng, name):
    anchors, boxes = plain.some_boxes(rng, 12), plain.some_boxes(rng, 12)
    anchors[:, 2:] += 3
    boxes[:, 2:] += 3
    deltas, stds = rng.normal(size=(12, 4)).astype(np.float32) / 4, (0.5, 0.5, 1.0, 1.0)
    if name == "smooth_l1":
        part = tiny.network("guided_anchor", box_loss=name, smooth_beta=0.5)
    else:
        part = network(box_loss=name)
    given = (jnp.asarray(x) for x in (anchors, deltas, boxes))
    anchors_, deltas_, boxes_ = given
    ours = part.box_losses(stds, anchors_, deltas_, boxes_, jnp.array(1.5))
    decoded = np.asarray(horizontal.decode(anchors_, deltas_, stds))
    distances = np.abs(deltas - np.asarray(horizontal.encode(anchors_, boxes_, stds)))
    if name == "l1":
        expected = distances.sum(1)
    elif name == "smooth_l1":
        expected = np.where(distances < 0.5, distances**2, distances - 0.25).sum(1)
    else:
        pairs = zip(decoded, boxes, strict=True)
        expected = [1 - plain.similarity(name, a, b, {"constant": 1.5 * 12.7}) for a, b in pairs]
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)
