"""Layers against plain loops and the reference's dilated convolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.layers import FrozenBatchNorm, conv, dense
from tests import plain


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "shape"),
    [
        (3, 1, 1, (6, 7)),
        (3, 2, 1, (8, 6)),  # an even map: TensorFlow's `SAME` would pad on one side only
        (7, 2, 1, (12, 14)),
        (3, 1, 3, (9, 8)),
        (1, 1, 1, (4, 5)),
        (1, 2, 1, (6, 5)),
    ],
)
def test_convolution_equals_the_loop(rng, size, stride, dilation, shape):
    x = jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)
    layer = conv(4, size, stride, dilation, use_bias=True)
    params = layer.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.asarray(rng.normal(size=4), jnp.float32)
    expected = plain.convolve(np.asarray(x), np.asarray(params["kernel"]), stride, dilation) + params["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


def test_dilated_convolution_and_its_gradients_agree_with_the_reference(golden):
    data = golden("deform_conv")
    assert data["b_dilation"] == data["b_padding"] == 3
    x = jnp.asarray(data["b_x"].transpose(0, 2, 3, 1))
    params = {"kernel": jnp.asarray(data["b_weight"].transpose(2, 3, 1, 0)), "bias": jnp.asarray(data["b_bias"])}
    layer = conv(6, 3, dilation=3, use_bias=True)
    y, pull = jax.vjp(lambda params, x: layer.apply({"params": params}, x), params, x)
    of_params, of_x = pull(jnp.asarray(data["b_gy"].transpose(0, 2, 3, 1)))
    for ours, expected in (
        (y, data["b_y"].transpose(0, 2, 3, 1)),
        (of_x, data["b_gx"].transpose(0, 2, 3, 1)),
        (of_params["kernel"], data["b_gweight"].transpose(2, 3, 1, 0)),
        (of_params["bias"], data["b_gbias"]),
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_frozen_batch_norm_starts_at_its_scale_and_equals_the_formula(rng):
    start = FrozenBatchNorm(0.3).init(jax.random.key(0), jnp.ones((1, 1, 1, 4)))
    np.testing.assert_allclose(start["params"]["scale"], [0.3] * 4)
    x, scale, bias, mean = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 3, 4), (4,), (4,), (4,)))
    variance = jnp.asarray([0.5, 1.0, 1e-5, 4.0])
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": variance}}
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    ours, changed = FrozenBatchNorm().apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_batch_norm_starts_at_its_scale(scale):
    variables = FrozenBatchNorm(scale).init(jax.random.key(0), jnp.ones((1, 1, 1, 4)))
    found = {name: leaf.tolist() for part in variables.values() for name, leaf in part.items()}
    assert found == {"scale": pytest.approx([scale] * 4), "bias": [0] * 4, "mean": [0] * 4, "var": [1] * 4}


@pytest.mark.parametrize("layer", [conv(4, 3, use_bias=True), conv(4, 1), dense(3), FrozenBatchNorm()])
def test_layers_compute_in_the_type_of_their_input(layer: nn.Module):
    x = jnp.ones((1, 4, 4, 4), jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
