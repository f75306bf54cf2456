"""Exact greedy non-maximum suppression at every threshold."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal
from cfinet_jax.boxes.similarity import Pairwise
from cfinet_jax.structures import Detections


def suppress(
    boxes: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    max_overlap: float,
    similarity: Pairwise = horizontal.iou,
) -> Bool[Array, " n"]:
    """Marks the boxes, sorted best first, that no better kept box overlaps by more than `max_overlap`.

    Greedy NMS is the only fixed point of that sentence: each round settles at least the best unsettled box, and a
    few rounds settle all.
    """
    count = boxes.shape[0]
    better = jnp.arange(count)[None, :] < jnp.arange(count)[:, None]
    suppresses = (similarity(boxes, boxes) > max_overlap) & better & valid[None, :]

    def refine(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        refined = valid & ~jnp.any(suppresses & keep[None, :], axis=1)
        return refined, jnp.any(refined != keep)

    keep, _ = jax.lax.while_loop(lambda state: state[1], refine, (valid, jnp.array(True)))
    return keep


def sort_and_suppress(
    boxes: Float[Array, "n 4"], scores: Float[Array, " n"], valid: Bool[Array, " n"], max_overlap: float
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """The order of falling score (invalid last, equals by index) and which boxes in that order are kept."""
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    return order, suppress(boxes[order], valid[order], max_overlap)


def class_wise(
    boxes: Float[Array, "n classes 4"],
    scores: Float[Array, "n classes"],
    valid: Bool[Array, " n"],
    *,
    min_score: float,
    max_overlap: float,
    max_detections: int,
) -> Detections:
    """The best detections after NMS within each class, of the scores above `min_score`."""
    count, classes = scores.shape

    def of_class(boxes: Array, scores: Array) -> tuple[Array, Array, Array]:
        order, keep = sort_and_suppress(boxes, scores, valid & (scores > min_score), max_overlap)
        return boxes[order], scores[order], keep

    boxes, scores, keep = jax.vmap(of_class, in_axes=1)(boxes, scores)
    labels = jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32)[:, None], (classes, count))
    flat = boxes.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1), keep.reshape(-1)
    padding = max(0, max_detections - classes * count)
    boxes, scores, labels, keep = (jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in flat)
    top, best = jax.lax.top_k(jnp.where(keep, scores, -1.0), max_detections)
    return Detections(boxes[best], jnp.maximum(top, 0.0), labels[best], top >= 0)
