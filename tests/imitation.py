"""An imitation head, and predictions whose every number is known."""

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax.models.feature_imitation import FeatureImitation, Grades
from cfinet_jax.models.roi_head import Predictions
from cfinet_jax.structures import RoiSamples
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


def grade(module: FeatureImitation, *inputs) -> Grades:
    return jax.tree.map(np.asarray, jax.jit(lambda *a: module.apply({}, *a, STDS, method="grade"))(*inputs))
