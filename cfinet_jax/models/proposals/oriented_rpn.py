"""The RPN of Oriented R-CNN (Xie et al. 2021): proposals are oriented, six numbers away from an upright anchor."""

from typing import ClassVar, Literal

from jaxtyping import Array, Float

from cfinet_jax.boxes import midpoint_offset
from cfinet_jax.models.proposals import proposal_network
from cfinet_jax.models.proposals.rotated_rpn import RotatedRPN
from cfinet_jax.models.proposals.rpn import Outputs
from cfinet_jax.structures import GroundTruth, Proposals


class OrientedRPN(RotatedRPN):
    """Anchors stand for upright boxes, by which they are matched and suppressed, and lead to what these enclose."""

    box_loss: Literal["smooth_l1", "l1"]

    numbers: ClassVar[int] = 6

    def goals(self, truth: GroundTruth) -> Float[Array, "objects 5"]:
        """The oriented boxes."""
        return truth.goals

    def choose(self, outputs: Outputs, sizes: Array, scales: Array, phase: str) -> Proposals:
        """The oriented proposals of every image; `phase` is train or test."""
        boxes = tuple(
            midpoint_offset.decode(anchors, deltas, self.stds)
            for anchors, deltas in zip(outputs.anchors, outputs.deltas, strict=True)
        )
        return proposal_network.choose_proposals(self, boxes, outputs.logits, sizes, scales, phase)
