"""Assignment of boxes to objects by rank: every object gets its most similar boxes, however dissimilar they are.

NWD's ranking-based assignment and RFLA's hierarchical one, streamed over chunks of objects as in `ops.matching`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal
from cfinet_jax.boxes.similarity import Pairwise
from cfinet_jax.ops.matching import CHUNK, Assignment, chunks_of, inside_region
from cfinet_jax.structures import GroundTruth


class Ranking(NamedTuple):
    """The best object of every box, and the object that claims it."""

    overlaps: Float[Array, " boxes"]  # similarity with the best object; 0 if the image has none
    indices: Int[Array, " boxes"]  # its index; the lowest among equals
    strength: Float[Array, " boxes"]  # similarity with the object that claims the box; -1 if none does
    claims: Int[Array, " boxes"]  # its index: the most similar of several, the lowest among equals


def rank(
    boxes: Float[Array, "boxes 4"], truth: GroundTruth, most: int, similarity: Pairwise, allowed: Bool[Array, " boxes"]
) -> Ranking:
    """Let every object claim its `most` best boxes among those `allowed`; the first among equals, all if too few."""
    count = boxes.shape[0]
    of_chunk = jnp.arange(CHUNK)[:, None]

    def step(ranking: Ranking, chunk: tuple[Array, Array, Array]) -> tuple[Ranking, None]:
        objects, real, first = chunk
        overlaps = jax.lax.optimization_barrier(jnp.where(real, similarity(boxes, objects), -1.0))
        _, chosen = jax.lax.top_k(jnp.where(allowed, overlaps.T, -1.0), min(most, count))
        claimed = jnp.zeros((count, CHUNK), bool).at[chosen, of_chunk].set(True) & real & allowed[:, None]
        strengths = jnp.where(claimed, overlaps, -1.0)
        best, strongest = overlaps.max(1), strengths.max(1)
        better, stronger = best > ranking.overlaps, strongest > ranking.strength
        return Ranking(
            jnp.where(better, best, ranking.overlaps),
            jnp.where(better, first + jnp.argmax(overlaps, 1).astype(jnp.int32), ranking.indices),
            jnp.where(stronger, strongest, ranking.strength),
            jnp.where(stronger, first + jnp.argmax(strengths, 1).astype(jnp.int32), ranking.claims),
        ), None

    nothing, none = jnp.zeros(count, jnp.int32), jnp.full(count, -1.0)
    ranking, _ = jax.lax.scan(step, Ranking(none, nothing, none, nothing), chunks_of(truth))
    return ranking._replace(overlaps=jnp.maximum(ranking.overlaps, 0.0))


def match_ranking(
    boxes: Float[Array, "boxes 4"],
    truth: GroundTruth,
    similarity: Pairwise,
    *,
    most: int,
    negative: float,
    ignore_overlap: float,
) -> Assignment:
    """Assign every object its `most` best boxes; others are negative if they stay below `negative` (NWD-RKA).

    Boxes inside ignore regions are ignored and cannot be an object's best.
    """
    allowed = ~inside_region(boxes, truth, ignore_overlap)
    ranking = rank(boxes, truth, most, similarity, allowed)
    return settle(ranking, ranking, negative, allowed)


def match_receptive_field(
    boxes: Float[Array, "boxes 4"],
    fields: Float[Array, " boxes"],
    truth: GroundTruth,
    similarity: Pairwise,
    *,
    most: tuple[int, int],
    shrink: float,
    negative: float,
    ignore_overlap: float,
) -> Assignment:
    """Assign by RFLA's hierarchy (Xu et al. 2022): by what the feature of a box sees, instead of by the box.

    The prior of a box has its centre and ratio, and the area `fields ** 2`. Every object gets the boxes of its
    `most[0]` best priors. Then priors are multiplied by `shrink`, and every object also gets the boxes of its `most[1]`
    best, unless another object has them already. Others are negative if their smaller prior stays below `negative`.
    Boxes inside ignore regions are ignored and cannot be an object's best.

    Args:
      boxes: Anchors, in network pixels.
      fields: Side of the receptive field that each box's feature really sees, in network pixels.
      truth: Objects and ignore regions.
      similarity: Of priors and objects.
      most: Boxes of an object in the first and in the second step.
      shrink: Factor of the priors in the second step.
      negative: Similarity below which a box is negative.
      ignore_overlap: Share inside an ignore region above which a box is ignored.
    """
    allowed = ~inside_region(boxes, truth, ignore_overlap)
    first = rank(resize(boxes, fields), truth, most[0], similarity, allowed)
    second = rank(resize(boxes, shrink * fields), truth, most[1], similarity, allowed)
    return settle(first, second, negative, allowed)


def settle(first: Ranking, second: Ranking, negative: float, allowed: Bool[Array, " boxes"]) -> Assignment:
    """Combine two rankings: claimed boxes are positive, the first ranking winning; the second decides on the others."""
    earlier, claimed = first.strength >= 0, (first.strength >= 0) | (second.strength >= 0)
    indices = jnp.where(claimed, second.claims, second.indices)
    return Assignment(
        claimed,
        (second.overlaps < negative) & ~claimed & allowed,
        jnp.where(earlier, first.claims, indices),
        second.overlaps,
    )


def resize(boxes: Float[Array, "boxes 4"], sides: Float[Array, " boxes"]) -> Float[Array, "boxes 4"]:
    """Return boxes of the same centre and ratio with area `sides ** 2`; empty boxes become squares."""
    centre, size = horizontal.centre_size(boxes)
    size = jnp.maximum(size, horizontal.EPSILON)
    half = size * (sides / jnp.sqrt(size.prod(-1)))[:, None] / 2
    return jnp.concatenate([centre - half, centre + half], -1)
