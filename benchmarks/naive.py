"""The naive forms of what the project streams, iterates or turns into products; they give the same numbers."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal
from cfinet_jax.ops import bilinear, matching, roi_align
from cfinet_jax.structures import GroundTruth


def best_match(boxes: Array, truth: GroundTruth, min_forced: float) -> matching.Match:
    """`matching.best_match` on the whole matrix."""
    overlaps = jnp.where(truth.is_object, horizontal.iou(boxes, truth.boxes), -1.0)
    of_object = overlaps.max(0)
    is_best = (overlaps == of_object) & (of_object >= min_forced) & truth.is_object
    last = overlaps.shape[1] - 1 - jnp.argmax(is_best[:, ::-1], 1)
    best = jnp.maximum(overlaps.max(1), 0.0)
    return matching.Match(best, jnp.argmax(overlaps, 1), jnp.where(is_best.any(1), last, -1))


def deformable_conv(features: Array, kernel: Array, points: Array) -> Array:
    """`deformable.deformable_conv` with all nine taps read before the product."""
    rows, columns, channels = features.shape
    table = features.reshape(-1, channels).astype(jnp.float32)

    def read(points: Array) -> Array:
        cells, weights = bilinear.corners(points, jnp.array([rows, columns]))
        return bilinear.read(table, cells[..., 0] * columns + cells[..., 1], weights).astype(features.dtype)

    taps = jax.vmap(read)(points)
    kernel = kernel.reshape(9, channels, -1)
    total = jnp.einsum("tci,tio->co", taps, kernel, preferred_element_type=jnp.float32)
    return total.reshape(rows, columns, -1).astype(features.dtype)


def pool(
    pyramid: Sequence[Array],
    boxes: Float[Array, "regions 4"],
    levels: Int[Array, " regions"],
    strides: Sequence[int],
    size: int,
    max_grid: int,
) -> Float[Array, "regions size size channels"]:
    """`roi_align.roi_align` with all samples of all bins read before they are added."""
    channels = pyramid[0].shape[-1]
    table = jnp.concatenate([features.reshape(-1, channels) for features in pyramid]).astype(jnp.float32)
    shapes = np.array([features.shape[:2] for features in pyramid])
    first = jnp.asarray(np.cumsum(np.prod(shapes, 1)) - np.prod(shapes, 1))[levels]
    shape = jnp.asarray(shapes)[levels]
    boxes = boxes / jnp.asarray(strides, jnp.float32)[levels][:, None]
    start, extent = boxes[:, 1::-1] - 0.5, (boxes[:, 2:] - boxes[:, :2])[:, ::-1]

    def samples(axis: int) -> tuple[Array, Array]:
        limits = start[:, axis], extent[:, axis], shape[:, axis].astype(jnp.float32)
        of_sample = partial(roi_align.sample_axis, *limits, size=size, max_grid=max_grid)
        return jax.vmap(of_sample, out_axes=2)(jnp.arange(max_grid))  # [regions, size, samples]

    (y, y_weights), (x, x_weights) = samples(0), samples(1)
    places = jnp.broadcast_arrays(y[:, :, None, :, None], x[:, None, :, None])
    weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None]
    repeat = partial(jnp.repeat, repeats=(size * max_grid) ** 2, axis=0)
    cells, corners = bilinear.corners(jnp.stack(places, -1).reshape(-1, 2), repeat(shape))
    rows = repeat(first)[:, None] + cells[..., 0] * repeat(shape[:, 1])[:, None] + cells[..., 1]
    read = bilinear.read(table, rows, weights.reshape(-1, 1) * corners)
    return read.reshape(-1, size, size, max_grid**2, channels).sum(3).astype(pyramid[0].dtype)


def suppress(boxes: Array, valid: Bool[Array, " n"], max_overlap: float) -> Bool[Array, " n"]:
    """`nms.suppress` as it is taught: box after box, the best first, removes what it overlaps."""
    place = jnp.arange(len(boxes))

    def visit(index: Array, keep: Array) -> Array:
        overlaps = horizontal.iou(boxes[index][None], boxes)[0]
        return keep & ~(keep[index] & (overlaps > max_overlap) & (place > index))

    return jax.lax.fori_loop(0, len(boxes), visit, valid)


def compress(parameters: Mapping[str, Any], regions: Float[Array, "n size size channels"], groups: int) -> Array:
    """`FeatureImitation.compress` by convolutions."""
    for _, part in sorted(parameters.items()):
        kernel = part["kernel"].astype(regions.dtype)
        dimensions = ("NHWC", "HWIO", "NHWC")
        regions = jax.lax.conv_general_dilated(regions, kernel, (1, 1), "VALID", dimension_numbers=dimensions)
        norm = nn.GroupNorm(groups, epsilon=1e-5, dtype=regions.dtype, use_fast_variance=False)
        regions = jnp.asarray(norm.apply({"params": part["norm"]}, regions))
    return regions[:, 0, 0]
