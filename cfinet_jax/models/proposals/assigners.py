"""Rules that decide which anchors stand for which object; `rule` of a row of `detector.assigners` names one.

The fields of a rule are the constants of its row and, where they have the same name, keys of the network's section.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cfinet_jax.boxes.similarity import Pairwise
from cfinet_jax.ops import matching, ranking
from cfinet_jax.ops.matching import Assignment
from cfinet_jax.structures import GroundTruth


@dataclasses.dataclass(frozen=True)
class Assigner:
    """The base class of rules."""

    similarity: str  # a row of `detector.similarities`

    def __call__(
        self,
        anchors: Float[Array, "anchors 4"],
        levels: Int[Array, " anchors"],
        truth: GroundTruth,
        similarity: Pairwise,
        ignore_overlap: float,
    ) -> Assignment:
        """Assign the anchors of one image.

        Args:
          anchors: Boxes in network pixels.
          levels: The level of each anchor in the pyramid, from 0.
          truth: The objects of the image.
          similarity: `self.similarity` in network pixels.
          ignore_overlap: Anchors of which more than this share lies in an ignore region are left out.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ByThreshold(Assigner):
    """Max-IoU assignment, with any similarity in place of the IoU."""

    positive_overlap: float
    negative_overlap: float
    min_positive_overlap: float

    def __call__(self, anchors, levels, truth, similarity, ignore_overlap) -> Assignment:
        return matching.match_max_iou(
            anchors,
            truth,
            positive=self.positive_overlap,
            negative=self.negative_overlap,
            min_positive=self.min_positive_overlap,
            ignore_overlap=ignore_overlap,
            similarity=similarity,
        )


@dataclasses.dataclass(frozen=True)
class ByRanking(Assigner):
    """Ranking-based assignment (NWD-RKA, Xu et al. 2022)."""

    most: int
    negative: float

    def __call__(self, anchors, levels, truth, similarity, ignore_overlap) -> Assignment:
        return ranking.match_ranking(
            anchors, truth, similarity, most=self.most, negative=self.negative, ignore_overlap=ignore_overlap
        )


@dataclasses.dataclass(frozen=True)
class ByReceptiveField(Assigner):
    """Hierarchical assignment by receptive fields (RFLA, Xu et al. 2022)."""

    receptive_fields: tuple[float, ...]  # of P2, P3, ..., in network pixels
    effective: float  # share of a receptive field that a feature really sees
    most: tuple[int, int]
    shrink: float
    negative: float

    def __call__(self, anchors, levels, truth, similarity, ignore_overlap) -> Assignment:
        return ranking.match_receptive_field(
            anchors,
            self.effective * jnp.asarray(self.receptive_fields, jnp.float32)[levels],
            truth,
            similarity,
            most=self.most,
            shrink=self.shrink,
            negative=self.negative,
            ignore_overlap=ignore_overlap,
        )


RULES: dict[str, type[Assigner]] = {
    "threshold": ByThreshold,
    "ranking": ByRanking,
    "receptive_field": ByReceptiveField,
}
