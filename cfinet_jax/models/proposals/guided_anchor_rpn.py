"""GA-RPN (Wang et al. 2019): predict where an object is and what shape it has, and classify anchors of that shape."""

import dataclasses
import math
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal
from cfinet_jax.boxes.anchors import octave_shapes
from cfinet_jax.models.feature_adaption import FeatureAdaption
from cfinet_jax.models.layers import conv, small_normal
from cfinet_jax.models.proposals.base import (
    PerLevel,
    Phase,
    PhaseSettings,
    ProposalNetwork,
    ProposalSettings,
    count_cells,
    flatten,
    levels_of,
    recall_statistics,
)
from cfinet_jax.ops import losses, matching
from cfinet_jax.structures import Batch, GroundTruth, Priorities, Term


class Outputs(NamedTuple):
    """Predictions per level."""

    squares: PerLevel  # [n, 4], the fixed grid
    locations: PerLevel  # [batch, n], logits of the middle of an object
    shapes: PerLevel  # [batch, n, 2], deltas of width and height
    anchors: PerLevel  # [batch, n, 4], guided: the squares in their shapes, without a gradient
    logits: PerLevel  # [batch, n]
    deltas: PerLevel  # [batch, n, 4]


@dataclasses.dataclass(frozen=True)
class GuidedPhaseSettings(PhaseSettings):
    """How proposals are chosen in training or in testing."""

    min_location: float  # probability of the middle of an object, below which nothing is proposed


@dataclasses.dataclass(frozen=True)
class GuidedProposalSettings(ProposalSettings):
    """The section `proposals`."""

    train: GuidedPhaseSettings
    test: GuidedPhaseSettings


