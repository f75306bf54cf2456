"""Losses per sample, float32; whoever calls them masks, sums and divides."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal, similarity


def binary_cross_entropy(logits: Float[Array, "*n"], targets: Bool[Array, "*n"]) -> Float[Array, "*n"]:
    """Of the sigmoid of `logits`."""
    return jax.nn.softplus(jnp.where(targets, -logits, logits))


def cross_entropy(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Of the softmax of `logits`."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, labels[..., None], -1)[..., 0]


def iou_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """1 - IoU, without a gradient below an IoU of 1e-6 (linear as in the released code, not -log)."""
    return 1 - jnp.maximum(horizontal.paired_iou(boxes, targets), 1e-6)


def nwd_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], constant: float | Array) -> Float[Array, "*n"]:
    """1 - NWD (Wang et al. 2021); `constant` in the pixels of the boxes."""
    return 1 - similarity.paired_nwd(boxes, targets, constant)


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
