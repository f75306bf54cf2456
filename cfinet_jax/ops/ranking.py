"""Which boxes stand for which object by rank: every object gets its most similar ones, however little they resemble it.

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

    overlaps: Float[Array, " boxes"]  # similarity with the best object; 0 where the image holds none
    indices: Int[Array, " boxes"]  # its index; the lowest among equals
    strength: Float[Array, " boxes"]  # similarity with the object that claims the box; -1: none
    claims: Int[Array, " boxes"]  # its index; of several the most similar, the lowest among equals


def rank(
    boxes: Float[Array, "boxes 4"], truth: GroundTruth, most: int, similarity: Pairwise, heard: Bool[Array, " boxes"]
) -> Ranking:
    """Lets every object claim exactly its `most` best boxes of those `heard`: of equal ones the first, all of fewer."""
    count = boxes.shape[0]
    of_chunk = jnp.arange(CHUNK)[:, None]

    def step(ranking: Ranking, chunk: tuple[Array, Array, Array]) -> tuple[Ranking, None]:
        objects, real, first = chunk
        overlaps = jax.lax.optimization_barrier(jnp.where(real, similarity(boxes, objects), -1.0))
        _, chosen = jax.lax.top_k(jnp.where(heard, overlaps.T, -1.0), min(most, count))
        claimed = jnp.zeros((count, CHUNK), bool).at[chosen, of_chunk].set(True) & real & heard[:, None]
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
    """The `most` best boxes of every object are positive, of the others those below `negative` negative (NWD-RKA).

    Boxes inside ignore regions are neither, and no object's best.
    """
    heard = ~inside_region(boxes, truth, ignore_overlap)
    ranking = rank(boxes, truth, most, similarity, heard)
    return settle(ranking, ranking, negative, heard)


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
    """RFLA's hierarchical label assignment (Xu et al. 2022), by what a box's feature sees instead of by the box.

    The prior of a box has its centre and ratio, and for area the square of `fields`, in network pixels. The `most[0]`
    best priors of every object are positive. Then priors are made smaller by `shrink`, and the `most[1]` best of these
    are positive too where no object has the box yet; others are negative if their smaller prior stays below `negative`.
    Boxes inside ignore regions are neither, and no object's best.
    """
    heard = ~inside_region(boxes, truth, ignore_overlap)
    first = rank(resize(boxes, fields), truth, most[0], similarity, heard)
    second = rank(resize(boxes, shrink * fields), truth, most[1], similarity, heard)
    return settle(first, second, negative, heard)


def settle(first: Ranking, second: Ranking, negative: float, heard: Bool[Array, " boxes"]) -> Assignment:
    """Positive where an object claims a box, in the first ranking or else in the second, which decides on the rest."""
    earlier, claimed = first.strength >= 0, (first.strength >= 0) | (second.strength >= 0)
    indices = jnp.where(claimed, second.claims, second.indices)
    return Assignment(
        claimed,
        (second.overlaps < negative) & ~claimed & heard,
        jnp.where(earlier, first.claims, indices),
        second.overlaps,
    )


def resize(boxes: Float[Array, "boxes 4"], sides: Float[Array, " boxes"]) -> Float[Array, "boxes 4"]:
    """Boxes of equal centre and ratio whose area is the square of `sides`; of empty ones, squares."""
    centre, size = horizontal.centre_size(boxes)
    size = jnp.maximum(size, horizontal.EPSILON)
    half = size * (sides / jnp.sqrt(size.prod(-1)))[:, None] / 2
    return jnp.concatenate([centre - half, centre + half], -1)
