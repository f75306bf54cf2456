"""The RPN of Oriented R-CNN (Xie et al. 2021): proposals are oriented, six numbers away from an upright anchor."""

from types import ModuleType
from typing import ClassVar, Literal

from jaxtyping import Array, Float

from cfinet_jax.boxes import midpoint_offset
from cfinet_jax.models.proposals.rotated_rpn import RotatedRPN
from cfinet_jax.structures import GroundTruth


class OrientedRPN(RotatedRPN):
    """Upright anchors, matched to the objects' upright hulls, that learn to become the oriented boxes."""

    box_loss: Literal["smooth_l1", "l1"]

    numbers: ClassVar[int] = 6
    coder: ClassVar[ModuleType] = midpoint_offset

    def targets(self, truth: GroundTruth) -> Float[Array, "objects 5"]:
        return truth.targets
