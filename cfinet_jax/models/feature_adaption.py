"""Feature adaption of guided anchors: a deformable convolution guided by the predicted shapes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.models.layers import conv, small_normal
from cfinet_jax.ops import deformable


class FeatureAdaption(nn.Module):
    """A 3x3 convolution without bias whose taps move by offsets that are linear in the shape predicted in their cell.

    Each of `groups` parts of the channels has its own offsets. The offsets learn; the shapes get no gradient.
    """

    channels: int
    groups: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch rows columns inputs"], shapes: Float[Array, "batch rows columns 2"]
    ) -> Array:
        kernel = self.param("kernel", small_normal, (3, 3, features.shape[-1], self.channels))
        numbers = 2 * len(deformable.TAPS) * self.groups
        shapes = jax.lax.stop_gradient(shapes).astype(jnp.float32)
        offsets = conv(numbers, 1, kernel_init=nn.initializers.normal(0.1), name="offset")(shapes)

        def of_image(image: tuple[Array, Array]) -> Array:
            features, offsets = image
            points = deformable.offset_points(offsets, self.groups)
            return deformable.grouped_conv(features, kernel.astype(features.dtype), points)

        return jax.lax.map(of_image, (features, offsets))  # one image at a time, as in the adaptive convolution
