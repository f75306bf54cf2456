"""Midpoint offsets (Oriented R-CNN, Xie et al. 2021): six numbers that lead from an upright anchor to an oriented box.

Four lead to the upright box around it; two say how far its topmost and its rightmost corner lie from the middles of the
sides they touch, as shares of these sides.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal, oriented
from cfinet_jax.boxes.similarity import norm

LEVEL = 0.1  # pixels; of corners closer in height the right one counts as topmost, as in the released code


def encode(
    anchors: Float[Array, "*#n 4"], boxes: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 6"]:
    """Return the deltas (dx, dy, dw, dh, top, right) / stds from anchors to boxes; finite for empty boxes too.

    Both corners are chosen at once: the released code may take one corner as both topmost and rightmost where two
    of them are level, and no box can be decoded from that.
    """
    around = oriented.enclose(boxes)
    level = LEVEL / jnp.maximum(boxes[..., 2:4].max(-1), 1.0)  # radians
    leaning_left = oriented.turn_back(boxes, jnp.ceil((boxes[..., 4] - level) / oriented.QUARTER))
    _, _, top, _, _, right, _, _ = jnp.moveaxis(oriented.to_polygon(leaning_left), -1, 0)  # of the second and the third
    centre, size = horizontal.centre_size(around)
    middles = (jnp.stack([top, right], -1) - centre) / jnp.maximum(size, horizontal.EPSILON)
    deltas = horizontal.encode(anchors, around, stds[:4])
    middles = jnp.broadcast_to(middles / jnp.asarray(stds[4:], deltas.dtype), (*deltas.shape[:-1], 2))
    return jnp.concatenate([deltas, middles], -1)


def decode(
    anchors: Float[Array, "*#n 4"], deltas: Float[Array, "*#n 6"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """Return the boxes to which deltas lead from anchors: the inverse of `encode`, sides growing at most 62.5 times.

    The four decoded corners form a parallelogram; stretching its shorter diagonal to the length of the other makes it
    a rectangle.
    """
    centre, size = horizontal.centre_size(horizontal.decode(anchors, deltas[..., :4], stds[:4]))
    top, right = jnp.moveaxis(jnp.clip(deltas[..., 4:] * jnp.asarray(stds[4:], deltas.dtype), -0.5, 0.5), -1, 0)
    w, h = size[..., 0], size[..., 1]
    upward, rightward = jnp.stack([top * w, -h / 2], -1), jnp.stack([w / 2, right * h], -1)  # halves of the diagonals
    lengths = norm(upward)[..., None], norm(rightward)[..., None]
    up, right = (
        half * jnp.maximum(*lengths) / jnp.maximum(length, horizontal.EPSILON)
        for half, length in zip((upward, rightward), lengths, strict=True)
    )
    along, across = right - up, right + up  # sides
    length = norm(along)[..., None]
    # Where nothing has a length there is no direction either: any will do, and a gradient stays finite.
    x, y = jnp.split(jnp.where(length > 0, along, jnp.array([1.0, 0.0])), 2, -1)
    return oriented.normalise(jnp.concatenate([centre, length, norm(across)[..., None], jnp.arctan2(y, x)], -1))
