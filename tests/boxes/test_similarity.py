"""Similarities against float64 loops, what must hold for all of them, and the units of their constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.boxes.similarity import SIMILARITIES, in_pixels, paired_nwd
from configs.sodad import get_config
from tests import plain

CONSTANTS = get_config().detector.similarities.to_dict()
COMPILED = {name: jax.jit(lambda a, b, f=f, c=CONSTANTS[name]: f(a, b, **c)) for name, f in SIMILARITIES.items()}
IN_NETWORK = {
    name: jax.jit(lambda a, b, scale, f=f, c=CONSTANTS[name]: f(a, b, **in_pixels(c, scale)))
    for name, f in SIMILARITIES.items()
}
SYMMETRIC = sorted(set(SIMILARITIES) - {"kl"})
names = st.sampled_from(sorted(SIMILARITIES))
seeds = st.integers(0, 2**32 - 1)
sides = st.floats(1.0, 40.0)


def moved(box: list[float], shifts: np.ndarray, axis: int) -> jax.Array:
    """A box at every shift along an axis."""
    boxes = np.tile(np.float32(box), (len(shifts), 1))
    boxes[:, [axis, axis + 2]] += np.float32(shifts)[:, None]
    return jnp.asarray(boxes)


@given(seeds, names)
def test_similarities_equal_the_loop_and_lie_between_0_and_1(seed, name):
    rng = np.random.default_rng(seed)
    a, b = plain.some_boxes(rng, 12), plain.some_boxes(rng, 9)
    found = np.asarray(COMPILED[name](a, b))
    expected = [[plain.similarity(name, x, y, CONSTANTS[name]) for y in b] for x in a]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
    assert (found >= 0).all() and (found <= 1 + 1e-6).all()


@given(seeds, st.sampled_from(SYMMETRIC))
def test_the_order_of_the_boxes_does_not_matter(seed, name):
    rng = np.random.default_rng(seed)
    a, b = plain.some_boxes(rng, 12), plain.some_boxes(rng, 9)
    np.testing.assert_allclose(COMPILED[name](a, b), COMPILED[name](b, a).T, rtol=1e-6)


@given(seeds, names)
def test_a_box_is_like_itself_and_less_like_others(seed, name):
    boxes = plain.some_boxes(np.random.default_rng(seed), 12)
    boxes[:, 2:] += 1  # an empty box has no IoU even with itself
    found = np.asarray(COMPILED[name](boxes, boxes))
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-6)
    assert (found <= np.diag(found) + 1e-6).all()


@given(names, sides, sides, st.integers(0, 1))
def test_the_further_the_less_alike(name, width, height, axis):
    box = [100.0, 100.0, 100.0 + width, 100.0 + height]
    found = np.asarray(COMPILED[name](jnp.array([box]), moved(box, np.linspace(0, 60, 40), axis)))[0]
    assert (np.diff(found) <= 1e-6).all() and found[0] > found[-1]
    if name != "iou":  # which is 0 as soon as boxes do not touch
        assert (np.diff(found) < 0).all()


def test_by_hand():
    a = jnp.array([[0.0, 0.0, 10.0, 10.0]])
    shifted, larger = jnp.array([[3.0, 4.0, 13.0, 14.0]]), jnp.array([[-5.0, -5.0, 15.0, 15.0]])
    for name, of_shift, of_size in (
        ("nwd", np.exp(-5 / 12.7), np.exp(-np.sqrt(50) / 12.7)),  # half of the sides differ by 5 and 5
        ("dotd", np.exp(-5 / 12.7), 1.0),
        ("wasserstein", 1 / (1 + 25), 1 / (1 + 50)),
        ("iou", 42 / 158, 1 / 4),
        ("kl", 1 / (1 + 2 * (0.3**2 + 0.4**2)), 1 / (1 + (1 / 4 - 1 + 2 * np.log(2)))),
    ):
        np.testing.assert_allclose(COMPILED[name](a, shifted), [[of_shift]], rtol=1e-5)
        np.testing.assert_allclose(COMPILED[name](a, larger), [[of_size]], rtol=1e-5)
    # An offset of the object's side costs 2, whatever the prior; a large prior is worse than a small one is good.
    np.testing.assert_allclose(COMPILED["kl"](moved([0, 0, 10, 10], np.array([10.0]), 0), a), [[1 / 3]], rtol=1e-5)
    assert COMPILED["kl"](larger, a) != COMPILED["kl"](a, larger)


def test_a_translation_by_the_constant_leaves_a_third():
    boxes = moved([0, 0, 8, 20], np.array([0.0, 12.7]), 1)
    for name in ("nwd", "dotd"):
        np.testing.assert_allclose(COMPILED[name](boxes, boxes)[0, 1], np.exp(-1), rtol=1e-6)


@given(seeds)
def test_the_paired_form_is_the_diagonal(seed):
    rng = np.random.default_rng(seed)
    a, b = plain.some_boxes(rng, 12), plain.some_boxes(rng, 12)
    paired = jax.jit(lambda a, b: paired_nwd(a, b, 12.7))(a, b)
    np.testing.assert_allclose(paired, np.diag(np.asarray(COMPILED["nwd"](a, b))), rtol=1e-6)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_empty_equal_and_distant_boxes_have_finite_values_and_gradients(name):
    boxes = jnp.array([
        [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 5.0], [1.0, 1.0, 4.0, 4.0], [1.0, 1.0, 4.0, 4.0 + 1e-6],
        [1e4, 1e4, 2e4, 2e4], [9.0, 9.0, 5.0, 5.0],
    ])  # fmt: skip
    values, gradients = jax.jit(
        jax.value_and_grad(lambda a, b: SIMILARITIES[name](a, b, **CONSTANTS[name]).sum(), (0, 1))
    )(boxes, boxes)
    assert np.isfinite(values)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@given(seeds, st.sampled_from(["nwd", "dotd", "wasserstein", "iou"]), st.sampled_from([0.5, 1.5, 3.0]))
def test_constants_in_stored_pixels_give_in_the_network_what_they_give_as_stored(seed, name, scale):
    rng = np.random.default_rng(seed)
    a, b = plain.some_boxes(rng, 8), plain.some_boxes(rng, 8)
    enlarged = IN_NETWORK[name](scale * a, scale * b, scale)
    np.testing.assert_allclose(enlarged, COMPILED[name](a, b), rtol=1e-3, atol=1e-5)


def test_the_configuration_has_constants_of_every_row():
    assert set(CONSTANTS) == set(SIMILARITIES)
