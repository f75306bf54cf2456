"""Feature pyramid network (Lin et al. 2017)."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from cfinet_jax.models.layers import conv, xavier_uniform


class FPN(nn.Module):
    """Maps P2, P3, ... with the same number of channels from C2..C5; a fifth level, P6, is every second cell of P5."""

    channels: int
    levels: Literal[4, 5]

    @nn.compact
    def __call__(self, maps: tuple[Array, ...]) -> tuple[Array, ...]:
        def project(size: int, name: str) -> nn.Conv:
            return conv(self.channels, size, use_bias=True, kernel_init=xavier_uniform, name=name)

        merged = [project(1, f"lateral{level}")(x) for level, x in enumerate(maps, 2)]
        for level in range(len(merged) - 2, -1, -1):
            coarser = jnp.repeat(jnp.repeat(merged[level + 1], 2, axis=1), 2, axis=2)
            merged[level] += coarser
        pyramid = [project(3, f"output{level}")(x) for level, x in enumerate(merged, 2)]
        if self.levels == len(pyramid) + 1:
            pyramid.append(pyramid[-1][:, ::2, ::2])
        return tuple(pyramid[: self.levels])


def strides_of(levels: int) -> tuple[int, ...]:
    """Return the input pixels per cell of P2, P3, ..."""
    return tuple(4 << level for level in range(levels))
