"""Operations of dots and convolutions, compared with counting one by one."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from cfinet_jax.studies.profile.flops import by_path, of_model, taps_on_inputs


def counted(function, *arguments):
    return dict(by_path(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.parametrize(
    "stride, padding, input_dilation, kernel_dilation", [*itertools.product((1, 2), (0, 3), (1, 2), (1, 3))]
)
def test_only_taps_on_inputs_count(stride, padding, input_dilation, kernel_dilation):
    inputs, kernel, outputs = 7, 3, 5
    there = {cell * input_dilation for cell in range(inputs)}
    taps = itertools.product(range(outputs), range(kernel))
    met = [o * stride - padding + k * kernel_dilation in there for o, k in taps]
    assert taps_on_inputs(inputs, outputs, kernel, stride, padding, input_dilation, kernel_dilation) == sum(met)


def test_a_convolution_and_its_gradient():
    def loss(kernel, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        with jax.named_scope("layer"):
            return jax.lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=dimensions).sum()

    kernel, x = jnp.zeros((3, 3, 4, 6)), jnp.zeros((2, 8, 8, 4))
    met = 11  # of 4 outputs with 3 taps one tap of the first is outside
    once = 2 * 2 * 4 * 6 * met**2
    assert counted(loss, kernel, x) == {"layer": once}
    assert counted(jax.grad(loss), kernel, x) == {"jvp(layer)": once, "transpose(jvp(layer))": once}
    both = counted(jax.grad(loss, (0, 1)), kernel, x)
    assert both == {"jvp(layer)": once, "transpose(jvp(layer))": 2 * once}


def test_loops_branches_and_recomputation():
    def loss(weight, x):
        def twice(x, _):
            return jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ weight) @ weight))(x), None

        with jax.named_scope("scan"):
            x, _ = jax.lax.scan(twice, x, None, length=3)
        with jax.named_scope("branch"):
            x = jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ weight, x)
        with jax.named_scope("loop"):
            x += jax.lax.stop_gradient(jax.lax.while_loop(lambda x: x[0, 0] > 1, lambda x: x @ weight, x))
        return x.sum()

    product = 2 * 2 * 5 * 5
    gradient = counted(jax.grad(loss), jnp.ones((5, 5)), jnp.ones((2, 5)))
    again = sum(flops for path, flops in gradient.items() if "rematted_computation" in path)
    assert again == 3 * 2 * product

    def of(part):
        return sum(flops for path, flops in gradient.items() if part in path) // product

    assert (of("jvp(scan)"), of("transpose(jvp(scan))")) == (6 + 6 + 12, 6 + 12)
    assert (of("jvp(branch)"), of("transpose(jvp(branch))"), of("loop")) == (3, 2, 1)


def test_the_model_is_the_differentiated_detector_without_recomputation():
    def losses(weight, x):
        with jax.named_scope("Detector.losses"):
            return jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ weight) @ weight))(x).sum()

    def step(weight, x):
        return jax.grad(losses)(weight, x @ x)

    jaxpr = jax.make_jaxpr(step)(jnp.ones((5, 5)), jnp.ones((5, 5))).jaxpr
    assert of_model(jaxpr) == 2 * 5**3 * (2 + 3)  # the inner product's input has no gradient
