"""Cascade RPN (Vu et al. 2019): two stages like CRPN's, the coarse one taught in the middle of objects."""

from jaxtyping import Array

from cfinet_jax.models.proposals import assigners
from cfinet_jax.models.proposals.coarse_to_fine_rpn import TwoStageRPN
from cfinet_jax.models.proposals.proposal_network import PerLevel
from cfinet_jax.structures import GroundTruth


class CascadeRPN(TwoStageRPN):
    """An anchor is positive if its cell lies in the central `centre_ratio` of an object's box, on the object's level.

    In the central `ignore_ratio` around it no earlier object has positives (Table 1 varies the two).
    """

    centre_ratio: float
    ignore_ratio: float

    def coarse_match(self, grids: PerLevel, truth: GroundTruth, scale: Array) -> tuple[Array, Array]:
        """By the region rule."""
        match, silent = assigners.match_middles(self, grids, truth)
        return match.positive & ~silent, match.indices
