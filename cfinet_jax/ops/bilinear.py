"""Bilinear reading of a feature map at arbitrary points, for RoIAlign and deformable convolutions."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def corners(points: Float[Array, "n 2"], shape: Int[Array, "*n 2"]) -> tuple[Int[Array, "n 4 2"], Float[Array, "n 4"]]:
    """Return the four cells (row, column) around each point (y, x), and their weights.

    A cell outside its map has weight zero and is moved inside, so that it can be read.

    Args:
      points: Coordinates (y, x) in cells.
      shape: Rows and columns of the map, or of the map of each point.
    """
    first = jnp.floor(points)
    share = points - first
    cells = first.astype(jnp.int32)[:, None] + jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], jnp.int32)
    y, x = share[:, 0], share[:, 1]
    weights = jnp.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], 1)
    limit = jnp.broadcast_to(shape, points.shape)[:, None]
    inside = ((cells >= 0) & (cells < limit)).all(-1)
    return jnp.clip(cells, 0, limit - 1), jnp.where(inside, weights, 0.0)


def read(table: Float[Array, "cells channels"], rows: Int[Array, "n 4"], weights: Float[Array, "n 4"]) -> Array:
    """Return weighted sums of four rows of a table, `[n, channels]`."""
    # Four gathers of whole rows: XLA fuses each with its product, but would store one gather of [n, 4, channels].
    return functools.reduce(jnp.add, [weights[:, k, None] * table[rows[:, k]] for k in range(4)])


def spread(
    table: Float[Array, "cells channels"],
    rows: Int[Array, "n 4"],
    weights: Float[Array, "n 4"],
    values: Float[Array, "n channels"],
) -> Array:
    """Add weighted values to four rows of the table each: the transpose of `read`.

    Automatic differentiation of `read` in a loop would make a table of zeros per step and corner, and add them all up.
    """
    for k in range(4):
        table = table.at[rows[:, k]].add(weights[:, k, None] * values)
    return table
