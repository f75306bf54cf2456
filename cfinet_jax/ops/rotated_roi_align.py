"""RoIAlign of oriented boxes, with a fixed number of samples per bin."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cfinet_jax.boxes import oriented
from cfinet_jax.ops.roi_align import corners, flatten, sum_of_reads


def rotated_roi_align(
    pyramid: Sequence[Float[Array, "_ _ channels"]],
    boxes: Float[Array, "regions 5"],
    levels: Int[Array, " regions"],
    strides: Sequence[int],
    *,
    size: int,
    grid: int,
) -> Float[Array, "regions size size channels"]:
    """Pool `size` x `size` bins of each box, columns along its w, from the map of its level (half-pixel aligned).

    A bin is the mean of `grid` x `grid` samples; samples more than a cell outside the map are zero. They are visited
    one at a time, as in `roi_align`. Boxes get no gradient.

    Args:
      pyramid: Feature maps, fine to coarse.
      boxes: Regions, in network pixels.
      levels: The map of each region.
      strides: Pixels per cell of each map.
      size: Bins each way; 7 in Oriented R-CNN (Xie et al. 2021).
      grid: Samples of a bin each way; 2 there.
    """
    table, shape, first = flatten(pyramid, levels)
    boxes = oriented.resize(jax.lax.stop_gradient(boxes), 1 / jnp.asarray(strides, jnp.float32)[levels])
    limit = shape.astype(jnp.float32)[:, None, None]

    def read_by(share: Array) -> tuple[Array, Array]:
        points = sample_points(boxes, share, size) - 0.5
        real = ((points >= -1) & (points <= limit)).all(-1)
        return corners(jnp.clip(points, 0, limit - 1), jnp.where(real, 1 / grid**2, 0.0), shape, first)

    shares = (jnp.stack(np.indices((grid, grid)), -1).reshape(-1, 2) + 0.5) / grid
    total = sum_of_reads(table, *jax.lax.map(read_by, shares))
    return total.reshape(-1, size, size, table.shape[1]).astype(pyramid[0].dtype)


def sample_points(
    boxes: Float[Array, "regions 5"], share: Float[Array, "2"], size: int
) -> Float[Array, "regions size size 2"]:
    """Return the points (y, x) that lie `share` (down, along) of the way through every bin of the boxes."""
    down, along = (((jnp.arange(size) + share[k]) / size - 0.5) * boxes[:, 3 - k, None] for k in (0, 1))
    down, along = down[:, :, None], along[:, None]
    cos, sin = jnp.cos(boxes[:, 4, None, None]), jnp.sin(boxes[:, 4, None, None])
    x, y = along * cos - down * sin, along * sin + down * cos
    return jnp.stack([y + boxes[:, 1, None, None], x + boxes[:, 0, None, None]], -1)
