"""GA-RPN (Wang et al. 2019): predict where an object is and what shape it has, and classify anchors of that shape."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from cfinet_jax.boxes import horizontal
from cfinet_jax.boxes.anchors import octave_shapes
from cfinet_jax.models.feature_adaption import FeatureAdaption
from cfinet_jax.models.layers import conv, small_normal
from cfinet_jax.models.proposals import assigners, proposal_network
from cfinet_jax.models.proposals.proposal_network import PerLevel
from cfinet_jax.ops import losses, matching
from cfinet_jax.structures import Batch, GroundTruth, Priorities, Proposals, Term


class Outputs(NamedTuple):
    """Per level."""

    squares: PerLevel  # [n, 4], the fixed grid
    locations: PerLevel  # [batch, n], logits of the middle of an object
    shapes: PerLevel  # [batch, n, 2], deltas of width and height
    anchors: PerLevel  # [batch, n, 4], guided: the squares in their shapes, without a gradient
    logits: PerLevel  # [batch, n]
    deltas: PerLevel  # [batch, n, 4]


class GuidedAnchorRPN(nn.Module):
    """One anchor per cell whose shape is predicted, on features adapted to it.

    The thresholds of overlap and the sampler serve twice: for the squares of which the shape branch learns, an object's
    IoU with which is that of the best of `scales_per_octave` x `aspect_ratios` boxes, and for the guided anchors, where
    `assigner` says what they are thresholds of, if of anything.
    """

    channels: int
    anchor_scale: float
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
    assigner: str
    positive_overlap: float
    negative_overlap: float
    min_positive_overlap: float
    samples: int
    positive_fraction: float
    location_weight: float
    shape_weight: float
    objectness_weight: float
    box_loss: Literal["smooth_l1", "l1", "iou", "nwd"]
    box_weight: float
    proposals: Mapping[str, Any]
    ignore_overlap: float
    similarities: Mapping[str, Mapping[str, float]]
    assigners: Mapping[str, Mapping[str, Any]]

    def setup(self) -> None:
        prior = nn.initializers.constant(-math.log(1 / self.location_prior - 1))
        self.conv = conv(self.channels, 3, use_bias=True, kernel_init=small_normal)
        self.location = conv(1, 1, use_bias=True, kernel_init=small_normal, bias_init=prior)
        self.shape = conv(2, 1, use_bias=True, kernel_init=small_normal)
        self.adaption = FeatureAdaption(self.channels, self.offset_groups)
        self.objectness = conv(1, 1, use_bias=True, kernel_init=small_normal)
        self.box = conv(4, 1, use_bias=True, kernel_init=small_normal)

    def __call__(self, pyramid: tuple[Array, ...], sizes: Array) -> Outputs:
        grids = proposal_network.anchors_of(pyramid, self.anchor_scale, (1.0,))
        squares = tuple(jnp.asarray(grid) for grid in grids)
        levels = [self.guide(features, grid) for features, grid in zip(pyramid, squares, strict=True)]
        return Outputs(squares, *(tuple(x) for x in zip(*levels, strict=True)))

    def guide(self, features: Array, squares: Array) -> tuple[Array, ...]:
        """Location logits, shapes, guided anchors, objectness logits and deltas of one level."""
        features = nn.relu(self.conv(features))
        locations = proposal_network.flatten(self.location(features), 1)[..., 0]
        predicted = self.shape(features)
        shapes = proposal_network.flatten(predicted, 2)
        anchors = self.decode_shapes(squares[None], jax.lax.stop_gradient(shapes))
        features = nn.relu(self.adaption(features, predicted))
        logits = proposal_network.flatten(self.objectness(features), 1)[..., 0]
        return locations, shapes, anchors, logits, proposal_network.flatten(self.box(features), 4)

    def decode_shapes(self, squares: Array, shapes: Array) -> Array:
        """The squares with the widths and heights that are predicted; their centres stay."""
        deltas = jnp.concatenate([jnp.zeros_like(shapes), shapes], -1)
        return horizontal.decode(squares, deltas, (1.0, 1.0, *self.shape_stds))

    def losses(self, outputs: Outputs, batch: Batch, priorities: Priorities) -> tuple[dict, dict]:
        """Losses and statistics as terms per image `[batch]`."""
        levels = proposal_network.levels_of(outputs.squares)
        locations, shapes, anchors, logits, deltas = (jnp.concatenate(x, 1) for x in outputs[1:])

        def of_image(truth, scale, locations, shapes, anchors, logits, deltas, priorities):
            of_shapes, of_anchors = jnp.split(priorities, 2)
            guides = {
                "location": self.location_loss(outputs.squares, locations, truth),
                "shape": self.shape_loss(jnp.concatenate(outputs.squares), shapes, truth, of_shapes),
            }
            assignment = assigners.assign(self, anchors, levels, truth, scale)
            terms = proposal_network.anchor_losses(
                self, self.stds, anchors, logits, deltas, assignment, truth.boxes, scale, of_anchors
            )
            statistics = proposal_network.recall_statistics(assignment.positive, assignment.indices, truth)
            return guides | terms, statistics

        return jax.vmap(of_image)(
            batch.ground_truth, batch.scales, locations, shapes, anchors, logits, deltas, priorities.anchors
        )

    def location_loss(self, grids: PerLevel, logits: Array, truth: GroundTruth) -> Term:
        """Focal loss of every cell of one image that is in the middle of an object or apart from all of them."""
        match, silent = assigners.match_middles(self, grids, truth)
        background = ~(match.positive | match.ignored | match.nearby)
        weights = jnp.where(match.positive, 1.0, jnp.where(background, self.background_weight, 0.0))
        targets = match.positive.astype(jnp.float32)
        loss = optax.losses.sigmoid_focal_loss(logits, targets, alpha=self.focal_alpha, gamma=self.focal_gamma)
        total = self.location_weight * jnp.where(silent, 0.0, weights * loss).sum()
        return Term(total, jnp.float32(logits.shape[0] / self.anchors_per_positive))

    def shape_loss(self, squares: Array, shapes: Array, truth: GroundTruth, priorities: Array) -> Term:
        """Bounded IoU loss of the sampled squares of one image in their predicted shapes."""
        similarity = matching.iou_of_shapes(octave_shapes(self.scales_per_octave, self.aspect_ratios))
        assignment = assigners.match_anchors(self, squares, truth, similarity)
        sample, count = proposal_network.sample_anchors(self, assignment, priorities)
        boxes = self.decode_shapes(squares[sample.indices], shapes[sample.indices])
        loss = losses.bounded_iou(boxes, truth.boxes[assignment.indices[sample.indices]], self.bounded_beta)
        return Term(self.shape_weight * jnp.where(sample.positive, loss, 0.0).sum(), count)

    def count_anchors(self, shape: tuple[int, int], levels: int) -> int:
        """Two for every cell of an input of `shape` (height, width): shapes are drawn, and guided anchors."""
        return 2 * proposal_network.count_cells(shape, levels)

    def choose(self, outputs: Outputs, sizes: Array, scales: Array, phase: str) -> Proposals:
        """The proposals of every image; `phase` is train or test.

        Only where the probability of the middle of an object is at least `min_location`.
        """
        boxes = tuple(
            horizontal.decode(anchors, deltas, self.stds)
            for anchors, deltas in zip(outputs.anchors, outputs.deltas, strict=True)
        )
        likely = tuple(jax.nn.sigmoid(x) >= self.proposals[phase]["min_location"] for x in outputs.locations)
        return proposal_network.choose_proposals(self, boxes, outputs.logits, sizes, scales, phase, likely)
