"""The exemplar memory: per class the newest good examples, a ring buffer of fixed size (section 3.2)."""

import jax.numpy as jnp

from cfinet_jax.structures import ExemplarMemory, Exemplars


def empty_memory(classes: int, slots: int, size: int, channels: int) -> ExemplarMemory:
    """A memory without exemplars."""
    return ExemplarMemory(
        jnp.zeros((classes, slots, size, size, channels), jnp.float32),
        jnp.zeros(classes, jnp.int32),
        jnp.zeros(classes, jnp.int32),
    )


def filled(memory: ExemplarMemory) -> jnp.ndarray:
    """Which slots hold an exemplar, bool `[classes, slots]`."""
    return jnp.arange(memory.features.shape[1]) < memory.size[:, None]


def push(memory: ExemplarMemory, exemplars: Exemplars) -> ExemplarMemory:
    """Stores the valid exemplars in order, each over the oldest of its class; of too many the newest remain."""
    classes, slots = memory.features.shape[:2]
    of_class = (exemplars.labels[:, None] == jnp.arange(classes)) & exemplars.valid[:, None]
    offered = of_class.sum(0)
    rank = jnp.take_along_axis(of_class.cumsum(0), exemplars.labels[:, None], 1)[:, 0] - 1
    last_round = rank >= offered[exemplars.labels] - slots  # an earlier one would be overwritten in this very push
    slot = (memory.cursor[exemplars.labels] + rank) % slots
    label = jnp.where(exemplars.valid & last_round, exemplars.labels, classes)  # out of range: dropped
    return ExemplarMemory(
        memory.features.at[label, slot].set(exemplars.features.astype(jnp.float32), mode="drop"),
        ((memory.cursor + offered) % slots).astype(jnp.int32),
        jnp.minimum(memory.size + offered, slots).astype(jnp.int32),
    )
