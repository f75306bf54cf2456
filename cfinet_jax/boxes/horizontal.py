"""Upright boxes `x1 y1 x2 y2` in pixels, width `x2 - x1`."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.boxes import MAX_LOG_RATIO

EPSILON = 1e-6  # keeps the union of two empty boxes away from zero


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Return areas in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def centre_size(boxes: Float[Array, "*n 4"]) -> tuple[Float[Array, "*n 2"], Float[Array, "*n 2"]]:
    """Return centres (x, y) and sizes (width, height)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def clip(boxes: Float[Array, "*n 4"], size: Float[Array, "2"]) -> Float[Array, "*n 4"]:
    """Clip boxes to a picture of `size` (height, width)."""
    height, width = size
    return jnp.clip(boxes, 0.0, jnp.stack([width, height, width, height]))


def flip(boxes: Float[Array, "*n 4"], width: Float[Array, ""]) -> Float[Array, "*n 4"]:
    """Mirror boxes left to right in a picture of `width` pixels."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([width - x2, y1, width - x1, y2], -1)


def transpose(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Exchange x and y, as in a picture mirrored along its diagonal."""
    return boxes[..., jnp.array([1, 0, 3, 2])]


def shift(boxes: Float[Array, "*n 4"], offset: Float[Array, "2"]) -> Float[Array, "*n 4"]:
    """Move boxes by `offset` (x, y)."""
    return boxes + jnp.concatenate([offset, offset])


def stretch(boxes: Float[Array, "*n 4"], factors: tuple[float, float]) -> Float[Array, "*n 4"]:
    """Multiply width and height by `factors`, about the centre."""
    centre, size = centre_size(boxes)
    half = size * jnp.asarray(factors, boxes.dtype) / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def intersection(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*#n"]:
    """Return the area that paired (broadcast) boxes share."""
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    return jnp.prod(jnp.maximum(sides, 0.0), -1)


def paired_iou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*#n"]:
    """Return the intersection over union of paired boxes, in [0, 1]."""
    shared = intersection(a, b)
    return shared / jnp.maximum(area(a) + area(b) - shared, EPSILON)


def iou(a: Float[Array, "m 4"], b: Float[Array, "n 4"]) -> Float[Array, "m n"]:
    """Return the intersection over union of every pair, in [0, 1]."""
    shared = intersection(a[:, None], b[None])
    return shared / jnp.maximum(area(a)[:, None] + area(b)[None] - shared, EPSILON)


def overlap_of_first(a: Float[Array, "m 4"], b: Float[Array, "n 4"]) -> Float[Array, "m n"]:
    """Return the share of each box of `a` that lies inside each box of `b`, in [0, 1]."""
    return intersection(a[:, None], b[None]) / jnp.maximum(area(a), EPSILON)[:, None]


def encode(
    anchors: Float[Array, "*#n 4"], boxes: Float[Array, "*#n 4"], stds: tuple[float, ...]
) -> Float[Array, "*#n 4"]:
    """Return the deltas (dx, dy, dw, dh) / stds that lead from anchors to boxes; finite for empty boxes too."""
    anchor_centre, anchor_size = centre_size(anchors)
    centre, size = centre_size(boxes)
    anchor_size, size = jnp.maximum(anchor_size, EPSILON), jnp.maximum(size, EPSILON)
    deltas = jnp.concatenate([(centre - anchor_centre) / anchor_size, jnp.log(size / anchor_size)], -1)
    return deltas / jnp.asarray(stds, deltas.dtype)


def decode(
    anchors: Float[Array, "*#n 4"], deltas: Float[Array, "*#n 4"], stds: tuple[float, ...]
) -> Float[Array, "*#n 4"]:
    """Return the boxes to which deltas lead from anchors: the inverse of `encode`, sides growing at most 62.5 times."""
    anchor_centre, anchor_size = centre_size(anchors)
    deltas = deltas * jnp.asarray(stds, deltas.dtype)
    centre = anchor_centre + deltas[..., :2] * anchor_size
    half = anchor_size * jnp.exp(jnp.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)) / 2
    return jnp.concatenate([centre - half, centre + half], -1)
