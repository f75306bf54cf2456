"""The adaptive convolution as a module: per image, against the reference, without a gradient to the boxes."""

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax.models.adaptive_conv import AdaptiveConv


def test_module_and_its_gradients_agree_with_the_reference(golden):
    data = golden("deform_conv")
    x, boxes = jnp.asarray(data["a_x"].transpose(0, 2, 3, 1)), jnp.asarray(data["a_boxes"])
    kernel = jnp.asarray(data["a_weight"].transpose(2, 3, 1, 0))
    stride, module = int(data["a_stride"]), AdaptiveConv(6)

    def apply(kernel, x, boxes):
        return module.apply({"params": {"kernel": kernel}}, x, boxes, stride)

    y, pull = jax.vjp(apply, kernel, x, boxes)
    of_kernel, of_x, of_boxes = pull(jnp.asarray(data["a_gy"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(y, data["a_y"].transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_kernel, data["a_gweight"].transpose(2, 3, 1, 0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_x, data["a_gx"].transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(of_boxes, np.zeros(boxes.shape))  # the boxes are where to look, not what to learn


def test_parameters_are_one_kernel_without_bias():
    variables = AdaptiveConv(5).init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 4, 4)), 4)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"kernel": (3, 3, 3, 5)}


def test_low_precision_features_are_read_at_exact_points():
    box = jnp.array([[[1000.0, 1000.0, 1009.0, 1009.0]] * 4])  # bfloat16 would move it by pixels
    x = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    module = AdaptiveConv(2)
    variables = module.init(jax.random.key(0), x, box, 4)
    near = jnp.array([[[0.0, 0.0, 8.0, 8.0]] * 4])
    assert module.apply(variables, x, near, 4).dtype == jnp.bfloat16
    np.testing.assert_array_equal(module.apply(variables, x, box, 4), np.zeros((1, 2, 2, 2)))
