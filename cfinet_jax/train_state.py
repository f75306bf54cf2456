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


def empty_batch(count: int, shape: tuple[int, int], max_objects: int) -> Batch:
    """A prepared batch without content, for its shapes."""
    truth = GroundTruth(
        jnp.zeros((count, max_objects, 4)),
        jnp.zeros((count, max_objects), jnp.int32),
        jnp.zeros((count, max_objects), bool),
        jnp.zeros((count, max_objects), bool),
    )
    numbers = jnp.zeros(count, jnp.int32)
    sizes = jnp.broadcast_to(jnp.asarray(shape, jnp.float32), (count, 2))
    images = jnp.zeros((count, *shape, 3))
    return Batch(images, sizes, jnp.ones(count), truth, numbers, numbers, numbers, numbers == 0)


def create_state(
    key: Array, detector: Detector, optimizer: optax.GradientTransformation, shape: tuple[int, int], max_objects: int
) -> TrainState:
    """Random parameters and an empty memory; nothing but the initialisers is computed."""

    def create(key: Array) -> TrainState:
        batch = empty_batch(1, shape, max_objects)
        memory = detector.empty_memory()
        priorities = detector.draw_priorities(key, batch.index, shape, max_objects)
        variables = detector.init(key, batch, memory, priorities, method="losses")
        params = variables["params"]
        return TrainState(
            jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params), memory
        )

    return jax.jit(create)(key)
