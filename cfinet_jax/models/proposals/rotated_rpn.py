"""Proposal networks of oriented experiments: upright proposals around the objects, by choices that only these have."""

from typing import Literal

from jaxtyping import Array, Float

from cfinet_jax.models.proposals.coarse_to_fine_rpn import CoarseToFineRPN
from cfinet_jax.models.proposals.rpn import RPN
from cfinet_jax.structures import GroundTruth


class RotatedRPN(RPN):
    """The plain one with the loss of rotated Faster R-CNN."""

    box_loss: Literal["smooth_l1", "l1", "iou", "nwd"]
    smooth_beta: float


class RotatedCoarseToFineRPN(CoarseToFineRPN):
    """The paper's; `size_of` says whose area is the size of an object in the dynamic threshold (Eq. 1)."""

    size_of: Literal["enclosing", "oriented"]

    def measured(self, truth: GroundTruth) -> Float[Array, "objects numbers"]:
        """The upright boxes or what they enclose."""
        return truth.boxes if self.size_of == "enclosing" else truth.goals
