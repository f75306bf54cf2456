"""One update: losses, gradients, parameters, memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from cfinet_jax.models.detector import Detector
from cfinet_jax.ops import exemplar_memory
from cfinet_jax.runtime.mesh import AXIS
from cfinet_jax.structures import Batch, ExemplarMemory, Exemplars, GroundTruth, Term, pytree

Forward = Callable[[Any, Batch], tuple[dict, dict, Exemplars | None]]


@pytree
class TrainState:
    """Everything that a step updates, and the constants of batch norm."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    memory: ExemplarMemory | None  # None without imitation
    average: Any = None  # of the parameters, over steps; None without `training.average_decay`

    @property
    def variables(self) -> dict[str, Any]:
        """Return what a step trains, and the constants that go with it."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Any]:
        """Return the variables to detect with: those of the average, if there is one."""
        return {"params": self.params if self.average is None else self.average, "batch_stats": self.batch_stats}


def with_average(state: TrainState, averaged: bool) -> TrainState:
    """Return the state with an average, which begins as a copy of the parameters if it is new, or without one."""
    if averaged and state.average is not None:
        return state
    return dataclasses.replace(state, average=jax.tree.map(jnp.copy, state.params) if averaged else None)


def empty_batch(count: int, shape: tuple[int, int], max_objects: int, oriented: bool = False) -> Batch:
    """Return a prepared batch of zeros, for its shapes, with or without oriented boxes."""
    truth = GroundTruth(
        jnp.zeros((count, max_objects, 4)),
        jnp.zeros((count, max_objects), jnp.int32),
        jnp.zeros((count, max_objects), bool),
        jnp.zeros((count, max_objects), bool),
        jnp.zeros((count, max_objects, 5)) if oriented else None,
    )
    zeros = jnp.zeros(count, jnp.int32)
    sizes = jnp.broadcast_to(jnp.asarray(shape, jnp.float32), (count, 2))
    images = jnp.zeros((count, *shape, 3))
    return Batch(images, sizes, jnp.ones(count), truth, zeros, zeros, zeros, zeros == 0)


def create_state(
    key: Array, detector: Detector, optimizer: optax.GradientTransformation, shape: tuple[int, int], max_objects: int
) -> TrainState:
    """Return random parameters and an empty memory; jitted, so that only the initialisers are computed."""

    def create(key: Array) -> TrainState:
        batch = empty_batch(1, shape, max_objects, detector.roi_head.numbers == 5)
        memory = detector.empty_memory()
        priorities = detector.draw_priorities(key, batch.index, shape, max_objects)
        variables = detector.init(key, batch, memory, priorities, method="losses")
        params = variables["params"]
        return TrainState(
            jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params), memory
        )

    return jax.jit(create)(key)


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    detector: Detector,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[Batch, Array], Batch],
    micro_batches: int,
    average_decay: float | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Take one step on this device's part of a batch, inside a `shard_map` over `data`.

    The memory is read at the start and updated at the end. A step whose loss or gradient is not finite changes nothing
    but the step number.

    Args:
      state: The state before the step.
      batch: Images as shipped by the host.
      key: The run's random key; the step number is folded in.
      detector: The model.
      optimizer: Turns gradients into updates.
      prepare: The function (batch as shipped, key) -> prepared batch; it folds the place of each image into the key.
      micro_batches: Parts in which the batch is computed, to save memory.
      average_decay: Share of the state's average that is left after another image; None if it has none.

    Returns:
      The state after the step, and metrics of the global batch.
    """
    view_key, priority_key = jax.random.split(jax.random.fold_in(key, state.step))

    def forward(learnt: dict[str, Any], batch: Batch) -> tuple[dict, dict, Exemplars | None]:
        with jax.named_scope("preprocess"):
            batch = prepare(batch, view_key)
        height, width = batch.images.shape[1:3]
        objects = batch.ground_truth.labels.shape[1]
        priorities = detector.draw_priorities(priority_key, batch.index, (height, width), objects)
        variables = learnt | {"batch_stats": state.batch_stats}
        outputs: Any = detector.apply(variables, batch, state.memory, priorities, method="losses")
        losses, statistics, exemplars = outputs
        statistics["objects_dropped"] = Term(batch.dropped.astype(jnp.float32), jnp.ones(batch.dropped.shape))
        return add_images(losses), add_images(statistics), exemplars

    probes = {} if detector.imitation is None else {"probes": {"roi_head": jnp.zeros(()), "imitation": jnp.zeros(())}}
    learnt = {"params": state.params} | probes
    gradients, losses, statistics, exemplars = accumulate(forward, learnt, batch, micro_batches)
    gradients, losses, statistics = jax.lax.psum((gradients, losses, statistics), AXIS)
    probes, gradients = gradients.get("probes", {}), gradients["params"]
    metrics = summarise(gradients, losses, statistics)
    # Norms of the gradients that each part sends into the RoI features.
    metrics |= {f"features_gradient/{part}": jnp.sqrt(squares) for part, squares in probes.items()}
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updated = dataclasses.replace(state, params=optax.apply_updates(state.params, updates), opt_state=opt_state)
        updated = move_average(updated, batch.index.shape[0] * jax.lax.axis_size(AXIS), average_decay)
    updated, of_memory = remember(updated, exemplars, batch.index, statistics, detector)
    metrics |= of_memory
    with jax.named_scope("optimizer"):
        state = jax.tree.map(lambda new, old: jnp.where(metrics["finite"], new, old), updated, state)
    return dataclasses.replace(state, step=state.step + 1), metrics


