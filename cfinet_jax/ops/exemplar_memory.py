"""The exemplar memory: per class the newest good examples, a ring buffer of fixed size (section 3.2).

The way of an exemplar: `models/feature_imitation.py` grades the objects of a step and offers the good ones,
`train_step.py:exchange` keeps the best of all devices, `push` stores them at the end of the step, and from the next
step on `ops/imitation.py:choose_contrast` draws them as positives of their class.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.structures import ExemplarMemory, Exemplars


def empty_memory(classes: int, slots: int, size: int, channels: int) -> ExemplarMemory:
    """Return a memory without exemplars."""
    return ExemplarMemory(
        jnp.zeros((classes, slots, size, size, channels), jnp.float32),
        jnp.zeros(classes, jnp.int32),
        jnp.zeros(classes, jnp.int32),
    )


def filled(memory: ExemplarMemory) -> Bool[Array, "classes slots"]:
    """Say which slots hold an exemplar."""
    return jnp.arange(memory.features.shape[1]) < memory.size[:, None]


def choose(
    labels: Int[Array, " exemplars"],
    quality: Float[Array, " exemplars"],
    valid: Bool[Array, " exemplars"],
    classes: int,
    most: int,
) -> tuple[Int[Array, "classes chosen"], Bool[Array, "classes chosen"]]:
    """Choose the `most` valid exemplars of highest quality (>= 0) of every class; the first among equals.

    Returns:
      Their indices, ascending, and a mask of the real ones. There are fewer columns if there are fewer exemplars.
    """
    exemplars = labels.shape[0]
    of_class = (labels == jnp.arange(classes)[:, None]) & valid
    best, indices = jax.lax.top_k(jnp.where(of_class, quality, -1.0), min(most, exemplars))
    indices = jnp.sort(jnp.where(best >= 0, indices, exemplars))
    chosen = indices < exemplars
    return jnp.where(chosen, indices, 0).astype(jnp.int32), chosen


def push(memory: ExemplarMemory, exemplars: Exemplars) -> ExemplarMemory:
    """Store the valid exemplars in order, each over the oldest of its class; if there are too many, only the newest."""
    classes, slots = memory.features.shape[:2]
    of_class = (exemplars.labels[:, None] == jnp.arange(classes)) & exemplars.valid[:, None]
    offered = of_class.sum(0)
    rank = jnp.take_along_axis(of_class.cumsum(0), exemplars.labels[:, None], 1)[:, 0] - 1
    last_round = rank >= offered[exemplars.labels] - slots  # earlier ones would be overwritten at once
    slot = (memory.cursor[exemplars.labels] + rank) % slots
    label = jnp.where(exemplars.valid & last_round, exemplars.labels, classes)  # out of range: dropped
    return dataclasses.replace(
        memory,
        features=memory.features.at[label, slot].set(exemplars.features.astype(jnp.float32), mode="drop"),
        cursor=((memory.cursor + offered) % slots).astype(jnp.int32),
        size=jnp.minimum(memory.size + offered, slots).astype(jnp.int32),
    )
