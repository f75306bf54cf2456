"""The coarse-to-fine RPN of the paper (section 3.1): regress every anchor, align the features, regress again."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal
from cfinet_jax.models.adaptive_conv import AdaptiveConv
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.models.layers import conv, small_normal
from cfinet_jax.models.proposals.base import PerLevel, ProposalNetwork, flatten, levels_of, recall_statistics
from cfinet_jax.ops import matching
from cfinet_jax.structures import Batch, GroundTruth, Priorities, Term


class Outputs(NamedTuple):
    """Predictions of both stages, per level."""

    grids: PerLevel  # [n, 4], the fixed anchors of the coarse stage
    coarse_deltas: PerLevel  # [batch, n, 4]
    anchors: PerLevel  # [batch, n, 4], of the fine stage: boxes of the coarse one, clipped to the picture
    logits: PerLevel  # [batch, n]
    deltas: PerLevel  # [batch, n, 4]


class TwoStageRPN(ProposalNetwork):
    """One square anchor per cell, refined twice; only the fine stage classifies.

    `coarse_match` of a subclass says which anchors the coarse stage learns from, `assigner` which ones the fine stage
    does; both have the same `box_loss`.
    """

    dilation: int
    coarse_stds: tuple[float, ...]
    fine_stds: tuple[float, ...]
    anchors_per_positive: float

    def setup(self) -> None:
        def head(features: int) -> nn.Conv:
            return conv(features, 1, use_bias=True, kernel_init=small_normal)

        self.coarse_conv = conv(self.channels, 3, dilation=self.dilation, use_bias=True, kernel_init=small_normal)
        self.coarse_box = head(4)
        self.fine_conv = AdaptiveConv(self.channels)
        self.fine_objectness = head(1)
        self.fine_box = head(4)

    @property
    def final_stds(self) -> tuple[float, ...]:
        return self.fine_stds

    def __call__(self, pyramid: PerLevel, sizes: Float[Array, "batch 2"]) -> Outputs:
        grids = self.grids(pyramid)
        levels = [
            self.refine(features, grid, stride, sizes)
            for features, grid, stride in zip(pyramid, grids, strides_of(len(pyramid)), strict=True)
        ]
        return Outputs(grids, *(tuple(x) for x in zip(*levels, strict=True)))

    def refine(
        self,
        features: Float[Array, "batch rows columns channels"],
        grid: Float[Array, "n 4"],
        stride: int,
        sizes: Float[Array, "batch 2"],
    ) -> tuple[Array, ...]:
        """Return the predictions of one level: the fields of `Outputs` after the first."""
        features = nn.relu(self.coarse_conv(features))
        coarse_deltas = flatten(self.coarse_box(features), 4)
        # The stages learn apart: the fine stage sees boxes, whose gradient would otherwise reach the coarse one.
        decoded = horizontal.decode(grid[None], jax.lax.stop_gradient(coarse_deltas), self.coarse_stds)
        anchors = jax.vmap(horizontal.clip)(decoded, sizes)
        features = nn.relu(self.fine_conv(features, anchors, stride))
        logits = flatten(self.fine_objectness(features), 1)[..., 0]
        return coarse_deltas, anchors, logits, flatten(self.fine_box(features), 4)

    def losses(self, outputs: Outputs, batch: Batch, priorities: Priorities) -> tuple[dict[str, Term], dict[str, Term]]:
        """Return the losses of Eq. 2 and statistics as terms per image `[batch]`."""
        levels = levels_of(outputs.grids)
        coarse_deltas, anchors, logits, deltas = (jnp.concatenate(x, 1) for x in outputs[1:])

        def of_image(truth, scale, coarse_deltas, anchors, logits, deltas, priorities):
            coarse, statistics = self.coarse_loss(outputs.grids, coarse_deltas, truth, scale)
            assignment = self.assign(anchors, levels, truth, scale)
            fine = self.anchor_losses(
                self.fine_stds, anchors, logits, deltas, assignment, truth.boxes, scale, priorities
            )
            return {"coarse_box": coarse} | fine, statistics

        return jax.vmap(of_image)(
            batch.ground_truth, batch.scales, coarse_deltas, anchors, logits, deltas, priorities.anchors
        )

    def coarse_match(
        self, grids: PerLevel, truth: GroundTruth, scale: Float[Array, ""]
    ) -> tuple[Bool[Array, " anchors"], Int[Array, " anchors"]]:
        """Decide which anchors of one image the coarse stage learns from.

        Args:
          grids: Anchors `[n, 4]` of every level.
          truth: The objects.
          scale: Network pixels per stored pixel.

        Returns:
          Which anchors are positive, and the index of the object of each.
        """
        raise NotImplementedError

    def coarse_loss(
        self, grids: PerLevel, deltas: Float[Array, "anchors 4"], truth: GroundTruth, scale: Float[Array, ""]
    ) -> tuple[Term, dict[str, Term]]:
        """Return the box loss of every positive anchor of one image, divided by an assumed number of positives."""
        positive, indices = self.coarse_match(grids, truth, scale)
        anchors = jnp.concatenate(grids)
        loss = self.box_losses(self.coarse_stds, anchors, deltas, truth.boxes[indices], scale)
        total = self.box_weight * jnp.where(positive, loss, 0.0).sum()
        count = jnp.float32(anchors.shape[0] / self.anchors_per_positive)
        return Term(total, count), recall_statistics(positive, indices, truth)


class CoarseToFineRPN(TwoStageRPN):
    """The paper's network, on P2..P5: the IoU from which an anchor is positive depends on the size of its object.

    `coarse_threshold` names the row of `coarse_thresholds`, constants of that IoU.
    """

    coarse_threshold: str
    coarse_thresholds: Mapping[str, Mapping[str, float]]
    base_size: float

    def coarse_match(
        self, grids: PerLevel, truth: GroundTruth, scale: Float[Array, ""]
    ) -> tuple[Bool[Array, " anchors"], Int[Array, " anchors"]]:
        """Match by the dynamic threshold (Eq. 1)."""
        constants = self.coarse_thresholds[self.coarse_threshold]
        thresholds = matching.dynamic_thresholds(self.sized(truth), scale, base_size=self.base_size, **constants)
        anchors = jnp.concatenate(grids)
        assignment = matching.match_dynamic(anchors, truth, thresholds, ignore_overlap=self.ignore_overlap)
        return assignment.positive, assignment.indices

    def sized(self, truth: GroundTruth) -> Float[Array, "objects coordinates"]:
        """Return the boxes whose areas are the sizes of objects."""
        return truth.boxes