def move_average(state: TrainState, images: int, decay: float | None) -> TrainState:
    """Return the state with its average moved towards the parameters, as a step of so many images does; None: as it is.

    Another image leaves `decay` of the average, and a step that to the power of its images, so that the average reaches
    as far back whatever the batch size. After n images it is (1 + n) / (10 + n) if less, lest the start be remembered.
    """
    if decay is None:
        return state
    seen = state.step.astype(jnp.float32) * images
    kept = jnp.minimum(decay, (1 + seen) / (10 + seen)) ** images
    # Written so that what has never moved stays exactly what it is.
    average = jax.tree.map(lambda old, new: old + (1 - kept) * (new - old), state.average, state.params)
    return dataclasses.replace(state, average=average)


def summarise(gradients: Any, losses: dict[str, Term], statistics: dict[str, Term]) -> dict[str, Array]:
    """Return the metrics of a step: losses and their sum, statistics, gradient norm, and whether all is finite."""
    metrics = {f"loss/{name}": mean(term) for name, term in losses.items()}
    metrics["loss"] = jnp.stack(list(metrics.values())).sum()
    metrics |= {name: mean(term) for name, term in statistics.items()}
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    metrics["finite"] = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    return metrics


def accumulate(forward: Forward, params: Any, batch: Batch, micro_batches: int) -> tuple[Any, dict, dict, Any]:
    """Compute local gradients of the global loss, and sums over local images of losses and statistics.

    The divisor of each loss is known only after every image has been seen: with several micro-batches, a first forward
    pass adds up the divisors.

    Args:
      forward: The function (parameters, batch) -> losses and statistics as sums, and exemplars per image.
      params: The parameters.
      batch: This device's images, as shipped.
      micro_batches: Parts in which the batch is computed.

    Returns:
      Gradients, losses, statistics, and exemplars of every image.
    """

    def loss(params: Any, batch: Batch, sums: dict | None) -> tuple[Array, tuple]:
        losses, statistics, exemplars = forward(params, batch)
        divisors = jax.lax.psum({name: term.count for name, term in losses.items()}, AXIS) if sums is None else sums
        means = [mean(Term(term.total, divisors[name])) for name, term in losses.items()]
        return jnp.stack(means).sum(), (losses, statistics, exemplars)

    gradient = jax.grad(loss, has_aux=True)
    if micro_batches == 1:
        gradients, auxiliary = gradient(params, batch, None)
        return gradients, *auxiliary

    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    counts = jax.lax.map(lambda part: {name: term.count for name, term in forward(params, part)[0].items()}, parts)
    divisors = jax.lax.psum(jax.tree.map(lambda x: x.sum(0), counts), AXIS)

    def step(total: Any, part: Batch) -> tuple[Any, tuple]:
        gradients, auxiliary = gradient(params, part, divisors)
        return jax.tree.map(jnp.add, total, gradients), auxiliary

    start = jax.tree.map(jnp.zeros_like, params)
    gradients, (losses, statistics, exemplars) = jax.lax.scan(step, start, parts)
    losses, statistics = jax.tree.map(lambda x: x.sum(0), (losses, statistics))
    return gradients, losses, statistics, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), exemplars)


