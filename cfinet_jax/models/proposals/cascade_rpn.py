"""Cascade RPN (Vu et al. 2019): two stages like those of the paper's network, the coarse one taught inside objects."""

from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.models.proposals.base import PerLevel
from cfinet_jax.models.proposals.coarse_to_fine_rpn import TwoStageRPN
from cfinet_jax.structures import GroundTruth


class CascadeRPN(TwoStageRPN):
    """An anchor is positive if its cell lies in the central `centre_ratio` of an object's box, on the object's level.

    In the central `ignore_ratio` around it no earlier object has positives (Table 1 varies the two).
    """

    centre_ratio: float
    ignore_ratio: float

    def coarse_match(
        self, grids: PerLevel, truth: GroundTruth, scale: Float[Array, ""]
    ) -> tuple[Bool[Array, " anchors"], Int[Array, " anchors"]]:
        """Match by the region rule."""
        match, ignored = self.match_middles(grids, truth, self.centre_ratio, self.ignore_ratio)
        return match.positive & ~ignored, match.indices
