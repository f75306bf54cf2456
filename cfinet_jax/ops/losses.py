"""Losses per sample, float32; whoever calls them masks, sums and divides."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from cfinet_jax.boxes import horizontal, similarity

BOUNDED_EPSILON = 1e-3  # pixels; keeps the bounded IoU of empty boxes finite, as in the released code


def iou_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """1 - IoU, without a gradient below an IoU of 1e-6 (linear as in the released code, not -log)."""
    return 1 - jnp.maximum(horizontal.paired_iou(boxes, targets), 1e-6)


def nwd_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], constant: float | Array) -> Float[Array, "*n"]:
    """1 - NWD (Wang et al. 2021); `constant` in the pixels of the boxes."""
    return 1 - similarity.paired_nwd(boxes, targets, constant)


def l1(predictions: Float[Array, "*n k"], targets: Float[Array, "*n k"]) -> Float[Array, "*n"]:
    """Sum of the distances of k numbers."""
    return jnp.abs(predictions - targets).sum(-1)


def smooth_l1(predictions: Float[Array, "*n k"], targets: Float[Array, "*n k"], beta: float) -> Float[Array, "*n"]:
    """`l1`, quadratic where a distance is below `beta` and less by beta / 2 from there on."""
    return (optax.losses.huber_loss(predictions, targets, delta=beta) / beta).sum(-1)


def bounded_iou(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], beta: float) -> Float[Array, "*n"]:
    """Sum of 1 - r over centre x, centre y, width and height, smoothed below `beta`; finite for empty boxes.

    r bounds the IoU by that error alone: (w - 2 dx) / (w + 2 dx), not below 0, for a centre off by dx from that of an
    object w wide; the smaller over the greater for sides (Tychsen-Smith & Petersson 2018).
    """
    (centre, size), (goal, extent) = horizontal.centre_size(boxes), horizontal.centre_size(targets)
    moved = 2 * jnp.abs(goal - centre)
    of_centre = 1 - jnp.maximum((extent - moved) / (extent + moved + BOUNDED_EPSILON), 0.0)
    of_size = 1 - jnp.minimum(extent / (size + BOUNDED_EPSILON), size / (extent + BOUNDED_EPSILON))
    return smooth_l1(jnp.concatenate([of_centre, of_size], -1), jnp.zeros_like(boxes), beta)


def contrastive(
    similarities: Float[Array, "objects samples"],
    positive: Bool[Array, "objects samples"],
    negative: Bool[Array, "objects samples"],
) -> tuple[Float[Array, " objects"], Float[Array, " objects"]]:
    """Eq. 6 before its normalisation: -sum over positives of log softmax over positives and negatives.

    Returns the sum and the number of positives of each object; both 0 where it has none. `similarities` are
    divided by the temperature already.
    """
    chosen = positive | negative
    chosen |= ~chosen.any(1, keepdims=True)  # a row without samples has a finite logarithm, and no terms
    denominator = jax.nn.logsumexp(similarities, axis=1, where=chosen, keepdims=True)
    terms = jnp.where(positive, denominator - similarities, 0.0)
    return terms.sum(1), positive.sum(1).astype(jnp.float32)
