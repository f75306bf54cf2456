"""Feature imitation (section 3.2): hard objects learn to look like exemplars of their class."""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import kinds
from cfinet_jax.models.layers import dense, he_normal
from cfinet_jax.models.roi_head import Predictions
from cfinet_jax.ops import embeddings, exemplar_memory, imitation, losses
from cfinet_jax.structures import Batch, ExemplarMemory, Exemplars, GroundTruth, Priorities, RoiSamples, Term

QUANTILE_RATE = 0.02  # how far the threshold of high quality moves in a step in which all objects lie above it
COMPRESSIONS = 3  # 3x3 convolutions without padding: 7x7 -> 5x5 -> 3x3 -> 1x1


class Grades(NamedTuple):
    """How well the detector currently does on the objects of every image, and which become exemplars."""

    slot: Int[Array, "batch objects"]  # index of the sampled region that is the object itself
    present: Bool[Array, "batch objects"]  # whether it was sampled
    quality: Float[Array, "batch objects"]
    quality_class: Int[Array, "batch objects"]  # 0 low, 1 middling, 2 high
    chosen: Int[Array, "batch exemplars"]  # indices of the objects offered as exemplars, ascending
    offered: Bool[Array, "batch exemplars"]  # which of `chosen` are real
    surplus: Int[Array, "batch"]  # objects good enough to be exemplars, left out because of `max_exemplars`


