"""The layers that every part of the detector is built from: Flax's, computing in the type of their input."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

small_normal = nn.initializers.normal(0.01)
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform = nn.initializers.xavier_uniform()


def as_input(*arrays: Any, **_: Any) -> list[Any]:
    """Convert parameters to the type of the input, where Flax would promote a bfloat16 input to float32."""
    return [None if each is None else each.astype(arrays[0].dtype) for each in arrays]


def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Any, **options: Any) -> Array:
    """Convolve, a 1x1 kernel as a matrix product: 1.5 times faster on CPUs."""
    if kernel.shape[:2] == (1, 1):
        return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def conv(
    features: int,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    use_bias: bool = False,
    kernel_init: Callable[..., Array] = he_normal,
    **options: Any,
) -> nn.Conv:
    """Return a convolution that pads both sides alike and, at stride 1, keeps the size of a map.

    Args:
      features: Output channels.
      size: Side of the kernel, odd.
      stride: Cells between two outputs.
      dilation: Cells between two taps of the kernel.
      use_bias: Whether it has a bias.
      kernel_init: Initialiser of the kernel.
      **options: Other fields of `flax.linen.Conv`, such as `name`.
    """
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=dilation * (size // 2),  # `SAME` with a stride would pad an even map on one side only
        kernel_dilation=(dilation, dilation),
        use_bias=use_bias,
        kernel_init=kernel_init,
        promote_dtype=as_input,
        conv_general_dilated=convolve,
        **options,
    )


dense = partial(nn.Dense, promote_dtype=as_input)


class FrozenBatchNorm(nn.Module):
    """Batch norm with constant statistics: scale and bias learn, mean and variance never change."""

    scale: float = 1.0  # initial value

    @nn.compact
    def __call__(self, x: Float[Array, "batch rows columns channels"]) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.constant(self.scale), shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
        variance = self.variable("batch_stats", "var", jnp.ones, shape).value
        factor = scale * jax.lax.rsqrt(variance + 1e-5)
        return x * factor.astype(x.dtype) + (bias - mean * factor).astype(x.dtype)
