"""Assignment of boxes to objects: by the greatest similarity, and by CRPN's dynamic threshold.

Similarities are streamed over chunks of objects: 120,000 anchors x 500 objects never exist as one matrix.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal, oriented
from cfinet_jax.boxes.kinds import kind_of
from cfinet_jax.boxes.similarity import Pairwise
from cfinet_jax.structures import GroundTruth

CHUNK = 32  # objects compared at a time


class Match(NamedTuple):
    """The best object of every box."""

    overlaps: Float[Array, " boxes"]  # similarity with it; 0 if the image has no object
    indices: Int[Array, " boxes"]  # its index; the lowest among equals
    forced: Int[Array, " boxes"]  # the last object whose best box this is; -1 if there is none


class Assignment(NamedTuple):
    """Training label of each box; a box that is neither positive nor negative is ignored."""

    positive: Bool[Array, " boxes"]
    negative: Bool[Array, " boxes"]
    indices: Int[Array, " boxes"]
    overlaps: Float[Array, " boxes"]


def chunks_of(truth: GroundTruth) -> tuple[Array, Array, Array]:
    """Split the entries of an image into chunks: boxes `[chunks, CHUNK, k]`, which are objects, index of the first."""
    count = truth.labels.shape[0]
    chunks = -(-count // CHUNK)
    padding = chunks * CHUNK - count
    objects = jnp.pad(truth.boxes, ((0, padding), (0, 0))).reshape(chunks, CHUNK, truth.boxes.shape[-1])
    real = jnp.pad(truth.is_object, (0, padding)).reshape(chunks, CHUNK)
    return objects, real, jnp.arange(chunks, dtype=jnp.int32) * CHUNK


def best_match(
    boxes: Float[Array, "boxes k"],
    truth: GroundTruth,
    min_forced: float = 2.0,
    similarity: Pairwise = horizontal.iou,
    allowed: Bool[Array, " boxes"] | None = None,
) -> Match:
    """Find the best object of every box, and the best boxes of every object.

    Args:
      boxes: Anchors or regions.
      truth: The objects of the image.
      min_forced: Similarity from which an object's best box counts as such (`Match.forced`); 2 disables it.
      similarity: Takes the place of the IoU.
      allowed: Boxes that can be an object's best; None allows all.
    """

    def step(match: Match, chunk: tuple[Array, Array, Array]) -> tuple[Match, None]:
        objects, real, first = chunk
        # Behind the barrier every use sees the same bits: an object's best box is found by equality.
        overlaps = jax.lax.optimization_barrier(jnp.where(real, similarity(boxes, objects), -1.0))
        best, index = overlaps.max(1), first + jnp.argmax(overlaps, 1).astype(jnp.int32)
        eligible = overlaps if allowed is None else jnp.where(allowed[:, None], overlaps, -1.0)
        of_object = eligible.max(0)
        is_best = (eligible == of_object) & (of_object >= min_forced) & real
        last = CHUNK - 1 - jnp.argmax(is_best[:, ::-1], 1).astype(jnp.int32)
        better = best > match.overlaps
        return Match(
            jnp.where(better, best, match.overlaps),
            jnp.where(better, index, match.indices),
            jnp.where(is_best.any(1), first + last, match.forced),
        ), None

    nothing = jnp.zeros(boxes.shape[0], jnp.int32)
    start = Match(jnp.full(boxes.shape[0], -1.0), nothing, nothing - 1)
    match, _ = jax.lax.scan(step, start, chunks_of(truth))
    return match._replace(overlaps=jnp.maximum(match.overlaps, 0.0))


def iou_of_shapes(factors: Sequence[tuple[float, float]]) -> Pairwise:
    """Return the IoU that boxes reach in the best of several shapes, sides multiplied by each of `factors`."""

    def similarity(boxes: Float[Array, "m 4"], objects: Float[Array, "n 4"]) -> Float[Array, "m n"]:
        return functools.reduce(
            jnp.maximum, [horizontal.iou(horizontal.stretch(boxes, each), objects) for each in factors]
        )

    return similarity


def inside_region(boxes: Float[Array, "boxes k"], truth: GroundTruth, share: float) -> Bool[Array, " boxes"]:
    """Mark boxes of which more than `share` lies in one ignore region.

    If the boxes are upright and the regions oriented, the share is that inside the region's upright hull, and the box's
    centre must lie in the region itself.
    """
    covered = jnp.where(truth.is_region, kind_of(boxes).overlap_of_first(boxes, truth.boxes), 0.0)
    if truth.oriented is not None and kind_of(boxes) is horizontal:
        covered = jnp.where(oriented.contain(truth.oriented, horizontal.centre_size(boxes)[0]), covered, 0.0)
    return covered.max(1) > share


@jax.named_scope("targets")
def match_max_iou(
    boxes: Float[Array, "boxes k"],
    truth: GroundTruth,
    *,
    positive: float,
    negative: float,
    min_positive: float | None,
    ignore_overlap: float,
    similarity: Pairwise = horizontal.iou,
) -> Assignment:
    """Assign each box to the object of greatest IoU: positive from `positive` on, negative below `negative`.

    An object's best boxes also count as positive if their IoU is at least `min_positive` (None disables this); ties are
    all kept, and on a conflict the later object wins.

    Args:
      boxes: Anchors or regions.
      truth: Objects and ignore regions of the image.
      positive: Least IoU of a positive box.
      negative: A negative box has less.
      min_positive: Least IoU of an object's best box.
      ignore_overlap: A box with more than this share inside an ignore region is ignored and cannot be an object's best.
      similarity: Takes the place of the IoU.
    """
    allowed = ~inside_region(boxes, truth, ignore_overlap)
    match = best_match(boxes, truth, 2.0 if min_positive is None else min_positive, similarity, allowed)
    forced = match.forced >= 0
    is_positive = (match.overlaps >= positive) | forced
    return Assignment(
        is_positive & allowed,
        (match.overlaps < negative) & ~is_positive & allowed,
        jnp.where(forced, match.forced, match.indices),
        match.overlaps,
    )


def dynamic_thresholds(
    boxes: Float[Array, "objects k"],
    scale: Float[Array, ""],
    *,
    base_size: float,
    base: float,
    slope: float,
    low: float,
    cap: float,
) -> Float[Array, " objects"]:
    """Return the least IoU of a positive anchor for each object: clip(base + slope log2(s / base_size), low, cap).

    s is the square root of the object's area in stored pixels. With the paper's constants this is Eq. 1, with others
    each variant of the released code.

    Args:
      boxes: The objects, in network pixels.
      scale: Network pixels per stored pixel.
      base_size: Stored pixels.
      base: Threshold of an object of `base_size`, before clipping.
      slope: What is added each time the size doubles.
      low: Least threshold.
      cap: Greatest threshold.
    """
    side = jnp.sqrt(jnp.maximum(kind_of(boxes).area(boxes), horizontal.EPSILON)) / scale
    return jnp.clip(base + slope * jnp.log2(side / base_size), low, cap)


@jax.named_scope("targets")
def match_dynamic(
    boxes: Float[Array, "boxes 4"],
    truth: GroundTruth,
    thresholds: Float[Array, " objects"],
    *,
    ignore_overlap: float,
) -> Assignment:
    """Assign each box to the object of greatest IoU: positive from its threshold on, else ignored (section 3.1).

    An object's best box is not forced to be positive, and there are no negatives: the coarse stage only regresses.
    """
    match = best_match(boxes, truth)
    positive = (match.overlaps >= thresholds[match.indices]) & (match.overlaps > 0)
    positive &= ~inside_region(boxes, truth, ignore_overlap)
    return Assignment(positive, jnp.zeros_like(positive), match.indices, match.overlaps)