class GuidedAnchorRPN(ProposalNetwork):
    """One anchor per cell whose shape is predicted, on features adapted to it.

    The thresholds of overlap and the sampler serve twice: for the squares from which the shape branch learns, whose IoU
    with an object is that of the best of `scales_per_octave` x `aspect_ratios` boxes in their place, and for the guided
    anchors, if the rule of `assigner` has thresholds.
    """

    scales_per_octave: int
    aspect_ratios: tuple[float, ...]
    offset_groups: int
    shape_stds: tuple[float, float]
    stds: tuple[float, ...]
    centre_ratio: float
    ignore_ratio: float
    location_prior: float
    focal_gamma: float
    focal_alpha: float
    background_weight: float
    anchors_per_positive: float
    bounded_beta: float
    smooth_beta: float
    location_weight: float
    shape_weight: float
    box_loss: Literal["smooth_l1", "l1", "iou", "nwd"]
    proposals: GuidedProposalSettings

    def setup(self) -> None:
        prior = nn.initializers.constant(-math.log(1 / self.location_prior - 1))
        self.conv = conv(self.channels, 3, use_bias=True, kernel_init=small_normal)
        self.location = conv(1, 1, use_bias=True, kernel_init=small_normal, bias_init=prior)
        self.shape = conv(2, 1, use_bias=True, kernel_init=small_normal)
        self.adaption = FeatureAdaption(self.channels, self.offset_groups)
        self.objectness = conv(1, 1, use_bias=True, kernel_init=small_normal)
        self.box = conv(4, 1, use_bias=True, kernel_init=small_normal)

    def __call__(self, pyramid: PerLevel, sizes: Float[Array, "batch 2"]) -> Outputs:
        squares = self.grids(pyramid)
        levels = [self.guide(features, grid) for features, grid in zip(pyramid, squares, strict=True)]
        return Outputs(squares, *(tuple(x) for x in zip(*levels, strict=True)))

    def guide(
        self, features: Float[Array, "batch rows columns channels"], squares: Float[Array, "n 4"]
    ) -> tuple[Array, ...]:
        """Return the predictions of one level: the fields of `Outputs` after the first."""
        features = nn.relu(self.conv(features))
        locations = flatten(self.location(features), 1)[..., 0]
        predicted = self.shape(features)
        shapes = flatten(predicted, 2)
        anchors = self.decode_shapes(squares[None], jax.lax.stop_gradient(shapes))
        features = nn.relu(self.adaption(features, predicted))
        logits = flatten(self.objectness(features), 1)[..., 0]
        return locations, shapes, anchors, logits, flatten(self.box(features), 4)

    def decode_shapes(self, squares: Float[Array, "*#n 4"], shapes: Float[Array, "*#n 2"]) -> Float[Array, "*#n 4"]:
        """Return the squares with the predicted widths and heights, about the same centres."""
        deltas = jnp.concatenate([jnp.zeros_like(shapes), shapes], -1)
        return horizontal.decode(squares, deltas, (1.0, 1.0, *self.shape_stds))

    def losses(self, outputs: Outputs, batch: Batch, priorities: Priorities) -> tuple[dict[str, Term], dict[str, Term]]:
        levels = levels_of(outputs.squares)
        locations, shapes, anchors, logits, deltas = (jnp.concatenate(x, 1) for x in outputs[1:])

        def of_image(truth, scale, locations, shapes, anchors, logits, deltas, priorities):
            of_shapes, of_anchors = jnp.split(priorities, 2)
            guides = {
                "location": self.location_loss(outputs.squares, locations, truth),
                "shape": self.shape_loss(jnp.concatenate(outputs.squares), shapes, truth, of_shapes),
            }
            assignment = self.assign(anchors, levels, truth, scale)
            terms = self.anchor_losses(self.stds, anchors, logits, deltas, assignment, truth.boxes, scale, of_anchors)
            return guides | terms, recall_statistics(assignment.positive, assignment.indices, truth)

        return jax.vmap(of_image)(
            batch.ground_truth, batch.scales, locations, shapes, anchors, logits, deltas, priorities.anchors
        )

    def location_loss(self, grids: PerLevel, logits: Float[Array, " anchors"], truth: GroundTruth) -> Term:
        """Return the focal loss of every cell of one image that is in the middle of an object or apart from all."""
        match, ignored = self.match_middles(grids, truth, self.centre_ratio, self.ignore_ratio)
        background = ~(match.positive | match.ignored | match.nearby)
        weights = jnp.where(match.positive, 1.0, jnp.where(background, self.background_weight, 0.0))
        targets = match.positive.astype(jnp.float32)
        loss = optax.losses.sigmoid_focal_loss(logits, targets, alpha=self.focal_alpha, gamma=self.focal_gamma)
        total = self.location_weight * jnp.where(ignored, 0.0, weights * loss).sum()
        return Term(total, jnp.float32(logits.shape[0] / self.anchors_per_positive))

    def shape_loss(
        self,
        squares: Float[Array, "anchors 4"],
        shapes: Float[Array, "anchors 2"],
        truth: GroundTruth,
        priorities: Float[Array, " anchors"],
    ) -> Term:
        """Return the bounded IoU loss of the sampled squares of one image in their predicted shapes."""
        assignment = matching.match_max_iou(
            squares,
            truth,
            positive=self.positive_overlap,
            negative=self.negative_overlap,
            min_positive=self.min_positive_overlap,
            ignore_overlap=self.ignore_overlap,
            similarity=matching.iou_of_shapes(octave_shapes(self.scales_per_octave, self.aspect_ratios)),
        )
        sample, count = self.sample(assignment, priorities)
        boxes = self.decode_shapes(squares[sample.indices], shapes[sample.indices])
        loss = losses.bounded_iou(boxes, truth.boxes[assignment.indices[sample.indices]], self.bounded_beta)
        return Term(self.shape_weight * jnp.where(sample.positive, loss, 0.0).sum(), count)

    def count_anchors(self, shape: tuple[int, int], levels: int) -> int:
        """Count two for every cell: one draws squares for their shapes, one the guided anchors."""
        return 2 * count_cells(shape, levels)

    def candidates(self, outputs: Outputs, phase: Phase) -> PerLevel:
        """Mark the anchors where the middle of an object is likely enough."""
        limits: GuidedPhaseSettings = getattr(self.proposals, phase)
        return tuple(jax.nn.sigmoid(x) >= limits.min_location for x in outputs.locations)
