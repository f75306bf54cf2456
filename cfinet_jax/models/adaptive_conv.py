"""Feature adaption of CRPN's fine stage: a convolution guided by the boxes of the coarse stage."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.models.layers import small_normal
from cfinet_jax.ops import deformable


class AdaptiveConv(nn.Module):
    """A 3x3 convolution without bias whose taps lie on one box per cell."""

    channels: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch rows columns inputs"], boxes: Float[Array, "batch cells 4"], stride: int
    ) -> Array:
        kernel = self.param("kernel", small_normal, (3, 3, features.shape[-1], self.channels))

        def of_image(image: tuple[Array, Array]) -> Array:
            features, boxes = image
            points = deformable.tap_points(boxes, stride)
            return deformable.deformable_conv(features, kernel.astype(features.dtype), points)

        # One image at a time: the backward pass of a tap needs several times the memory of its map, in float32.
        return jax.lax.map(of_image, (features, jax.lax.stop_gradient(boxes).astype(jnp.float32)))