def add_images(terms: dict[str, Term]) -> dict[str, Term]:
    """Add up terms per image `[batch]`; a divisor has no gradient."""
    return {name: Term(term.total.sum(), jax.lax.stop_gradient(term.count.sum())) for name, term in terms.items()}


def mean(term: Term) -> Array:
    """Divide the sum by the count; 0 if the count is 0."""
    return term.total / jnp.where(term.count > 0, term.count, 1.0)


def remember(
    state: TrainState, exemplars: Exemplars | None, index: Array, statistics: dict[str, Term], detector: Detector
) -> tuple[TrainState, dict[str, Array]]:
    """Return the state with the best exemplars of all devices in its memory, if it has one, and metrics of the memory.

    `index` is the place of this device's images in the global batch, `statistics` are those of all devices.
    """
    if detector.imitation is None or state.memory is None or exemplars is None:
        return state, {}
    classes, most = detector.roi_head.classes, detector.imitation.max_class_exemplars
    with jax.named_scope("memory"):
        offered = exchange(exemplars, index, classes, most)
        memory = exemplar_memory.push(state.memory, offered)
        memory = detector.imitation.follow_quality(memory, statistics["imitation/high_quality"])
    return dataclasses.replace(state, memory=memory), memory_metrics(memory, offered)


def exchange(exemplars: Exemplars, index: Array, classes: int, most: int) -> Exemplars:
    """Gather the `most` best exemplars of each class from all devices, in the order of the global batch.

    Labels and qualities of all offers are exchanged first, so that every device makes the same choice. Then each device
    fills in the features of its own exemplars, and one sum of `[classes * most, size, size, channels]` distributes
    them: its size does not depend on the batch.
    """
    offers = exemplars.labels, exemplars.quality, exemplars.valid
    labels, quality, valid = jax.lax.psum(jax.tree.map(lambda x: place(x, index), offers), AXIS)
    position, chosen = exemplar_memory.choose(labels.ravel(), quality.ravel(), valid.ravel() > 0, classes, most)
    image, offer = jnp.divmod(position.ravel(), labels.shape[1])
    local = place(jnp.arange(1, index.shape[0] + 1), index)[image] - 1  # -1 for an image of another device
    own = chosen.ravel() & (local >= 0)
    slots = jnp.where(own[:, None, None, None], exemplars.features[local, offer], 0.0)
    return Exemplars(jax.lax.psum(slots, AXIS), labels[image, offer], quality[image, offer], chosen.ravel())


def place(x: Array, index: Array) -> Array:
    """Scatter the values of local images `[images, ...]` to their places in the global batch, zeros elsewhere."""
    images = index.shape[0] * jax.lax.axis_size(AXIS)
    x = x.astype(jnp.int32) if x.dtype == bool else x
    return jnp.zeros((images, *x.shape[1:]), x.dtype).at[index].set(x)


def memory_metrics(memory: ExemplarMemory, offered: Exemplars) -> dict[str, Array]:
    """Return the state of the memory after a step.

    The filled share of its slots and of the emptiest class's, the share of the exemplars that this step wrote (one over
    its mean is the number of steps after which all have been renewed), the MiB exchanged, and the threshold of high
    quality if it follows a quantile.
    """
    classes, slots = memory.features.shape[:2]
    threshold = {} if memory.high_quality is None else {"memory/high_quality": memory.high_quality}
    return threshold | {
        "memory/fill": memory.size.sum() / (classes * slots),
        "memory/emptiest_class": memory.size.min() / slots,
        "memory/turnover": offered.valid.sum() / jnp.maximum(memory.size.sum(), 1),
        "memory/exchange_mib": jnp.float32(offered.features.nbytes / 2**20),
    }
