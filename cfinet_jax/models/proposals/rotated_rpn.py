"""Proposal networks of oriented experiments that propose upright boxes, with settings that only these have."""

from typing import Literal

from jaxtyping import Array, Float

from cfinet_jax.models.proposals.coarse_to_fine_rpn import CoarseToFineRPN
from cfinet_jax.models.proposals.rpn import RPN
from cfinet_jax.structures import GroundTruth


class RotatedRPN(RPN):
    """The plain RPN with the loss of rotated Faster R-CNN."""

    box_loss: Literal["smooth_l1", "l1", "iou", "nwd"]
    smooth_beta: float


class RotatedCoarseToFineRPN(CoarseToFineRPN):
    """The paper's network; `size_of` says whose area is the size of an object in the dynamic threshold (Eq. 1)."""

    size_of: Literal["enclosing", "oriented"]

    def sized(self, truth: GroundTruth) -> Float[Array, "objects coordinates"]:
        return truth.boxes if self.size_of == "enclosing" else truth.targets
