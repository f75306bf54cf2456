"""Draws without replacement under static shapes: the highest of the given priorities (>= 0) win."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Sample(NamedTuple):
    """Chosen candidates: positives, then negatives, each in index order."""

    indices: Int[Array, " size"]
    positive: Bool[Array, " size"]
    valid: Bool[Array, " size"]


def choose(
    priorities: Float[Array, "*batch candidates"],
    candidate: Bool[Array, "*batch candidates"],
    quota: Int[Array, "*batch"],
    most: int,
) -> Bool[Array, "*batch candidates"]:
    """Mark the `quota` <= `most` candidates of highest priority; all of them if there are fewer."""
    most = min(most, priorities.shape[-1])
    top, indices = jax.lax.top_k(jnp.where(candidate, priorities, -1.0), most)
    drawn = (top >= 0) & (jnp.arange(most) < quota[..., None])
    marks = jnp.zeros(candidate.shape, bool)
    return jnp.put_along_axis(marks, indices, drawn, axis=-1, inplace=False)


@jax.named_scope("targets")
def sample_balanced(
    priorities: Float[Array, " candidates"],
    positive: Bool[Array, " candidates"],
    negative: Bool[Array, " candidates"],
    *,
    size: int,
    positive_fraction: float,
) -> Sample:
    """Draw at most `size * positive_fraction` positives, and negatives for the rest.

    Returns:
      `size` slots, some of them invalid if there are too few of both.
    """
    candidates = priorities.shape[0]
    kept = min(size, candidates)
    quota = min(int(size * positive_fraction), kept)
    top, positives = jax.lax.top_k(jnp.where(positive, priorities, -1.0), quota)
    count = jnp.minimum((top >= 0).sum(), quota)
    _, negatives = jax.lax.top_k(jnp.where(negative, priorities, -1.0), kept)
    is_negative = negative[negatives] & (jnp.arange(kept) < size - count)

    # One sort puts positives before negatives before the rest, each in index order.
    indices = jnp.concatenate([positives, negatives])
    group = jnp.concatenate([jnp.where(top >= 0, 0, 2), jnp.where(is_negative, 1, 2)])
    order = jnp.lexsort((indices, group))[:size]
    padding = size - order.shape[0]
    indices, group = indices[order], group[order]
    indices = jnp.pad(indices, (0, padding)).astype(jnp.int32)
    group = jnp.pad(group, (0, padding), constant_values=2)
    return Sample(indices, group == 0, group < 2)
