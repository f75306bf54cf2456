"""Bilinear reading against a plain loop, inside the map, on its border and outside."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.ops import bilinear
from tests import plain

SHAPE = (5, 7)


@jax.jit
def read(feature, points):
    cells, weights = bilinear.corners(points, jnp.array(SHAPE, jnp.int32))
    return bilinear.read(feature.reshape(-1, feature.shape[-1]), cells[..., 0] * SHAPE[1] + cells[..., 1], weights)


@given(st.integers(0, 2**32 - 1))
def test_read_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    feature = rng.normal(size=(*SHAPE, 3)).astype(np.float32)
    points = rng.uniform(-2, 9, (40, 2)).astype(np.float32)
    points[::4] = points[::4].round()  # on cells, and on and beyond the border
    expected = [plain.bilinear(feature, y, x) for y, x in points]
    np.testing.assert_allclose(read(feature, points), expected, rtol=1e-4, atol=1e-5)


def test_corners_stay_inside_and_weigh_one_there():
    points = jnp.array([[0.0, 0.0], [1.25, 3.5], [4.0, 6.0], [-1.5, 2.0], [2.0, 7.5]])
    cells, weights = bilinear.corners(points, jnp.array(SHAPE, jnp.int32))
    assert (cells >= 0).all() and (cells < jnp.array(SHAPE)).all()
    np.testing.assert_allclose(weights.sum(1), [1, 1, 1, 0, 0])


def test_the_gradient_reaches_the_cells_that_were_read():
    feature = jnp.zeros((*SHAPE, 1))
    gradient = jax.grad(lambda feature: read(feature, jnp.array([[1.25, 3.5], [-0.5, 6.0]])).sum())(feature)
    expected = np.zeros((*SHAPE, 1))
    expected[1, 3:5], expected[2, 3:5], expected[0, 6] = 0.375, 0.125, 0.5
    np.testing.assert_allclose(gradient, expected)
