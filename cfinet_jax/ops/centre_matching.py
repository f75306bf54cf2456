"""Cells of a pyramid in the middle of an object: targets of Cascade RPN and of guided anchors.

As in `matching`, objects are streamed in chunks: cells x objects never exist as one matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal
from cfinet_jax.ops.matching import CHUNK, chunks_of
from cfinet_jax.structures import GroundTruth


class CentreMatch(NamedTuple):
    """Position of every cell relative to the middle of objects, levels fine to coarse."""

    positive: Bool[Array, " cells"]  # in the centre region of `indices`, on the level of that object
    ignored: Bool[Array, " cells"]  # in its ignore region, but not in its centre region
    nearby: Bool[Array, " cells"]  # in the ignore region of an object of the next finer or coarser level
    indices: Int[Array, " cells"]  # the last object with the cell in one of its regions; 0 if there is none


def level_of(boxes: Float[Array, "objects 4"], finest: float, levels: int) -> Int[Array, " objects"]:
    """Return the level of objects by the root of their area: `finest` pixels on level 0, twice as many on level 1."""
    side = jnp.sqrt(jnp.maximum(horizontal.area(boxes), horizontal.EPSILON))
    level = jnp.floor(jnp.log2(side) - jnp.log2(jnp.float32(finest)) + 0.5)
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


def central_cells(boxes: Float[Array, "objects 4"], ratio: float) -> Float[Array, "objects 4"]:
    """Return the first and last cell (x1 y1 x2 y2, inclusive) of the central `ratio` of boxes measured in cells.

    Halves are rounded to even, and an object has at least one cell, as in the released code.
    """
    margin = (1 - ratio) / 2
    first = jnp.round((1 - margin) * boxes[:, :2] + margin * boxes[:, 2:])
    last = jnp.round(margin * boxes[:, :2] + (1 - margin) * boxes[:, 2:])
    return jnp.concatenate([first, jnp.maximum(last, 0)], -1)


def match_centres(
    anchors: tuple[Float[Array, "_ 4"], ...],
    truth: GroundTruth,
    *,
    strides: tuple[int, ...],
    anchor_scale: float,
    centre_ratio: float,
    ignore_ratio: float,
) -> CentreMatch:
    """Find the cells of one image in the middle of its objects, by the region rule of Cascade RPN and GA-RPN.

    An object belongs to one level, the one whose anchors are closest in size. If several objects claim a cell, the last
    one gets it, even if only to ignore it.

    Args:
      anchors: Square anchors of every level, one per cell.
      truth: The objects of the image.
      strides: Pixels per cell of every level.
      anchor_scale: Side of an anchor in cells.
      centre_ratio: Share of an object's sides that is its centre region.
      ignore_ratio: The larger share around it that is its ignore region.
    """
    cells = jnp.concatenate([
        horizontal.centre_size(grid)[0] / stride for grid, stride in zip(anchors, strides, strict=True)
    ])  # fmt: skip
    levels = jnp.asarray(np.repeat(np.arange(len(anchors), dtype=np.int32), [len(grid) for grid in anchors]))
    extents = jnp.asarray(strides, jnp.float32)

    def step(match: CentreMatch, chunk: tuple[Array, Array, Array]) -> tuple[CentreMatch, None]:
        objects, real, first = chunk
        own = level_of(objects, anchor_scale * strides[0], len(strides))

        def inside(ratio: float, away: int = 0) -> Bool[Array, "cells objects"]:
            """Mark the cells in a region of each object, `away` levels from its own."""
            level = own + away
            stride = extents[jnp.clip(level, 0, len(strides) - 1)]
            low, high = jnp.split(central_cells(objects / stride[:, None], ratio), 2, axis=1)
            within = (cells[:, None] >= low) & (cells[:, None] <= high)
            return within.all(-1) & (levels[:, None] == level) & real

        centre = inside(centre_ratio)
        claimed = centre | inside(ignore_ratio)
        last = CHUNK - 1 - jnp.argmax(claimed[:, ::-1], 1).astype(jnp.int32)
        positive = (centre & (jnp.arange(CHUNK) == last[:, None])).any(1)
        changed = claimed.any(1)
        return CentreMatch(
            jnp.where(changed, positive, match.positive),
            jnp.where(changed, ~positive, match.ignored),
            match.nearby | inside(ignore_ratio, -1).any(1) | inside(ignore_ratio, 1).any(1),
            jnp.where(changed, first + last, match.indices),
        ), None

    nothing = jnp.zeros(cells.shape[0], bool)
    start = CentreMatch(nothing, nothing, nothing, jnp.zeros(cells.shape[0], jnp.int32))
    match, _ = jax.lax.scan(step, start, chunks_of(truth))
    return match
