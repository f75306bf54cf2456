"""Which boxes stand for which object: by the greatest similarity, and by CRPN's dynamic threshold.

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

    overlaps: Float[Array, " boxes"]  # similarity with it; 0 where the image holds none
    indices: Int[Array, " boxes"]  # its index; the lowest among equals
    forced: Int[Array, " boxes"]  # the last object that has no better box than this one; -1: none


class Assignment(NamedTuple):
    """What each box is to learn; neither positive nor negative: nothing."""

    positive: Bool[Array, " boxes"]
    negative: Bool[Array, " boxes"]
    indices: Int[Array, " boxes"]
    overlaps: Float[Array, " boxes"]


def chunks_of(truth: GroundTruth) -> tuple[Array, Array, Array]:
    """The entries of an image in chunks: boxes `[chunks, CHUNK, k]`, which are objects, the index of the first."""
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
    heard: Bool[Array, " boxes"] | None = None,
) -> Match:
    """The best object of every box, and which of those `heard` are an object's best (`forced`, from `min_forced`)."""

    def step(match: Match, chunk: tuple[Array, Array, Array]) -> tuple[Match, None]:
        objects, real, first = chunk
        # Behind the barrier every use sees the same bits: an object's best box is found by equality.
        overlaps = jax.lax.optimization_barrier(jnp.where(real, similarity(boxes, objects), -1.0))
        best, index = overlaps.max(1), first + jnp.argmax(overlaps, 1).astype(jnp.int32)
        eligible = overlaps if heard is None else jnp.where(heard[:, None], overlaps, -1.0)
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
    """The IoU that boxes reach in the best of several shapes: width and height times each of `factors`."""

    def similarity(boxes: Float[Array, "m 4"], objects: Float[Array, "n 4"]) -> Float[Array, "m n"]:
        return functools.reduce(
            jnp.maximum, [horizontal.iou(horizontal.stretch(boxes, each), objects) for each in factors]
        )

    return similarity


def inside_region(boxes: Float[Array, "boxes k"], truth: GroundTruth, share: float) -> Bool[Array, " boxes"]:
    """Boxes of which more than `share` lies in one ignore region.

    Of upright boxes and oriented regions: in the box around the region, and their centres in the region itself.
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
    """Positive from IoU `positive` on, negative below `negative`; each object also gets its best boxes.

    The latter if they reach `min_positive`, ties included, the later object winning; None: never.
    Boxes inside ignore regions are neither, and no object's best. `similarity` takes the place of the IoU.
    """
    heard = ~inside_region(boxes, truth, ignore_overlap)
    match = best_match(boxes, truth, 2.0 if min_positive is None else min_positive, similarity, heard)
    forced = match.forced >= 0
    is_positive = (match.overlaps >= positive) | forced
    return Assignment(
        is_positive & heard,
        (match.overlaps < negative) & ~is_positive & heard,
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
    """IoU from which an anchor may stand for an object: clip(base + slope log2(s / base_size), low, cap).

    s is the square root of the object's area in stored pixels, `scale` network pixels per stored pixel. This is
    the paper's Eq. 1 and, with other constants, each variant of the released code.
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
    """Positive from the threshold of the box's best object on, everything else nothing (section 3.1).

    No object is given its best box, and there are no negatives: the coarse stage only regresses.
    """
    match = best_match(boxes, truth)
    positive = (match.overlaps >= thresholds[match.indices]) & (match.overlaps > 0)
    positive &= ~inside_region(boxes, truth, ignore_overlap)
    return Assignment(positive, jnp.zeros_like(positive), match.indices, match.overlaps)
