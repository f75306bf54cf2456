"""ResNet-18/34/50/101 (He et al. 2016) with constant batch-norm statistics."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.models.layers import FrozenBatchNorm, conv


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first has the stride, whatever the style."""

    width: int
    stride: int
    stride_style: str
    last_norm_scale: float
    expansion = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = conv(self.width, 3, self.stride, name="conv1")(x)
        y = nn.relu(FrozenBatchNorm(name="bn1")(y))
        y = conv(self.width, 3, name="conv2")(y)
        y = FrozenBatchNorm(self.last_norm_scale, name="bn2")(y)
        return nn.relu(y + shortcut(x, y.shape[-1], self.stride))


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 and a shortcut; the stride is in the 3x3 (`pytorch`) or the first 1x1 (`caffe`)."""

    width: int
    stride: int
    stride_style: Literal["pytorch", "caffe"]
    last_norm_scale: float
    expansion = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        strides = {"pytorch": (1, self.stride), "caffe": (self.stride, 1)}[self.stride_style]
        y = conv(self.width, 1, strides[0], name="conv1")(x)
        y = nn.relu(FrozenBatchNorm(name="bn1")(y))
        y = conv(self.width, 3, strides[1], name="conv2")(y)
        y = nn.relu(FrozenBatchNorm(name="bn2")(y))
        y = conv(self.width * self.expansion, 1, name="conv3")(y)
        y = FrozenBatchNorm(self.last_norm_scale, name="bn3")(y)
        return nn.relu(y + shortcut(x, y.shape[-1], self.stride))


def shortcut(x: Array, channels: int, stride: int) -> Array:
    """Return the input of a residual block, projected if its shape changes; called inside the block."""
    if stride == 1 and x.shape[-1] == channels:
        return x
    return FrozenBatchNorm(name="downsample_bn")(conv(channels, 1, stride, name="downsample_conv")(x))


DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """Feature maps C2..C5 of images, at strides 4, 8, 16, 32.

    `frozen_stages`: 1 freezes the stem and the first stage, 0 the stem, -1 nothing. `last_norm_scale` is the initial
    scale of residual branches: 0.3 makes training from scratch possible despite constant statistics, 1 is for
    published weights.
    """

    depth: Literal[18, 34, 50, 101]
    width: int
    stride_style: Literal["pytorch", "caffe"]
    frozen_stages: int
    last_norm_scale: float

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]) -> tuple[Array, ...]:
        x = conv(self.width, 7, stride=2, name="conv1")(images)
        x = nn.relu(FrozenBatchNorm(name="bn1")(x))
        # Zeros are harmless: nothing is negative after ReLU.
        x = nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        x = self.freeze(x, 0)
        block, counts = DEPTHS[self.depth]
        maps = []
        for stage, count in enumerate(counts, 1):
            for index in range(count):
                x = block(
                    self.width * 2 ** (stage - 1),
                    2 if stage > 1 and index == 0 else 1,
                    self.stride_style,
                    self.last_norm_scale,
                    name=f"layer{stage}_{index}",
                )(x)
            x = self.freeze(x, stage)
            maps.append(x)
        return tuple(maps)

    def freeze(self, x: Array, stage: int) -> Array:
        """Stop the gradient after every frozen stage: each of their maps feeds the pyramid."""
        return jax.lax.stop_gradient(x) if stage <= self.frozen_stages else x


def frozen_parts(frozen_stages: int) -> tuple[str, ...]:
    """Return the path prefixes, inside the backbone, of the parameters that are frozen."""
    stem = ("conv1/", "bn1/") if frozen_stages >= 0 else ()
    return stem + tuple(f"layer{stage}_" for stage in range(1, frozen_stages + 1))
