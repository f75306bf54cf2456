"""The second stage: class and exact box of each proposed region (Shared2FC head)."""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal, kinds
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.models.layers import dense, small_normal, xavier_uniform
from cfinet_jax.ops import losses, matching, nms, roi_align, sampling
from cfinet_jax.structures import Batch, Detections, GroundTruth, Proposals, RoiSamples, Term

POOLED_LEVELS = 4  # regions are read from P2..P5
SMALL_AREA = 32.0**2  # square pixels of the stored image


class Predictions(NamedTuple):
    """Class logits of regions, background last, and box deltas, for every class or one for all."""

    logits: Float[Array, "*n classes_and_background"]
    deltas: Float[Array, "*n classes_or_one numbers"]


class RoiHead(nn.Module):
    """Samples regions, pools them, predicts class and box, and turns predictions into detections."""

    numbers: ClassVar[int] = 4  # coordinates of a box

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
        self.hidden1 = dense(self.hidden, kernel_init=xavier_uniform)
        self.hidden2 = dense(self.hidden, kernel_init=xavier_uniform)
        self.classify = dense(self.classes + 1, kernel_init=small_normal)
        self.regress = dense(self.numbers * self.shapes, kernel_init=nn.initializers.normal(0.001))

    @property
    def shapes(self) -> int:
        """Number of boxes predicted for a region: one for every class."""
        return self.classes

    def sample(self, proposals: Proposals, truth: GroundTruth, priorities: Array) -> RoiSamples:
        """Choose the regions of every image to learn from; its objects themselves are among the candidates."""
        return jax.vmap(self.sample_image)(proposals, truth, priorities)

    def sample_image(self, proposals: Proposals, truth: GroundTruth, priorities: Array) -> RoiSamples:
        """Choose the regions of one image: objects, then background; in each, ground truth comes before proposals."""
        boxes = jnp.concatenate([truth.boxes, proposals.boxes])
        matched = matching.match_max_iou(
            boxes,
            truth,
            positive=self.positive_overlap,
            negative=self.positive_overlap,
            min_positive=None,
            ignore_overlap=self.ignore_overlap,
            similarity=kinds.kind_of(boxes).iou,
        )
        objects = truth.labels.shape[0]
        own = jnp.arange(boxes.shape[0]) < objects  # an object is matched to itself, even if it has a twin
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

    def pool(self, pyramid: tuple[Array, ...], boxes: Float[Array, "batch regions numbers"]) -> Array:
        """Return RoI features `[batch, regions, size, size, channels]`."""
        return jax.vmap(self.pool_image)(pyramid[:POOLED_LEVELS], boxes)

    def pool_image(self, pyramid: tuple[Array, ...], boxes: Float[Array, "regions 4"]) -> Array:
        """Return the RoI features of one image."""
        levels = roi_align.pyramid_levels(horizontal.area(boxes), self.finest_scale, len(pyramid))
        return roi_align.roi_align(
            pyramid, boxes, levels, strides_of(len(pyramid)), size=self.pool_size, max_grid=self.max_grid
        )

    def __call__(self, regions: Float[Array, "*n size size channels"]) -> Predictions:
        x = regions.reshape(*regions.shape[:-3], -1)
        x = nn.relu(self.hidden1(x))
        x = nn.relu(self.hidden2(x))
        deltas = self.regress(x).astype(jnp.float32)
        deltas = deltas.reshape(*deltas.shape[:-1], self.shapes, self.numbers)
        return Predictions(self.classify(x).astype(jnp.float32), deltas)

    def losses(self, predictions: Predictions, samples: RoiSamples, batch: Batch) -> tuple[dict, dict]:
        """Return losses, divided by the number of sampled regions, and statistics, as terms per image `[batch]`."""
        truth = batch.ground_truth
        matched = jnp.take_along_axis(truth.targets, samples.matched[..., None], 1)
        targets = kinds.encode(samples.boxes, matched, self.stds)
        labels = jnp.minimum(samples.labels, self.shapes - 1)[..., None, None]
        deltas = jnp.take_along_axis(predictions.deltas, labels, 2)[..., 0, :]
        distance = jnp.where(samples.is_object, self.distance(deltas, targets), 0.0)
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels(predictions.logits, samples.labels)
        cross_entropy = jnp.where(samples.valid, entropy, 0.0)
        count = samples.valid.sum(1).astype(jnp.float32)

        right = (predictions.logits.argmax(-1) == samples.labels) & samples.valid
        small = kinds.kind_of(matched).area(matched) < SMALL_AREA * batch.scales[:, None] ** 2
        terms = {
            "class": Term(self.class_weight * cross_entropy.sum(1), count),
            "box": Term(self.box_weight * distance.sum(1), count),
        }
        statistics = {
            "accuracy": Term(right.sum(1).astype(jnp.float32), count),
            "small_box_loss_share": Term(jnp.where(small, distance, 0.0).sum(1), distance.sum(1)),
        }
        return terms, statistics

    def distance(self, deltas: Float[Array, "*n numbers"], targets: Float[Array, "*n numbers"]) -> Float[Array, "*n"]:
        """Return the box loss of predicted deltas, given those that lead to the object."""
        return losses.l1(deltas, targets)

    def detect(self, predictions: Predictions, proposals: Proposals, sizes: Array) -> Detections:
        """Return the detections of every image, in network pixels."""
        return jax.vmap(self.detect_image)(predictions, proposals, sizes)

    def detect_image(self, predictions: Predictions, proposals: Proposals, size: Array) -> Detections:
        """Return the detections of one image, after NMS within each class among that class's boxes."""
        boxes = horizontal.clip(horizontal.decode(proposals.boxes[:, None], predictions.deltas, self.stds), size)
        return nms.class_wise(
            boxes,
            jax.nn.softmax(predictions.logits)[:, :-1],
            proposals.valid,
            min_score=self.min_score,
            max_overlap=self.nms_overlap,
            max_detections=self.max_detections,
        )
