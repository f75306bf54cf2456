"""The state of a run: arrays only, saved as it is."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from cfinet_jax.models.detector import Detector
from cfinet_jax.structures import Batch, ExemplarMemory, GroundTruth, pytree


@pytree
class TrainState:
    """Everything that a step changes, and the constants of batch norm."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    memory: ExemplarMemory | None  # None without imitation


def empty_batch(count: int, shape: tuple[int, int], max_objects: int, numbers: int = 4) -> Batch:
    """A prepared batch without content, for its shapes; boxes have so many numbers."""
    truth = GroundTruth(
        jnp.zeros((count, max_objects, numbers)),
        jnp.zeros((count, max_objects), jnp.int32),
        jnp.zeros((count, max_objects), bool),
        jnp.zeros((count, max_objects), bool),
    )
    zeros = jnp.zeros(count, jnp.int32)
    sizes = jnp.broadcast_to(jnp.asarray(shape, jnp.float32), (count, 2))
    images = jnp.zeros((count, *shape, 3))
    return Batch(images, sizes, jnp.ones(count), truth, zeros, zeros, zeros, zeros == 0)


def create_state(
    key: Array, detector: Detector, optimizer: optax.GradientTransformation, shape: tuple[int, int], max_objects: int
) -> TrainState:
    """Random parameters and an empty memory; nothing but the initialisers is computed."""

    def create(key: Array) -> TrainState:
        batch = empty_batch(1, shape, max_objects, detector.roi_head.numbers)
        memory = detector.empty_memory()
        priorities = detector.draw_priorities(key, batch.index, shape, max_objects)
        variables = detector.init(key, batch, memory, priorities, method="losses")
        params = variables["params"]
        return TrainState(
            jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params), memory
        )

    return jax.jit(create)(key)
