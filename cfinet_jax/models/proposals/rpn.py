"""The plain region proposal network (Ren et al. 2015), as the baselines of the paper use it."""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.models.layers import conv, small_normal
from cfinet_jax.models.proposals.base import (
    PerLevel,
    ProposalNetwork,
    count_cells,
    flatten,
    levels_of,
    recall_statistics,
)
from cfinet_jax.structures import Batch, GroundTruth, Priorities, Term


class Outputs(NamedTuple):
    """Predictions per level."""

    anchors: PerLevel  # [n, 4]
    logits: PerLevel  # [batch, n]
    deltas: PerLevel  # [batch, n, numbers]


class RPN(ProposalNetwork):
    """Anchors of several ratios per cell, classified and regressed once."""

    aspect_ratios: tuple[float, ...]
    stds: tuple[float, ...]

    numbers: ClassVar[int] = 4  # that lead from an anchor to a proposal

    def setup(self) -> None:
        ratios = len(self.aspect_ratios)
        self.conv = conv(self.channels, 3, use_bias=True, kernel_init=small_normal)
        self.objectness = conv(ratios, 1, use_bias=True, kernel_init=small_normal)
        self.box = conv(self.numbers * ratios, 1, use_bias=True, kernel_init=small_normal)

    def __call__(self, pyramid: PerLevel, sizes: Float[Array, "batch 2"]) -> Outputs:
        features = [nn.relu(self.conv(x)) for x in pyramid]
        return Outputs(
            self.grids(pyramid, self.aspect_ratios),
            tuple(flatten(self.objectness(x), 1)[..., 0] for x in features),
            tuple(flatten(self.box(x), self.numbers) for x in features),
        )

    def losses(self, outputs: Outputs, batch: Batch, priorities: Priorities) -> tuple[dict[str, Term], dict[str, Term]]:
        anchors, levels = jnp.concatenate(outputs.anchors), levels_of(outputs.anchors)
        logits, deltas = jnp.concatenate(outputs.logits, 1), jnp.concatenate(outputs.deltas, 1)

        def of_image(truth, scale, logits, deltas, priorities):
            assignment = self.assign(anchors, levels, truth, scale)
            terms = self.anchor_losses(
                self.stds, anchors, logits, deltas, assignment, self.targets(truth), scale, priorities
            )
            return terms, recall_statistics(assignment.positive, assignment.indices, truth)

        return jax.vmap(of_image)(batch.ground_truth, batch.scales, logits, deltas, priorities.anchors)

    def targets(self, truth: GroundTruth) -> Float[Array, "objects coordinates"]:
        """Return the boxes that objects are to be proposed as."""
        return truth.boxes

    def count_anchors(self, shape: tuple[int, int], levels: int) -> int:
        return len(self.aspect_ratios) * count_cells(shape, levels)
