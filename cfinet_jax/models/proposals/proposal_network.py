"""What every proposal network offers, and what they share.

A network has `__call__(pyramid, sizes) -> outputs`, `losses(outputs, batch, priorities) -> (losses, statistics)`
`choose(outputs, sizes, scales, phase) -> Proposals` and `count_anchors(shape, levels)`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cfinet_jax.boxes import anchors, horizontal
from cfinet_jax.boxes.similarity import in_pixels
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.models.proposals.assigners import similarity_of
from cfinet_jax.ops import losses, matching, nms, sampling
from cfinet_jax.structures import GroundTruth, Proposals, Term

PerLevel = tuple[Array, ...]  # one array [batch, anchors of the level, ...] per level


def anchors_of(pyramid: Sequence[Array], scale: float, ratios: Sequence[float]) -> tuple[np.ndarray, ...]:
    """The anchors `[n, 4]` of every level, fine to coarse."""
    strides = strides_of(len(pyramid))
    return tuple(
        anchors.anchor_grid((x.shape[1], x.shape[2]), stride, scale, ratios)
        for x, stride in zip(pyramid, strides, strict=True)
    )


def levels_of(anchors: PerLevel) -> Int[Array, " anchors"]:
    """The level of every anchor, from 0, where those `[n, 4]` of all levels stand one after another."""
    return jnp.concatenate([jnp.full(len(of_level), level) for level, of_level in enumerate(anchors)])


def count_cells(shape: tuple[int, int], levels: int) -> int:
    """Cells of all levels of an input of `shape` (height, width)."""
    return sum(-(-shape[0] // stride) * -(-shape[1] // stride) for stride in strides_of(levels))


def flatten(x: Float[Array, "batch rows columns n"], size: int) -> Float[Array, "batch anchors size"]:
    """A map with `size` numbers per anchor as a list of anchors, float32."""
    return x.reshape(x.shape[0], -1, size).astype(jnp.float32)


def choose_proposals(
    network: Any, boxes: PerLevel, logits: PerLevel, sizes: Array, scales: Array, phase: str
) -> Proposals:
    """The best boxes after NMS within each level, of `candidates` per level, by `network.proposals`."""
    settings = network.proposals
    limits = settings[phase]

    def of_level(boxes: Array, logits: Array, size: Array, scale: Array) -> tuple[Array, Array, Array]:
        scores, best = jax.lax.top_k(jax.nn.sigmoid(logits), min(limits["candidates"], logits.shape[0]))
        chosen = horizontal.clip(boxes[best], size)
        real = (chosen[:, 2] > chosen[:, 0]) & (chosen[:, 3] > chosen[:, 1])
        overlap = similarity_of(network.similarities, settings["nms_similarity"], scale)
        return chosen, scores, nms.suppress(chosen, real, limits["nms_overlap"], overlap)

    def of_image(boxes: PerLevel, logits: PerLevel, size: Array, scale: Array) -> Proposals:
        levels = [of_level(*level, size, scale) for level in zip(boxes, logits, strict=True)]
        chosen, scores, keep = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
        padding = max(0, settings["max_proposals"] - scores.shape[0])
        chosen = jnp.pad(chosen, ((0, padding), (0, 0)))
        ranked = jnp.pad(jnp.where(keep, scores, -1.0), (0, padding), constant_values=-1.0)
        top, best = jax.lax.top_k(ranked, settings["max_proposals"])
        return Proposals(chosen[best], jnp.maximum(top, 0.0), top >= 0)

    return jax.lax.stop_gradient(jax.vmap(of_image)(boxes, logits, sizes, scales))


def objectness_loss(
    network: Any, logits: Array, assignment: matching.Assignment, priorities: Array
) -> tuple[Term, sampling.Sample]:
    """Weighted binary cross-entropy of the anchors that `network` samples in one image, and which of all they are.

    The count is max(positives, 1) + max(negatives, 1), by which the box loss is divided too.
    """
    sample = sampling.sample_balanced(
        priorities,
        assignment.positive,
        assignment.negative,
        size=network.samples,
        positive_fraction=network.positive_fraction,
    )
    loss = losses.binary_cross_entropy(logits[sample.indices], sample.positive)
    total = network.objectness_weight * jnp.where(sample.valid, loss, 0.0).sum()
    positives, negatives = sample.positive.sum(), (sample.valid & ~sample.positive).sum()
    count = jnp.maximum(positives, 1) + jnp.maximum(negatives, 1)
    return Term(total, count.astype(jnp.float32)), sample


def box_losses(
    network: Any, anchors: Array, deltas: Array, boxes: Array, stds: tuple[float, ...], scale: Array
) -> Float[Array, " anchors"]:
    """How far `deltas` lead from what leads from anchors to `boxes`, as `network.box_loss` measures it; unweighted."""
    if network.box_loss == "l1":
        return jnp.abs(deltas - horizontal.encode(anchors, boxes, stds)).sum(-1)
    decoded = horizontal.decode(anchors, deltas, stds)
    if network.box_loss == "iou":
        return losses.iou_loss(decoded, boxes)
    return losses.nwd_loss(decoded, boxes, **in_pixels(network.similarities["nwd"], scale))


def recall_statistics(assignment: matching.Assignment, truth: GroundTruth) -> dict[str, Term]:
    """How many anchors are positive, and the share of objects that have one, in one image."""
    objects = truth.is_object
    hit = jnp.zeros(objects.shape, bool).at[assignment.indices].max(assignment.positive)
    return {
        "positive_anchors": Term(assignment.positive.sum().astype(jnp.float32), jnp.float32(1)),
        "objects_with_anchor": Term(
            (hit & objects).sum().astype(jnp.float32),
            objects.sum().astype(jnp.float32),
        ),
    }
