"""The second stage: what is in each proposed region, and where exactly (Shared2FC head)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.models.layers import Linear, small_normal, xavier_uniform
from cfinet_jax.ops import losses, matching, nms, roi_align, sampling
from cfinet_jax.structures import Batch, Detections, GroundTruth, Proposals, RoiSamples, Term

POOLED_LEVELS = 4  # regions are read from P2..P5
SMALL_AREA = 32.0**2  # square pixels of the stored image


class Predictions(NamedTuple):
    """Of regions: class logits, background last, and box deltas for every class."""

    logits: Float[Array, "*n classes_and_background"]
    deltas: Float[Array, "*n classes 4"]


class RoiHead(nn.Module):
    """Samples regions, pools them, predicts class and box, and turns predictions into detections."""

    classes: int
    pool_size: int
    finest_scale: float
    max_grid: int
    hidden: int
    stds: tuple[float, ...]
    positive_overlap: float
    samples: int
    positive_fraction: float
    class_weight: float
    box_weight: float
    min_score: float
    nms_overlap: float
    max_detections: int
    ignore_overlap: float

    def setup(self) -> None:
        self.hidden1 = Linear(self.hidden, xavier_uniform)
        self.hidden2 = Linear(self.hidden, xavier_uniform)
        self.classify = Linear(self.classes + 1, small_normal)
        self.regress = Linear(4 * self.classes, nn.initializers.normal(0.001))

    def sample(self, proposals: Proposals, truth: GroundTruth, priorities: Array) -> RoiSamples:
        """The regions of every image to learn from; its objects themselves are among the candidates."""
        return jax.vmap(self.sample_image)(proposals, truth, priorities)

    def sample_image(self, proposals: Proposals, truth: GroundTruth, priorities: Array) -> RoiSamples:
        """Objects (IoU >= `positive_overlap`) before background, each in the order ground truth, proposals."""
        boxes = jnp.concatenate([truth.boxes, proposals.boxes])
        matched = matching.match_max_iou(
            boxes,
            truth,
            positive=self.positive_overlap,
            negative=self.positive_overlap,
            min_positive=None,
            ignore_overlap=self.ignore_overlap,
        )
        objects = truth.labels.shape[0]
        own = jnp.arange(boxes.shape[0]) < objects  # an object stands for itself
        proposed = jnp.pad(proposals.valid, (objects, 0))
        positive = jnp.where(
            own, jnp.pad(truth.is_object, (0, proposed.shape[0] - objects)), matched.positive & proposed
        )
        indices = jnp.where(own, jnp.arange(boxes.shape[0], dtype=jnp.int32), matched.indices)
        sample = sampling.sample_balanced(
            priorities,
            positive,
            matched.negative & proposed,
            size=self.samples,
            positive_fraction=self.positive_fraction,
        )
        indices = indices[sample.indices]
        return RoiSamples(
            boxes=boxes[sample.indices],
            labels=jnp.where(sample.positive, truth.labels[indices], self.classes),
            matched=indices,
            overlaps=matched.overlaps[sample.indices],
            source=sample.indices,
            is_object=sample.positive,
            valid=sample.valid,
        )

    def pool(self, pyramid: tuple[Array, ...], boxes: Float[Array, "batch regions 4"]) -> Array:
        """RoI features `[batch, regions, size, size, channels]`."""
        pyramid = pyramid[:POOLED_LEVELS]

        def of_image(pyramid: tuple[Array, ...], boxes: Array) -> Array:
            levels = roi_align.levels_of(boxes, self.finest_scale, len(pyramid))
            return roi_align.roi_align(
                pyramid, boxes, levels, strides_of(len(pyramid)), size=self.pool_size, max_grid=self.max_grid
            )

        return jax.vmap(of_image)(pyramid, boxes)

    def __call__(self, regions: Float[Array, "*n size size channels"]) -> Predictions:
        x = regions.reshape(*regions.shape[:-3], -1)
        x = nn.relu(self.hidden1(x))
        x = nn.relu(self.hidden2(x))
        deltas = self.regress(x).astype(jnp.float32)
        return Predictions(self.classify(x).astype(jnp.float32), deltas.reshape(*deltas.shape[:-1], self.classes, 4))

    def losses(self, predictions: Predictions, samples: RoiSamples, batch: Batch) -> tuple[dict, dict]:
        """Losses and statistics as terms per image `[batch]`; both losses are divided by the sampled regions."""
        truth = batch.ground_truth
        matched = jnp.take_along_axis(truth.boxes, samples.matched[..., None], 1)
        targets = horizontal.encode(samples.boxes, matched, self.stds)
        labels = jnp.minimum(samples.labels, self.classes - 1)[..., None, None]
        deltas = jnp.take_along_axis(predictions.deltas, labels, 2)[..., 0, :]
        distance = jnp.where(samples.is_object, jnp.abs(deltas - targets).sum(-1), 0.0)
        cross_entropy = jnp.where(samples.valid, losses.cross_entropy(predictions.logits, samples.labels), 0.0)
        count = samples.valid.sum(1).astype(jnp.float32)

        right = (predictions.logits.argmax(-1) == samples.labels) & samples.valid
        small = horizontal.area(matched) < SMALL_AREA * batch.scales[:, None] ** 2
        terms = {
            "class": Term(self.class_weight * cross_entropy.sum(1), count),
            "box": Term(self.box_weight * distance.sum(1), count),
        }
        statistics = {
            "accuracy": Term(right.sum(1).astype(jnp.float32), count),
            "small_box_loss_share": Term(jnp.where(small, distance, 0.0).sum(1), distance.sum(1)),
        }
        return terms, statistics

    def detect(self, predictions: Predictions, proposals: Proposals, sizes: Array) -> Detections:
        """The detections of every image, in network pixels."""

        def of_image(predictions: Predictions, proposals: Proposals, size: Array) -> Detections:
            boxes = horizontal.clip(horizontal.decode(proposals.boxes[:, None], predictions.deltas, self.stds), size)
            return nms.class_wise(
                boxes,
                jax.nn.softmax(predictions.logits)[:, :-1],
                proposals.valid,
                min_score=self.min_score,
                max_overlap=self.nms_overlap,
                max_detections=self.max_detections,
            )

        return jax.vmap(of_image)(predictions, proposals, sizes)
