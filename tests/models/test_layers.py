"""Layers against plain loops and the reference's dilated convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.layers import Conv, FrozenBatchNorm, GroupNorm, Linear, small_normal
from tests import plain


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "padding", "shape"),
    [
        (3, 1, 1, None, (6, 7)),
        (3, 2, 1, None, (8, 6)),  # an even map: TensorFlow's `SAME` would pad on one side only
        (7, 2, 1, None, (12, 14)),
        (3, 1, 3, None, (9, 8)),
        (3, 1, 1, 0, (6, 5)),
        (1, 1, 1, None, (4, 5)),
        (1, 2, 1, None, (6, 5)),
    ],
)
def test_convolution_equals_the_loop(rng, size, stride, dilation, padding, shape):
    x = jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)
    conv = Conv(4, size, stride, dilation, padding, use_bias=True)
    params = conv.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.asarray(rng.normal(size=4), jnp.float32)
    expected = plain.convolve(np.asarray(x), np.asarray(params["kernel"]), stride, dilation, padding) + params["bias"]
    np.testing.assert_allclose(conv.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


def test_dilated_convolution_and_its_gradients_agree_with_the_reference(golden):
    data = golden("deform_conv")
    assert data["b_dilation"] == data["b_padding"] == 3
    x = jnp.asarray(data["b_x"].transpose(0, 2, 3, 1))
    params = {"kernel": jnp.asarray(data["b_weight"].transpose(2, 3, 1, 0)), "bias": jnp.asarray(data["b_bias"])}
    conv = Conv(6, 3, dilation=3, use_bias=True)
    y, pull = jax.vjp(lambda params, x: conv.apply({"params": params}, x), params, x)
    of_params, of_x = pull(jnp.asarray(data["b_gy"].transpose(0, 2, 3, 1)))
    for ours, expected in (
        (y, data["b_y"].transpose(0, 2, 3, 1)),
        (of_x, data["b_gx"].transpose(0, 2, 3, 1)),
        (of_params["kernel"], data["b_gweight"].transpose(2, 3, 1, 0)),
        (of_params["bias"], data["b_gbias"]),
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_linear_equals_the_formula(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    layer = Linear(4, small_normal)
    params = layer.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.asarray(rng.normal(size=4), jnp.float32)
    expected = np.asarray(x) @ np.asarray(params["kernel"]) + params["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-6)


def test_frozen_batch_norm_equals_the_formula(rng):
    x, scale, bias, mean = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 3, 4), (4,), (4,), (4,)))
    variance = jnp.asarray([0.5, 1.0, 1e-5, 4.0])
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": variance}}
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    ours, changed = FrozenBatchNorm().apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(("layer", "scale"), [(FrozenBatchNorm(0.3), 0.3), (FrozenBatchNorm(), 1), (GroupNorm(2), 1)])
def test_norms_start_at_their_scale_and_change_nothing_else(layer, scale):
    variables = layer.init(jax.random.key(0), jnp.ones((1, 1, 1, 4)))
    found = {name: leaf.tolist() for part in variables.values() for name, leaf in part.items()}
    start = {"scale": pytest.approx([scale] * 4), "bias": [0] * 4, "mean": [0] * 4, "var": [1] * 4}
    assert found == {name: start[name] for name in found}


@pytest.mark.parametrize("layer", [Conv(200, 1, use_bias=True, kernel_init=small_normal), Linear(200, small_normal)])
def test_small_layers_start_near_zero(layer):
    params = layer.init(jax.random.key(0), jnp.ones((1, 1, 1, 200)))["params"]
    assert float(params["kernel"].std()) == pytest.approx(0.01, rel=0.02) and not params["bias"].any()


@pytest.mark.parametrize("shape", [(5, 6), (1, 1)])
def test_group_norm_equals_the_loop(rng, shape):
    x = rng.normal(size=(2, *shape, 8)).astype(np.float32)
    params = {name: jnp.asarray(rng.normal(size=8), jnp.float32) for name in ("scale", "bias")}
    expected = np.zeros_like(x)
    for image in range(2):
        for group in range(4):  # of two neighbouring channels
            part = x[image, :, :, 2 * group : 2 * group + 2]
            expected[image, :, :, 2 * group : 2 * group + 2] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    ours = GroupNorm(4).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-3)


def test_group_norm_of_a_constant_has_a_finite_gradient():
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    gradient = jax.grad(lambda x: GroupNorm(4).apply({"params": params}, x).sum())(jnp.ones((1, 2, 2, 8)))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("layer", [Conv(4, 3, use_bias=True), FrozenBatchNorm(), GroupNorm(2), Linear(3, small_normal)])
def test_layers_compute_in_the_type_of_their_input(layer):
    x = jnp.ones((1, 4, 4, 4), jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
