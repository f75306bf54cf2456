"""The plain region proposal network (Ren et al. 2015), as the baselines of the paper use it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal
from cfinet_jax.models.layers import conv, small_normal
from cfinet_jax.models.proposals import assigners, proposal_network
from cfinet_jax.models.proposals.proposal_network import PerLevel
from cfinet_jax.structures import Batch, GroundTruth, Priorities, Proposals


class Outputs(NamedTuple):
    """Per level."""

    anchors: PerLevel  # [n, 4]
    logits: PerLevel  # [batch, n]
    deltas: PerLevel  # [batch, n, numbers]


class RPN(nn.Module):
    """Anchors of several ratios per cell, classified and regressed once; `assigner` says which are positive."""

    channels: int
    anchor_scale: float
    aspect_ratios: tuple[float, ...]
    stds: tuple[float, ...]
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

    numbers: ClassVar[int] = 4  # that lead from an anchor to a proposal

    def setup(self) -> None:
        ratios = len(self.aspect_ratios)
        self.conv = conv(self.channels, 3, use_bias=True, kernel_init=small_normal)
        self.objectness = conv(ratios, 1, use_bias=True, kernel_init=small_normal)
        self.box = conv(self.numbers * ratios, 1, use_bias=True, kernel_init=small_normal)

    def __call__(self, pyramid: tuple[Array, ...], sizes: Array) -> Outputs:
        grids = proposal_network.anchors_of(pyramid, self.anchor_scale, self.aspect_ratios)
        features = [nn.relu(self.conv(x)) for x in pyramid]
        return Outputs(
            tuple(jnp.asarray(grid) for grid in grids),
            tuple(proposal_network.flatten(self.objectness(x), 1)[..., 0] for x in features),
            tuple(proposal_network.flatten(self.box(x), self.numbers) for x in features),
        )

    def losses(self, outputs: Outputs, batch: Batch, priorities: Priorities) -> tuple[dict, dict]:
        """Losses and statistics as terms per image `[batch]`."""
        anchors, levels = jnp.concatenate(outputs.anchors), proposal_network.levels_of(outputs.anchors)
        logits, deltas = jnp.concatenate(outputs.logits, 1), jnp.concatenate(outputs.deltas, 1)

        def of_image(truth, scale, logits, deltas, priorities):
            assignment = assigners.assign(self, anchors, levels, truth, scale)
            terms = proposal_network.anchor_losses(
                self, self.stds, anchors, logits, deltas, assignment, self.goals(truth), scale, priorities
            )
            return terms, proposal_network.recall_statistics(assignment.positive, assignment.indices, truth)

        return jax.vmap(of_image)(batch.ground_truth, batch.scales, logits, deltas, priorities.anchors)

    def goals(self, truth: GroundTruth) -> Float[Array, "objects numbers"]:
        """What proposals are to become."""
        return truth.boxes

    def count_anchors(self, shape: tuple[int, int], levels: int) -> int:
        """Anchors of an input of `shape` (height, width)."""
        return len(self.aspect_ratios) * proposal_network.count_cells(shape, levels)

    def choose(self, outputs: Outputs, sizes: Array, scales: Array, phase: str) -> Proposals:
        """The proposals of every image; `phase` is train or test."""
        boxes = tuple(
            horizontal.decode(anchors, deltas, self.stds)
            for anchors, deltas in zip(outputs.anchors, outputs.deltas, strict=True)
        )
        return proposal_network.choose_proposals(self, boxes, outputs.logits, sizes, scales, phase)
