"""Functions of boxes of either kind do what the module of that kind does."""

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax.boxes import horizontal, kinds, oriented
from tests import plain
from tests.oriented import some_boxes

STDS = (0.1, 0.1, 0.2, 0.2, 0.1)


def test_the_number_of_columns_says_the_kind(rng):
    upright, turned = jnp.asarray(plain.some_boxes(rng, 5)), jnp.asarray(some_boxes(rng, 5))
    assert kinds.kind_of(upright) is horizontal and kinds.kind_of(turned[None]) is oriented
    np.testing.assert_array_equal(kinds.enclose(upright), upright)
    np.testing.assert_array_equal(kinds.enclose(turned), oriented.enclose(turned))


def test_coders_lead_from_regions_to_boxes_and_back(rng):
    upright, others = (jnp.asarray(plain.some_boxes(rng, 8) + np.float32([0, 0, 4, 4])) for _ in range(2))
    turned, more = jnp.asarray(some_boxes(rng, 8)), jnp.asarray(some_boxes(rng, 8))
    cases = {
        (4, 4): (upright, others, horizontal.encode(upright, others, STDS[:4])),
        (4, 5): (upright, turned, oriented.encode_horizontal(upright, turned, STDS)),
        (5, 5): (more, turned, oriented.encode(more, turned, STDS)),
    }
    for (_, numbers), (regions, boxes, expected) in cases.items():
        stds = STDS[:numbers]
        deltas = jax.jit(lambda *a, stds=stds: kinds.encode(*a, stds))(regions, boxes)
        np.testing.assert_allclose(deltas, expected, rtol=1e-4, atol=1e-4)
        back = jax.jit(lambda *a, stds=stds: kinds.decode(*a, stds))(regions, deltas)
        np.testing.assert_allclose(kinds.enclose(back), kinds.enclose(boxes), rtol=1e-3, atol=1e-2)
