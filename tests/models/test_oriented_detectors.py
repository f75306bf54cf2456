"""Every detector of oriented boxes: finite losses and gradients in every corner case, and what it finds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.errors import UserError
from cfinet_jax.models.detector import ROI_HEADS, build_detector
from cfinet_jax.ops import matching
from cfinet_jax.train_step import empty_batch
from configs import sodaa
from tests import tiny

DETECTORS = list(sodaa.VARIANTS)
EVERYWHERE = {"proposals/objectness", "roi/class"}  # losses that background has, too


@functools.cache
def built(variant: str):
    """A small detector, its parameters and a full memory."""
    detector = build_detector(tiny.settings(variant, sodaa), 9)

    def create(key):
        batch = empty_batch(1, tiny.SHAPE, tiny.OBJECTS, oriented=True)
        chances = detector.draw_priorities(key, batch.index, tiny.SHAPE, tiny.OBJECTS)
        return detector.init(key, batch, detector.empty_memory(), chances, method="losses")

    memory = detector.empty_memory()
    return detector, jax.jit(create)(jax.random.key(0)), None if memory is None else tiny.full_memory(memory)


@functools.cache
def step_of(variant: str):
    """A jitted function: batch -> (gradient of the sum of all losses, losses, statistics)."""
    detector, variables, memory = built(variant)

    def forward(params, batch):
        chances = detector.draw_priorities(jax.random.key(1), batch.index, tiny.SHAPE, tiny.OBJECTS)
        state = variables | {"params": params}
        losses, statistics, _ = detector.apply(state, batch, memory, chances, method="losses")
        return sum(term.total.sum() for term in losses.values()), (losses, statistics)

    def run(batch):
        gradient, (losses, statistics) = jax.grad(forward, has_aux=True)(variables["params"], batch)
        return gradient, losses, statistics

    return jax.jit(run)


def test_every_head_is_in_an_experiment():
    heads = {tiny.settings(variant, sodaa).roi_head.name for variant in DETECTORS}
    assert heads | {tiny.settings().roi_head.name} == set(ROI_HEADS)


@pytest.mark.parametrize("variant", DETECTORS)
def test_losses_and_gradients_are_finite(variant):
    step = step_of(variant)
    for objects in (0, 3, tiny.OBJECTS):
        gradient, losses, statistics = step(tiny.turned(tiny.batch(objects)))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, losses, statistics)))
        zero = {name for name, term in losses.items() if not np.asarray(term.total).any()}
        assert zero == (set() if objects else set(losses) - EVERYWHERE)
    learns = {part for part, of in gradient.items() if any((x != 0).any() for x in jax.tree.leaves(of))}
    assert learns == {"backbone", "neck", "proposal_network", "roi_head"} | ({"imitation"} & gradient.keys())


@pytest.mark.parametrize("variant", DETECTORS)
def test_padding_does_not_matter_and_in_ignore_regions_nothing_is_learnt(variant):
    step, batch = step_of(variant), tiny.turned(tiny.batch(2))
    truth = batch.ground_truth
    other = tiny.with_oriented(
        batch, jnp.where(truth.valid[..., None], truth.oriented, jnp.array([5.0, 5.0, 9.0, 0.0, 1.0]))
    )
    losses, others = step(batch)[1], step(other)[1]
    for name in losses:
        np.testing.assert_allclose(losses[name].total, others[name].total, rtol=1e-5, err_msg=name)
    gradient, losses, _ = step(tiny.turned(tiny.batch(0, regions=[[-100.0, -100.0, 200.0, 200.0]])))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves((gradient, [t.total for t in losses.values()])))


@pytest.mark.parametrize("variant", DETECTORS)
def test_detections_are_oriented_and_proposals_upright(variant):
    detector, variables, _ = built(variant)
    heated = jax.tree.map(lambda x: x, variables)
    heated["params"]["roi_head"]["classify"]["kernel"] *= 200  # or no class would reach the lowest score
    batch = dataclasses.replace(tiny.batch(), sizes=jnp.array([[64.0, 64.0], [40.0, 52.0]]))
    found, proposals = jax.jit(lambda v, b: detector.apply(v, b, method="detect"))(heated, batch)
    limit = np.asarray(batch.sizes)[:, None, ::-1]
    assert found.boxes.shape == (2, 20, 5) and proposals.boxes.shape == (2, 40, 4)
    assert found.valid.any() and proposals.valid.any()
    assert (found.boxes[..., :2] >= 0).all() and (found.boxes[..., :2] <= limit).all()
    assert (found.boxes[..., 2] >= found.boxes[..., 3]).all() and (np.abs(found.boxes[..., 4]) <= np.pi / 2).all()
    for some in (found, proposals):
        assert (np.diff(some.scores, axis=1) <= 0).all() and np.isfinite(some.boxes).all()


@pytest.mark.parametrize(("size_of", "side"), [("enclosing", 45 / np.sqrt(2)), ("oriented", np.sqrt(40 * 5))])
def test_the_threshold_depends_on_the_size_of_the_chosen_box(size_of, side):
    """A bar of 40 x 5 pixels at 45 degrees stands in a square."""
    settings = tiny.settings("", sodaa)
    settings.proposal_network.coarse_to_fine.size_of = size_of
    network = build_detector(settings, 9).proposal_network
    bar = jnp.array([[[32.0, 32.0, 40.0, 5.0, np.pi / 4]]])
    truth = tiny.with_oriented(tiny.batch(1, images=1), bar).ground_truth
    measured = network.sized(jax.tree.map(lambda x: x[0], truth))
    rule = {"base_size": 1.0, "base": 0.0, "slope": 1.0, "low": 0.0, "cap": 9.0}
    threshold = matching.dynamic_thresholds(measured, jnp.float32(1), **rule)
    np.testing.assert_allclose(threshold, np.log2(side), rtol=1e-5)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("", {"proposal_network.name": "oriented_rpn"}, "go together"),
        ("oriented_rcnn", {"proposal_network.name": "rpn"}, "go together"),
        ("oriented_rcnn", {"imitation.enabled": True}, "set detector.imitation.enabled=False"),
        ("", {"roi_head.name": "slanted"}, "choose one of horizontal, rotated, oriented"),
        ("", {"proposal_network.coarse_to_fine.size_of": "none"}, "choose one of enclosing, oriented"),
        ("", {"roi_head.name": "horizontal"}, "has no key 'size_of'"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(variant, changes, message):
    settings = tiny.settings(variant, sodaa)
    settings.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        build_detector(settings, 9)
