"""The feature pyramid against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.fpn import FPN, strides_of
from tests import plain


@pytest.fixture
def maps(rng):
    """C2..C5 of an image of 64 x 96."""
    return tuple(jnp.asarray(rng.normal(size=(2, 16 >> k, 24 >> k, 3 + k)), jnp.float32) for k in range(4))


def test_pyramid_equals_the_loop(rng, maps):
    neck = FPN(4, 4)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
        jax.eval_shape(lambda: neck.init(jax.random.key(0), maps)),
    )
    params = jax.tree.map(np.asarray, variables["params"])

    def conv(x, name):
        return plain.convolve(x, params[name]["kernel"]) + params[name]["bias"]

    merged = [conv(np.asarray(x), f"lateral{level}") for level, x in enumerate(maps, 2)]
    for fine, coarse in ((2, 3), (1, 2), (0, 1)):  # coarse to fine, so that C5 reaches P2
        for i in range(merged[fine].shape[1]):
            for j in range(merged[fine].shape[2]):
                merged[fine][:, i, j] += merged[coarse][:, i // 2, j // 2]
    for level, (ours, x) in enumerate(zip(jax.jit(neck.apply)(variables, maps), merged, strict=True), 2):
        np.testing.assert_allclose(ours, conv(x, f"output{level}"), rtol=1e-4, atol=1e-3)


def test_the_sixth_level_is_every_second_cell_of_the_fifth(maps):
    neck = FPN(4, 5)
    pyramid, variables = jax.jit(neck.init_with_output)(jax.random.key(0), maps)
    assert len(pyramid) == 5
    np.testing.assert_array_equal(pyramid[4], pyramid[3][:, ::2, ::2])
    shorter = jax.jit(FPN(4, 4).apply)(variables, maps)
    jax.tree.map(np.testing.assert_array_equal, shorter, pyramid[:4])
    assert strides_of(5) == (4, 8, 16, 32, 64)