class Compress(nn.Module):
    """A 3x3 convolution of many small maps without padding, then group norm; no activation."""

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "n rows columns channels"]) -> Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", he_normal, (3, 3, channels, channels)).astype(x.dtype)
        rows, columns = x.shape[1] - 2, x.shape[2] - 2
        # For thousands of 7x7 maps, nine shifted views and one matrix product are faster than a convolution.
        views = [x[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        y = jnp.concatenate(views, -1) @ kernel.reshape(-1, channels)
        return nn.GroupNorm(self.groups, epsilon=1e-5, dtype=x.dtype, use_fast_variance=False, name="norm")(y)


class FeatureImitation(nn.Module):
    """Embed regions, grade objects, and pull each towards exemplars of its class."""

    quality: str  # a row of `ops.imitation.QUALITIES`
    negatives: Literal["paper", "image"]
    quality_weights: tuple[float, float, float]
    reweight: bool
    contrast: Literal["eq6", "means", "l2"]
    groups: int
    encoder: int
    embedding: int
    initial_std: float
    temperature: float
    weight: float
    features_gradient: bool
    high_quality: float
    high_quality_quantile: float | None
    low_quality: float
    min_score: float
    min_predictions: int
    min_exemplars: int
    samples: int
    positive_fractions: tuple[float, float]
    shifts: tuple[float, ...]
    rescales: tuple[float, ...]
    slots: int
    max_exemplars: int
    max_class_exemplars: int

    def setup(self) -> None:
        self.compressions = [Compress(self.groups) for _ in range(COMPRESSIONS)]
        normal = nn.initializers.normal(self.initial_std)
        self.encode1 = dense(self.encoder, kernel_init=normal)
        self.encode2 = dense(self.encoder, kernel_init=normal)
        self.project = dense(self.embedding, kernel_init=normal)

    @property
    def jitters(self) -> int:
        """Number of jittered copies of one box."""
        return 4 * len(self.shifts) + len(self.rescales)

    def remembered_negatives(self, classes: int) -> int:
        """Return how many slots of the memory are candidates for negatives."""
        return classes * self.slots if self.negatives == "paper" else 0

    def compress(self, regions: Float[Array, "*n size size channels"]) -> Float[Array, "*n channels"]:
        """Compress every region to one vector."""
        x = regions.reshape(-1, *regions.shape[-3:])
        for convolution in self.compressions:
            x = convolution(x)
        return x.reshape(*regions.shape[:-3], -1)

    def compress_learners(self, regions: Float[Array, "*n size size channels"]) -> Float[Array, "*n channels"]:
        """Compress the sampled regions, which imitation teaches down to their features if `features_gradient`."""
        return self.compress(regions if self.features_gradient else jax.lax.stop_gradient(regions))

    def compress_memory(self, features: Float[Array, "classes slots size size channels"]) -> Array:
        """Compress every slot, class by class (all at once is slower): `[classes * slots, channels]`."""

        def of_class(self: "FeatureImitation", _: None, regions: Array) -> tuple[None, Array]:
            return None, self.compress(regions)

        _, compressed = nn.scan(of_class, variable_broadcast="params", split_rngs={"params": False})(
            self, None, features
        )
        return compressed.reshape(-1, compressed.shape[-1])

    def emphasise(self, regions: Array, compressed: Array) -> Array:
        """Weight the channels of regions by 1 + softmax of the compressed vector, as in the released code."""
        weights = 1 + jax.nn.softmax(compressed.astype(jnp.float32))
        return (regions * weights[..., None, None, :]).astype(regions.dtype)

    def embed(self, compressed: Float[Array, "*n channels"]) -> Float[Array, "*n embedding"]:
        """Return the unit vectors of Eq. 5, float32."""
        x = nn.relu(self.encode1(compressed))
        x = nn.relu(self.encode2(x))
        x = self.project(x).astype(jnp.float32)
        return x * jax.lax.rsqrt(
            jnp.square(x).sum(-1, keepdims=True) + 1e-12
        )  # keeps the gradient of a zero vector finite

    def grade(
        self,
        predictions: Predictions,
        samples: RoiSamples,
        batch: Batch,
        memory: ExemplarMemory,
        stds: tuple[float, ...],
    ) -> Grades:
        """Grade every object and choose the exemplars, without gradients.

        Args:
          predictions: For the sampled regions.
          samples: The regions.
          batch: The images with their objects.
          memory: Exemplars of earlier steps, and the threshold of high quality if it is a quantile.
          stds: Divisors of the box deltas.
        """
        predictions = jax.lax.stop_gradient(predictions)
        threshold = self.high_quality if memory.high_quality is None else memory.high_quality

        def of_image(predictions: Predictions, samples: RoiSamples, truth: GroundTruth, scale: Array) -> Grades:
            objects = truth.labels.shape[0]
            label = jnp.minimum(samples.labels, predictions.deltas.shape[1] - 1)
            deltas = jnp.take_along_axis(predictions.deltas, label[:, None, None], 1)[:, 0]
            boxes = kinds.decode(samples.boxes, deltas, stds), truth.targets[samples.matched]
            quality = imitation.QUALITIES[self.quality](
                jax.nn.softmax(predictions.logits), samples, boxes, objects, self.min_score, scale
            )
            is_self = (samples.source == jnp.arange(objects)[:, None]) & samples.is_object & samples.valid
            present = is_self.any(1)
            high = quality.value >= threshold
            quality_class = high.astype(jnp.int32) + (quality.value >= self.low_quality)
            grade = present & high & (quality.count >= self.min_predictions)
            best, chosen = jax.lax.top_k(jnp.where(grade, quality.value, -1.0), min(self.max_exemplars, objects))
            chosen = jnp.sort(jnp.where(best >= 0, chosen, objects))
            offered = chosen < objects
            return Grades(
                is_self.argmax(1).astype(jnp.int32),
                present,
                quality.value,
                quality_class,
                jnp.where(offered, chosen, 0).astype(jnp.int32),
                offered,
                (grade.sum() - offered.sum()).astype(jnp.int32),
            )

        return jax.vmap(of_image)(predictions, samples, batch.ground_truth, batch.scales)

    def jittered_boxes(self, grades: Grades, batch: Batch) -> Float[Array, "batch boxes 4"]:
        """Return the jittered boxes of every image's exemplars, one exemplar after another."""
        boxes = jnp.take_along_axis(batch.ground_truth.boxes, grades.chosen[..., None], 1)
        jittered = jax.vmap(lambda boxes, size: imitation.jitter(boxes, size, self.shifts, self.rescales))
        return jittered(boxes, batch.sizes).reshape(boxes.shape[0], -1, 4)

    def exemplars(self, regions: Array, grades: Grades, truth: GroundTruth) -> Exemplars:
        """Return what every image offers to the memory: the RoI features of its exemplars, without gradient."""
        slots = jnp.take_along_axis(grades.slot, grades.chosen, 1)
        features = jnp.take_along_axis(regions, slots[..., None, None, None], 1)
        labels, quality = (jnp.take_along_axis(x, grades.chosen, 1) for x in (truth.labels, grades.quality))
        return jax.lax.stop_gradient(Exemplars(features.astype(jnp.float32), labels, quality, grades.offered))

    def follow_quality(self, memory: ExemplarMemory, high: Term) -> ExemplarMemory:
        """Move the threshold towards the quantile: up if more objects of a step are `high` than wanted, else down."""
        if self.high_quality_quantile is None or memory.high_quality is None:
            return memory
        excess = high.total - (1 - self.high_quality_quantile) * high.count
        moved = memory.high_quality + QUANTILE_RATE * excess / jnp.maximum(high.count, 1)
        return dataclasses.replace(memory, high_quality=jnp.clip(moved, self.low_quality, 1.0))

    def losses(
        self,
        compressed: Float[Array, "batch samples channels"],
        jittered: Float[Array, "batch exemplars jitters size size channels"],
        grades: Grades,
        samples: RoiSamples,
        truth: GroundTruth,
        memory: ExemplarMemory,
        priorities: Priorities,
    ) -> tuple[dict, dict]:
        """Return the contrastive loss (Eq. 6, or what `contrast` says) and statistics as terms per image `[batch]`.

        Args:
          compressed: Vectors of the sampled regions.
          jittered: RoI features of the exemplars' jittered boxes.
          grades: Quality classes and exemplars.
          samples: The sampled regions.
          truth: The objects.
          memory: Exemplars of earlier steps; they teach, but do not learn.
          priorities: Random numbers that decide the draws.
        """
        filled = exemplar_memory.filled(memory)
        known = memory.size >= self.min_exemplars if self.min_exemplars else None
        remembered = self.embed(jax.lax.stop_gradient(self.compress_memory(memory.features.astype(compressed.dtype))))
        regions = self.embed(compressed)
        own = self.embed(jax.lax.stop_gradient(self.compress(jittered)))

        def of_image(regions, own, grades, samples, truth, positives, negatives):
            own_exemplar = (grades.chosen == jnp.arange(truth.labels.shape[0])[:, None]) & grades.offered
            contrast = imitation.choose_contrast(
                truth.labels,
                grades.quality_class,
                own_exemplar,
                samples,
                filled,
                (positives, negatives),
                negatives=self.negatives,
                size=self.samples,
                positive_fractions=self.positive_fractions,
                jitters=own.shape[1],
            )
            candidates = jnp.concatenate([regions, remembered, own.reshape(-1, own.shape[-1])])
            taught = grades.present if known is None else grades.present & known[truth.labels]
            positive, negative = (x & taught[:, None] for x in arrange(contrast, regions.shape[0]))
            cosines = regions[grades.slot] @ candidates.T
            if self.contrast == "l2":
                total, count = losses.attract(cosines, positive)
            else:
                total, count = losses.contrastive(cosines / self.temperature, positive, negative)
            seen = comparisons(cosines, positive, negative, grades.present) | spread(regions, samples.valid)
            return self.normalise(total, count, grades), seen

        of_images = jax.vmap(of_image)
        terms, seen = of_images(regions, own, grades, samples, truth, priorities.positives, priorities.negatives)
        return {"contrast": terms}, statistics(grades, truth) | seen

    def normalise(self, total: Array, count: Array, grades: Grades) -> Term:
        """Turn the sums of logarithms of one image's objects, and their counts of positives, into a loss term."""
        weights = jnp.asarray(self.quality_weights)[grades.quality_class]
        if self.contrast != "means":  # all positives of the batch share one divisor
            return Term(self.weight * (weights * total).sum(), count.sum())
        of_object = weights * total / jnp.maximum(count, 1)
        objects = jnp.maximum(grades.present.sum(), 1)
        return Term(self.weight * of_object.sum() / objects, jnp.float32(1))


def arrange(contrast: imitation.Contrast, regions: int) -> tuple[Array, Array]:
    """Return masks of positives and negatives over all candidates: regions, slots of the memory, jittered boxes."""
    objects, slots = contrast.exemplars.shape
    nothing = jnp.zeros((objects, regions), bool)
    jitters = contrast.jitters.reshape(objects, -1)
    positive = jnp.concatenate([nothing, contrast.exemplars, jitters], 1)
    padding = positive.shape[1] - contrast.negatives.shape[1]
    return positive, jnp.pad(contrast.negatives, ((0, 0), (0, padding)))


def comparisons(cosines: Array, positive: Array, negative: Array, present: Array) -> dict[str, Term]:
    """Return the share of sampled objects that have positives, and the mean cosine of these objects with both kinds.

    The alignment of Wang & Isola (2020) is 2 - 2 times the cosine with the positives.
    """

    def of(mask: Array) -> Term:
        return Term(jnp.where(mask, cosines, 0.0).sum(), mask.sum().astype(jnp.float32))

    taught = positive.any(1)
    return {
        "taught": Term(taught.sum().astype(jnp.float32), present.sum().astype(jnp.float32)),
        "positive_cosine": of(positive),
        "negative_cosine": of(negative & taught[:, None]),
    }


def spread(vectors: Array, valid: Array) -> dict[str, Term]:
    """Return how spread the embeddings of one image's regions are."""
    any_pair = (valid.sum() > 1).astype(jnp.float32)
    measures = {"effective_rank": embeddings.effective_rank, "uniformity": embeddings.uniformity}
    return {name: Term(any_pair * measure(vectors, valid), any_pair) for name, measure in measures.items()}


def statistics(grades: Grades, truth: GroundTruth) -> dict[str, Term]:
    """Return mean quality, shares of the quality classes, and counts of exemplars offered and left out."""
    objects = truth.is_object
    count = objects.sum(1).astype(jnp.float32)
    one = jnp.ones_like(count)

    def share(mask: Array) -> Term:
        return Term((mask & objects).sum(1).astype(jnp.float32), count)

    return {
        "quality": Term(jnp.where(objects, grades.quality, 0.0).sum(1), count),
        "high_quality": share(grades.quality_class == 2),
        "low_quality": share(grades.quality_class == 0),
        "exemplars_offered": Term(grades.offered.sum(1).astype(jnp.float32), one),
        "exemplars_left_out": Term(grades.surplus.astype(jnp.float32), one),
    }
