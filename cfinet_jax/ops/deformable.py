"""Deformable convolution: a 3x3 kernel whose nine taps lie on a box, or at given offsets, instead of on the grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal
from cfinet_jax.ops import bilinear

TAPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1))  # (row, column)


def tap_points(boxes: Float[Array, "cells 4"], stride: int) -> Float[Array, "9 cells 2"]:
    """Return the points (y, x, in cells) read for each cell: centre, edge middles and corners of the cell's box.

    Relative to the grid these are the offsets of the released code; an anchor of scale 2 that has not moved gives an
    ordinary convolution.
    """
    centre, size = horizontal.centre_size(boxes)
    taps = jnp.asarray(TAPS, boxes.dtype)[:, None]
    return (centre[:, ::-1] + taps * size[:, ::-1] / 2) / stride


@jax.custom_vjp
def deformable_conv(
    features: Float[Array, "rows columns inputs"],
    kernel: Float[Array, "3 3 inputs outputs"],
    points: Float[Array, "9 cells 2"],
) -> Float[Array, "rows columns outputs"]:
    """Read the map at nine points per cell and apply the kernel, without bias; the map is zero outside.

    One tap at a time, and read again in the backward pass: all nine at once need four times the memory, and automatic
    differentiation would keep them all. Hence the custom gradient.

    Args:
      features: The map.
      kernel: One matrix per tap, row by row.
      points: Coordinates (y, x) in cells, for each tap and cell.
    """
    rows, columns, inputs = features.shape
    table = table_of(features)

    def add_tap(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        points, kernel = tap
        read = bilinear.read(table, *corners(points, rows, columns)).astype(features.dtype)
        return total + jnp.dot(read, kernel, preferred_element_type=jnp.float32), None

    start = jnp.zeros((table.shape[0], kernel.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add_tap, start, (points, kernel.reshape(9, inputs, -1)))
    return total.reshape(rows, columns, -1).astype(features.dtype)


def forward(*given: Array) -> tuple[Array, tuple]:
    """Forward pass: keep the inputs, from which the backward pass reads the map again."""
    return deformable_conv(*given), given


def backward(given: tuple, gradient: Array) -> tuple[Array, Array, Array]:
    """Backward pass: return the gradients of map, kernel and points."""
    features, kernel, points = given
    rows, columns, inputs = features.shape
    table, gradient = table_of(features), gradient.reshape(rows * columns, -1)

    def pull_tap(total: Array, tap: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        points, kernel = tap
        (cells, weights), to_points = jax.vjp(lambda points: corners(points, rows, columns), points)
        read = bilinear.read(table, cells, weights).astype(features.dtype)
        of_kernel = jnp.dot(read.T, gradient, preferred_element_type=jnp.float32)
        of_read = jnp.dot(gradient, kernel, preferred_element_type=jnp.float32)
        of_weights = jnp.stack([(table[cells[:, k]] * of_read).sum(-1) for k in range(4)], 1)
        nothing = np.zeros(cells.shape, jax.dtypes.float0)
        return bilinear.spread(total, cells, weights, of_read), (of_kernel, *to_points((nothing, of_weights)))

    # Transposed once, outside the loop: the product is three times as fast in XLA's CPU backend.
    kernels = kernel.reshape(9, inputs, -1).swapaxes(1, 2)
    total, (of_kernel, of_points) = jax.lax.scan(pull_tap, jnp.zeros_like(table), (points, kernels))
    of_kernel = of_kernel.reshape(kernel.shape).astype(kernel.dtype)
    return total.reshape(features.shape).astype(features.dtype), of_kernel, of_points


deformable_conv.defvjp(forward, backward)


def table_of(features: Float[Array, "rows columns channels"]) -> Float[Array, "cells channels"]:
    """Return a map as one row per cell, in float32, in which cells are read and gradients are summed."""
    return features.reshape(-1, features.shape[-1]).astype(jnp.float32)


def corners(points: Float[Array, "cells 2"], rows: int, columns: int) -> tuple[Array, Array]:
    """Return the four rows of the table around each point, and their weights."""
    cells, weights = bilinear.corners(points, jnp.array([rows, columns], jnp.int32))
    return cells[..., 0] * columns + cells[..., 1], weights


def offset_points(
    offsets: Float[Array, "rows columns numbers"], groups: int
) -> Float[Array, "{groups} 9 rows*columns 2"]:
    """Return the points (y, x, in cells) that the taps of each group read: the grid's, moved by `offsets`.

    The numbers of a cell are y and x of every tap, row by row, group after group, as in the released code.
    """
    rows, columns, _ = offsets.shape
    grid = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    regular = grid + jnp.asarray(TAPS)[:, None]
    return regular.astype(offsets.dtype) + offsets.reshape(rows * columns, groups, 9, 2).transpose(1, 2, 0, 3)


def grouped_conv(
    features: Float[Array, "rows columns inputs"],
    kernel: Float[Array, "3 3 inputs outputs"],
    points: Float[Array, "groups 9 cells 2"],
) -> Float[Array, "rows columns outputs"]:
    """Apply `deformable_conv` to equal groups of the input channels, each read at its own points, and add up."""
    groups = len(points)
    parts = zip(jnp.split(features, groups, -1), jnp.split(kernel, groups, 2), points, strict=True)
    return functools.reduce(jnp.add, [deformable_conv(*part) for part in parts])
