"""Small objects drawn at random, and what a step is given of them."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from cfinet_jax.structures import Batch
from cfinet_jax.train_step import empty_batch

CLASSES, OBJECTS, SMALLEST, LARGEST = 9, 20, 8, 40  # pixels of a side


def boxes(rng: np.random.Generator, shape: tuple[int, ...], extent: float) -> Float[np.ndarray, "*shape 4"]:
    """Objects anywhere in a square picture."""
    corner = rng.uniform(0, extent - LARGEST, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(SMALLEST, LARGEST, (*shape, 2))], -1).astype(np.float32)


def batch(settings: Any, objects: int = OBJECTS) -> Batch:
    """Noise with objects, if there is room for them, as the host ships it to a training step.

    `settings` is the section `dataset`.
    """
    rng, count, objects = np.random.default_rng(0), settings.batch_size, min(objects, settings.max_objects)
    empty = jax.tree.map(np.array, empty_batch(count, settings.stored_size, settings.max_objects))
    truth = empty.ground_truth
    truth.boxes[:, :objects] = boxes(rng, (count, objects), min(settings.stored_size))
    truth.labels[:, :objects] = rng.integers(0, CLASSES, (count, objects))
    truth.valid[:, :objects] = True
    images = rng.integers(0, 256, empty.images.shape).astype(np.uint8)
    return dataclasses.replace(empty, images=images, index=np.arange(count, dtype=np.int32))
