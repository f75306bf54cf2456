"""The coarse-to-fine RPN of the paper (section 3.1): regress every anchor, align the features, regress again."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal
from cfinet_jax.models.adaptive_conv import AdaptiveConv
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.models.layers import conv, small_normal
from cfinet_jax.models.proposals import assigners, proposal_network
from cfinet_jax.models.proposals.proposal_network import PerLevel
from cfinet_jax.ops import matching
from cfinet_jax.structures import Batch, GroundTruth, Priorities, Proposals, Term


class Outputs(NamedTuple):
    """Of both stages, per level."""

    anchors: PerLevel  # [n, 4], the fixed grid
    coarse_deltas: PerLevel  # [batch, n, 4]
    coarse_boxes: PerLevel  # [batch, n, 4], clipped to the picture: anchors of the fine stage
    logits: PerLevel  # [batch, n]
    deltas: PerLevel  # [batch, n, 4]


class TwoStageRPN(nn.Module):
    """One square anchor per cell, refined twice; only the fine stage classifies.

    Which anchors the coarse stage learns from is the choice of each network: `coarse_match`. `assigner` says it of the
    fine stage, and `box_loss` is that of both.
    """

    channels: int
    anchor_scale: float
    dilation: int
    coarse_stds: tuple[float, ...]
    fine_stds: tuple[float, ...]
    anchors_per_positive: float
    assigner: str
    positive_overlap: float
    negative_overlap: float
    min_positive_overlap: float
    samples: int
    positive_fraction: float
    objectness_weight: float
    box_loss: Literal["l1", "iou", "nwd"]
    box_weight: float
    proposals: Mapping[str, Any]
    ignore_overlap: float
    similarities: Mapping[str, Mapping[str, float]]
    assigners: Mapping[str, Mapping[str, Any]]

    def setup(self) -> None:
        def head(features: int) -> nn.Conv:
            return conv(features, 1, use_bias=True, kernel_init=small_normal)

        self.coarse_conv = conv(self.channels, 3, dilation=self.dilation, use_bias=True, kernel_init=small_normal)
        self.coarse_box = head(4)
        self.fine_conv = AdaptiveConv(self.channels)
        self.fine_objectness = head(1)
        self.fine_box = head(4)

    def __call__(self, pyramid: tuple[Array, ...], sizes: Array) -> Outputs:
        anchors = proposal_network.anchors_of(pyramid, self.anchor_scale, (1.0,))
        levels = [
            self.refine(features, jnp.asarray(grid), stride, sizes)
            for features, grid, stride in zip(pyramid, anchors, strides_of(len(pyramid)), strict=True)
        ]
        return Outputs(tuple(jnp.asarray(grid) for grid in anchors), *(tuple(x) for x in zip(*levels, strict=True)))

    def refine(self, features: Array, anchors: Array, stride: int, sizes: Array) -> tuple[Array, ...]:
        """Coarse deltas, coarse boxes, logits and deltas of one level."""
        features = nn.relu(self.coarse_conv(features))
        coarse_deltas = proposal_network.flatten(self.coarse_box(features), 4)
        decode = horizontal.decode(anchors[None], jax.lax.stop_gradient(coarse_deltas), self.coarse_stds)
        boxes = jax.vmap(horizontal.clip)(decode, sizes)
        features = nn.relu(self.fine_conv(features, boxes, stride))
        logits = proposal_network.flatten(self.fine_objectness(features), 1)[..., 0]
        return coarse_deltas, boxes, logits, proposal_network.flatten(self.fine_box(features), 4)

    def losses(self, outputs: Outputs, batch: Batch, priorities: Priorities) -> tuple[dict, dict]:
        """Losses (Eq. 2) and statistics as terms per image `[batch]`."""
        levels = proposal_network.levels_of(outputs.anchors)
        coarse_deltas, coarse_boxes, logits, deltas = (jnp.concatenate(x, 1) for x in outputs[1:])

        def of_image(truth, scale, coarse_deltas, coarse_boxes, logits, deltas, priorities):
            coarse, statistics = self.coarse_loss(outputs.anchors, coarse_deltas, truth, scale)
            assignment = assigners.assign(self, coarse_boxes, levels, truth, scale)
            fine = proposal_network.anchor_losses(
                self, self.fine_stds, coarse_boxes, logits, deltas, assignment, truth.boxes, scale, priorities
            )
            return {"coarse_box": coarse} | fine, statistics

        return jax.vmap(of_image)(
            batch.ground_truth, batch.scales, coarse_deltas, coarse_boxes, logits, deltas, priorities.anchors
        )

    def coarse_match(self, grids: PerLevel, truth: GroundTruth, scale: Array) -> tuple[Array, Array]:
        """Which anchors of one image, `grids` per level, are positive, and the index of the object of each.

        `scale` is network pixels per stored pixel.
        """
        raise NotImplementedError

    def coarse_loss(self, grids, deltas, truth, scale) -> tuple[Term, dict[str, Term]]:
        """Box loss of every positive anchor of one image, divided by an assumed number of positives."""
        positive, indices = self.coarse_match(grids, truth, scale)
        anchors = jnp.concatenate(grids)
        loss = proposal_network.box_losses(self, self.coarse_stds, anchors, deltas, truth.boxes[indices], scale)
        total = self.box_weight * jnp.where(positive, loss, 0.0).sum()
        count = jnp.float32(anchors.shape[0] / self.anchors_per_positive)
        return Term(total, count), proposal_network.recall_statistics(positive, indices, truth)

    def count_anchors(self, shape: tuple[int, int], levels: int) -> int:
        """Anchors of an input of `shape` (height, width)."""
        return proposal_network.count_cells(shape, levels)

    def choose(self, outputs: Outputs, sizes: Array, scales: Array, phase: str) -> Proposals:
        """The proposals of every image; `phase` is train or test."""
        boxes = tuple(
            horizontal.decode(anchors, deltas, self.fine_stds)
            for anchors, deltas in zip(outputs.coarse_boxes, outputs.deltas, strict=True)
        )
        return proposal_network.choose_proposals(self, boxes, outputs.logits, sizes, scales, phase)


class CoarseToFineRPN(TwoStageRPN):
    """The paper's, on P2..P5: an anchor is positive from an IoU on that depends on the size of its object.

    `assign` names the row of `assign_modes` (constants of the threshold) by which the coarse stage picks positives.
    """

    assign: str
    assign_modes: Mapping[str, Mapping[str, float]]
    base_size: float

    def coarse_match(self, grids: PerLevel, truth: GroundTruth, scale: Array) -> tuple[Array, Array]:
        """By the dynamic threshold (Eq. 1)."""
        mode = self.assign_modes[self.assign]
        thresholds = matching.dynamic_thresholds(self.measured(truth), scale, base_size=self.base_size, **mode)
        anchors = jnp.concatenate(grids)
        assignment = matching.match_dynamic(anchors, truth, thresholds, ignore_overlap=self.ignore_overlap)
        return assignment.positive, assignment.indices

    def measured(self, truth: GroundTruth) -> Float[Array, "objects numbers"]:
        """The boxes whose areas are the sizes of objects."""
        return truth.boxes
