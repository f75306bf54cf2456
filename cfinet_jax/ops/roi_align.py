"""RoIAlign over a feature pyramid, with the adaptive number of samples per bin."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cfinet_jax.ops import bilinear


def pyramid_levels(areas: Float[Array, " regions"], finest_scale: float, levels: int) -> Int[Array, " regions"]:
    """Return the level for boxes of these areas, in square pixels: floor(log2(side / finest_scale)), in 0..levels-1."""
    side = jnp.sqrt(jnp.maximum(areas, 0.0))
    return jnp.clip(jnp.floor(jnp.log2(side / finest_scale + 1e-6)), 0, levels - 1).astype(jnp.int32)


def sample_axis(
    start: Float[Array, " regions"],
    extent: Float[Array, " regions"],
    length: Float[Array, " regions"],
    index: Int[Array, ""],
    *,
    size: int,
    max_grid: int,
) -> tuple[Float[Array, "regions size"], Float[Array, "regions size"]]:
    """Return coordinates and weights of sample `index` of every bin along one axis, in cells.

    A bin takes ceil(extent / size) samples, at most `max_grid`. Samples beyond these, or more than a cell outside the
    map, have weight zero.

    Args:
      start: Where the regions begin.
      extent: How long they are.
      length: Cells of the map of each region.
      index: Number of the sample within its bin.
      size: Bins of a region.
      max_grid: Most samples of a bin.
    """
    grid = jnp.clip(jnp.ceil(extent / size), 0, max_grid)
    bins = jnp.arange(size, dtype=start.dtype) + ((index + 0.5) / jnp.maximum(grid, 1))[:, None]
    position = start[:, None] + bins * (extent / size)[:, None]
    length = length[:, None]
    real = (index < grid)[:, None] & (position >= -1) & (position <= length)
    weights = jnp.where(real, 1 / jnp.maximum(grid, 1)[:, None], 0.0)
    return jnp.clip(position, 0, length - 1), weights


def roi_align(
    pyramid: Sequence[Float[Array, "_ _ channels"]],
    boxes: Float[Array, "regions 4"],
    levels: Int[Array, " regions"],
    strides: Sequence[int],
    *,
    size: int,
    max_grid: int,
) -> Float[Array, "regions size size channels"]:
    """Pool `size` x `size` bins of each box from the map of its level (half-pixel aligned).

    Samples are visited one (row, column) at a time, so that nothing much larger than the result exists. Boxes get no
    gradient.

    Args:
      pyramid: Feature maps, fine to coarse.
      boxes: Regions, in network pixels.
      levels: The map of each region.
      strides: Pixels per cell of each map.
      size: Bins each way.
      max_grid: Most samples of a bin each way.
    """
    table, shape, first = flatten(pyramid, levels)
    boxes = jax.lax.stop_gradient(boxes) / jnp.asarray(strides, jnp.float32)[levels][:, None]
    start, extent = boxes[:, 1::-1] - 0.5, (boxes[:, 2:] - boxes[:, :2])[:, ::-1]  # (y, x)
    extent = jnp.maximum(extent, 0.0)
    length = shape.astype(jnp.float32)

    def read_by(index: Array) -> tuple[Array, Array]:
        axes = [
            sample_axis(start[:, k], extent[:, k], length[:, k], index[k], size=size, max_grid=max_grid) for k in (0, 1)
        ]
        (y, y_weights), (x, x_weights) = axes
        grid = jnp.broadcast_to(y[:, :, None], (*y.shape, size)), jnp.broadcast_to(x[:, None], (*y.shape, size))
        points, weights = jnp.stack(grid, -1), y_weights[:, :, None] * x_weights[:, None]
        return corners(points, weights, shape, first)

    samples = jnp.stack(jnp.meshgrid(jnp.arange(max_grid), jnp.arange(max_grid), indexing="ij"), -1).reshape(-1, 2)
    total = sum_of_reads(table, *jax.lax.map(read_by, samples))
    return total.reshape(-1, size, size, table.shape[1]).astype(pyramid[0].dtype)


def flatten(
    pyramid: Sequence[Float[Array, "_ _ channels"]], levels: Int[Array, " regions"]
) -> tuple[Float[Array, "cells channels"], Int[Array, "regions 2"], Int[Array, " regions"]]:
    """Stack the cells of all maps in one table; also return shape and first row of each region's map."""
    channels = pyramid[0].shape[-1]
    table = jnp.concatenate([features.reshape(-1, channels) for features in pyramid]).astype(jnp.float32)
    shapes = np.array([features.shape[:2] for features in pyramid])
    first = np.cumsum(np.prod(shapes, 1)) - np.prod(shapes, 1)
    return table, jnp.asarray(shapes, jnp.int32)[levels], jnp.asarray(first, jnp.int32)[levels]


def corners(
    points: Float[Array, "regions size size 2"],
    weights: Float[Array, "regions size size"],
    shape: Int[Array, "regions 2"],
    first: Int[Array, " regions"],
) -> tuple[Int[Array, "n 4"], Float[Array, "n 4"]]:
    """Return the four rows of the table around each point (y, x), and their weights."""
    bins = points.shape[1] * points.shape[2]
    cells, corner_weights = bilinear.corners(points.reshape(-1, 2), jnp.repeat(shape, bins, axis=0))
    columns = jnp.repeat(shape[:, 1], bins)[:, None]
    rows = jnp.repeat(first, bins)[:, None] + cells[..., 0] * columns + cells[..., 1]
    return rows, weights.reshape(-1, 1) * corner_weights


@jax.custom_vjp
def sum_of_reads(
    table: Float[Array, "cells channels"], rows: Int[Array, "samples n 4"], weights: Float[Array, "samples n 4"]
) -> Float[Array, "n channels"]:
    """Add up what every sample reads from the table.

    Only the table has a gradient, and it does not depend on the table: our own gradient spreads it in one loop, where
    automatic differentiation would keep a table per sample.
    """

    def add_sample(total: Array, sample: tuple[Array, Array]) -> tuple[Array, None]:
        return total + bilinear.read(table, *sample), None

    return jax.lax.scan(add_sample, jnp.zeros((rows.shape[1], table.shape[1])), (rows, weights))[0]


def forward(table: Array, rows: Array, weights: Array) -> tuple[Array, tuple]:
    """Forward pass: save the sample positions; the length of an empty array carries the number of cells."""
    return sum_of_reads(table, rows, weights), (jnp.zeros((len(table), 0)), rows, weights)


def backward(given: tuple, gradient: Array) -> tuple[Array, None, None]:
    """Backward pass: spread the gradient over the cells that were read."""
    cells, *samples = given

    def add_sample(total: Array, sample: tuple[Array, Array]) -> tuple[Array, None]:
        return bilinear.spread(total, *sample, gradient), None

    return jax.lax.scan(add_sample, jnp.zeros((len(cells), gradient.shape[1])), tuple(samples))[0], None, None


sum_of_reads.defvjp(forward, backward)
