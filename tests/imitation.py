"""An imitation head, and predictions whose every number is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax.models.feature_imitation import FeatureImitation, Grades
from cfinet_jax.models.roi_head import Predictions
from cfinet_jax.ops.exemplar_memory import empty_memory
from cfinet_jax.structures import Priorities, RoiSamples
from tests import tiny

SETTINGS = {key: value for key, value in tiny.settings().imitation.to_dict().items() if key != "enabled"}
RELEASED = {key: value for key, value in tiny.settings("released").imitation.to_dict().items() if key != "enabled"}
STDS = (0.1, 0.1, 0.2, 0.2)
IMAGES, REGIONS, CHANNELS, CLASSES, SLOTS, SIZE = 2, 24, 16, 9, 4, 7


def imitation(**changed) -> FeatureImitation:
    return FeatureImitation(**SETTINGS | changed)


def scene(rng: np.random.Generator, qualities: tuple[float, ...] = (0.9, 0.8, 0.7, 0.4, 0.1, 0.9)):
    """Return predictions, samples and a batch whose objects have these `qualities`; the last object was not sampled.

    Regions: five objects, three predictions of each, and background; every class probability is known.
    """
    batch = tiny.batch()
    truth = batch.ground_truth
    matched = np.r_[np.arange(5), np.repeat(np.arange(5), 3), np.zeros(4)].astype(np.int32)
    is_object = np.arange(REGIONS) < 20
    labels = np.where(is_object, np.asarray(truth.labels)[:, matched], 9).astype(np.int32)
    probability = np.full((IMAGES, REGIONS, 10), 1e-6, np.float32)
    own = np.where(is_object, np.float32(qualities)[matched], 0.95)
    for image in range(IMAGES):
        for k in range(REGIONS):
            probability[image, k, labels[image, k]] = own[k]
            probability[image, k, 8 if labels[image, k] == 9 else 9] += 1 - own[k]
    boxes = np.where(is_object[:, None], np.asarray(truth.boxes)[:, matched], [0, 0, 5, 5]).astype(np.float32)
    samples = RoiSamples(
        boxes=boxes, labels=labels, matched=np.tile(matched, (IMAGES, 1)),
        overlaps=np.tile(is_object.astype(np.float32), (IMAGES, 1)),
        source=np.tile(np.r_[np.arange(5), 6 + np.arange(REGIONS - 5)].astype(np.int32), (IMAGES, 1)),
        is_object=np.tile(is_object, (IMAGES, 1)), valid=np.tile(np.arange(REGIONS) < 23, (IMAGES, 1)),
    )  # fmt: skip
    deltas = np.zeros((IMAGES, REGIONS, CLASSES, 4), np.float32)
    predictions = Predictions(np.log(probability), deltas)
    return jax.tree.map(jnp.asarray, (predictions, samples, batch))


def grade(module: FeatureImitation, *inputs, high_quality: float | None = None) -> Grades:
    threshold = None if high_quality is None else jnp.float32(high_quality)
    memory = dataclasses.replace(empty_memory(CLASSES, SLOTS, SIZE, CHANNELS), high_quality=threshold)
    return jax.tree.map(np.asarray, jax.jit(lambda *a: module.apply({}, *a, memory, STDS, method="grade"))(*inputs))


def parameters(rng: np.random.Generator):
    """Return parameters with nothing at its default, large enough for embeddings to differ."""
    module, regions = imitation(), jnp.zeros((1, SIZE, SIZE, CHANNELS))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), regions, method=lambda m, x: m.embed(m.compress(x))))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), shapes)


def everything(rng: np.random.Generator, remembered: int):
    """Return compressed regions, jittered boxes and a memory with three exemplars in every class, priorities."""
    compressed = jnp.asarray(rng.normal(size=(IMAGES, REGIONS, CHANNELS)), jnp.float32)
    jittered = jnp.asarray(rng.normal(size=(IMAGES, 2, 10, SIZE, SIZE, CHANNELS)), jnp.float32)
    memory = empty_memory(CLASSES, SLOTS, SIZE, CHANNELS)
    memory = dataclasses.replace(tiny.full_memory(memory), size=jnp.full(CLASSES, 3))
    chances = rng.random((IMAGES, 6, SLOTS)), rng.random((IMAGES, 6, REGIONS + remembered))
    nothing = jnp.zeros((IMAGES, 1))
    priorities = Priorities(nothing, nothing, *(jnp.asarray(x, jnp.float32) for x in chances))
    return compressed, jittered, memory, priorities
