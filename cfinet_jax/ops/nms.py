"""Exact greedy non-maximum suppression (NMS) at every threshold."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal, kinds
from cfinet_jax.boxes.similarity import Pairwise
from cfinet_jax.structures import Detections


def suppress(
    boxes: Float[Array, "n k"],
    valid: Bool[Array, " n"],
    max_overlap: float,
    similarity: Pairwise = horizontal.iou,
) -> Bool[Array, " n"]:
    """Mark the boxes, sorted best first, that no better kept box overlaps by more than `max_overlap`."""
    return keep_best(similarity(boxes, boxes) > max_overlap, jnp.arange(boxes.shape[0]), valid)


def keep_best(alike: Bool[Array, "n n"], places: Int[Array, " n"], valid: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """Mark the boxes that NMS keeps: those that are not `alike` any kept box of better rank.

    A box is kept if and only if no better kept box suppresses it: greedy NMS is the only fixed point of this rule. Each
    time it is applied to all boxes at once it settles at least the best unsettled one, and a few times settle all.

    Args:
      alike: Which boxes overlap too much.
      places: Rank of each box, 0 the best.
      valid: Which boxes are real.
    """
    suppresses = alike & (places[None, :] < places[:, None]) & valid[None, :]

    def refine(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        refined = valid & ~jnp.any(suppresses & keep[None, :], axis=1)
        return refined, jnp.any(refined != keep)

    keep, _ = jax.lax.while_loop(lambda state: state[1], refine, (valid, jnp.array(True)))
    return keep


def sort_and_suppress(
    boxes: Float[Array, "n k"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    max_overlap: float,
    similarity: Pairwise = horizontal.iou,
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Return the order of `sort`, and which boxes in that order are kept."""
    order = sort(scores, valid)
    return order, suppress(boxes[order], valid[order], max_overlap, similarity)


def sort(scores: Float[Array, " n"], valid: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Return the order of falling score; ties keep their order, and invalid boxes come last."""
    return jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)


def class_wise(
    boxes: Float[Array, "n classes k"],
    scores: Float[Array, "n classes"],
    valid: Bool[Array, " n"],
    *,
    min_score: float,
    max_overlap: float,
    max_detections: int,
    similarity: Pairwise = horizontal.iou,
) -> Detections:
    """Return the best detections with a score above `min_score`, after NMS within each class."""

    def of_class(boxes: Array, scores: Array) -> tuple[Array, Array, Array]:
        order, keep = sort_and_suppress(boxes, scores, valid & (scores > min_score), max_overlap, similarity)
        return boxes[order], scores[order], keep

    return choose_best(*jax.vmap(of_class, in_axes=1)(boxes, scores), max_detections)


def class_wise_shared(
    boxes: Float[Array, "n k"],
    scores: Float[Array, "n classes"],
    valid: Bool[Array, " n"],
    *,
    min_score: float,
    max_overlap: float,
    max_detections: int,
    similarity: Pairwise = horizontal.iou,
) -> Detections:
    """Return what `class_wise` does, for boxes that all classes share: they are compared only once."""
    alike = similarity(boxes, boxes) > max_overlap

    def of_class(scores: Array) -> Array:
        candidate = valid & (scores > min_score)
        return keep_best(alike, jnp.argsort(sort(scores, candidate)), candidate)

    keep = jax.vmap(of_class)(scores.T)
    return choose_best(jnp.broadcast_to(boxes, (len(keep), *boxes.shape)), scores.T, keep, max_detections)


def merge(found: Detections, max_overlap: float, most: int) -> Detections:
    """Return the best `most` detections of an image after NMS within each class; they may come in any order."""
    order = sort(found.scores, found.valid)
    found = jax.tree.map(lambda x: x[order], found)
    alike = kinds.kind_of(found.boxes).iou(found.boxes, found.boxes) > max_overlap
    alike &= found.labels[:, None] == found.labels
    keep = keep_best(alike, jnp.arange(len(order)), found.valid)
    found = dataclasses.replace(found, scores=jnp.where(keep, found.scores, 0.0), valid=keep)
    best = jnp.argsort(~keep, stable=True)[:most]
    return jax.tree.map(lambda x: x[best], found)


def choose_best(
    boxes: Float[Array, "classes n k"], scores: Float[Array, "classes n"], keep: Bool[Array, "classes n"], most: int
) -> Detections:
    """Return the best kept boxes of all classes, padded to `most`."""
    classes, count = scores.shape
    labels = jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32)[:, None], (classes, count))
    flat = boxes.reshape(classes * count, -1), scores.reshape(-1), labels.reshape(-1), keep.reshape(-1)
    padding = max(0, most - classes * count)
    boxes, scores, labels, keep = (jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in flat)
    top, best = jax.lax.top_k(jnp.where(keep, scores, -1.0), most)
    return Detections(boxes[best], jnp.maximum(top, 0.0), labels[best], top >= 0)
