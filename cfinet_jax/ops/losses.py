"""Losses per sample, float32; the caller masks, sums and divides."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from cfinet_jax.boxes import horizontal, similarity

BOUNDED_EPSILON = 1e-3  # pixels; keeps the bounded IoU of empty boxes finite, as in the released code


def iou_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Return 1 - IoU of paired boxes (linear as in the released code, not -log); no gradient below an IoU of 1e-6."""
    return 1 - jnp.maximum(horizontal.paired_iou(boxes, targets), 1e-6)


def nwd_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], constant: float | Array) -> Float[Array, "*n"]:
    """Return 1 - NWD (Wang et al. 2021) of paired boxes; `constant` is in the pixels of the boxes."""
    return 1 - similarity.paired_nwd(boxes, targets, constant)


def l1(predictions: Float[Array, "*n k"], targets: Float[Array, "*n k"]) -> Float[Array, "*n"]:
    """Return the sum of k absolute differences."""
    return jnp.abs(predictions - targets).sum(-1)


def smooth_l1(predictions: Float[Array, "*n k"], targets: Float[Array, "*n k"], beta: float) -> Float[Array, "*n"]:
    """Return the sum of k absolute differences, each quadratic below `beta` and linear, less beta / 2, above."""
    return (optax.losses.huber_loss(predictions, targets, delta=beta) / beta).sum(-1)


def bounded_iou(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], beta: float) -> Float[Array, "*n"]:
    """Return the bounded IoU loss (Tychsen-Smith & Petersson 2018) of paired boxes; finite for empty boxes.

    It is the sum over centre x, centre y, width and height of 1 - r, quadratic below `beta`. r is the greatest IoU
    possible with that error: max(0, (w - 2 dx) / (w + 2 dx)) for the centre of an object w wide, the smaller over the
    greater for a side.
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
    """Return Eq. 6 before its normalisation: -sum over positives of log softmax over positives and negatives.

    Args:
      similarities: Of each object with each sample, already divided by the temperature.
      positive: Which samples are positives of each object.
      negative: Which samples are negatives.

    Returns:
      The sum and the number of positives of each object; both 0 if it has none.
    """
    chosen = positive | negative
    chosen |= ~chosen.any(1, keepdims=True)  # keeps the logarithm of a row without samples finite; it has no terms
    denominator = jax.nn.logsumexp(similarities, axis=1, where=chosen, keepdims=True)
    terms = jnp.where(positive, denominator - similarities, 0.0)
    return terms.sum(1), positive.sum(1).astype(jnp.float32)


def attract(
    cosines: Float[Array, "objects samples"], positive: Bool[Array, "objects samples"]
) -> tuple[Float[Array, " objects"], Float[Array, " objects"]]:
    """Return the squared distances of each object's unit vector to its positives: the sum and their number.

    The pull of Eq. 6 without its push, as in earlier work on small objects (section 2 of the paper).
    """
    return jnp.where(positive, 2 - 2 * cosines, 0.0).sum(1), positive.sum(1).astype(jnp.float32)
