"""What every proposal network offers, and what they share.

A network has `__call__(pyramid, sizes) -> outputs`, `losses(outputs, batch, priorities) -> (losses, statistics)`
`choose(outputs, sizes, scales, phase) -> Proposals` and `count_anchors(shape, levels)`, the priorities that an image
needs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import anchors, horizontal, kinds, midpoint_offset
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
    network: Any,
    boxes: PerLevel,
    logits: PerLevel,
    sizes: Array,
    scales: Array,
    phase: str,
    candidates: PerLevel | None = None,
) -> Proposals:
    """The best boxes after NMS within each level, of so many `candidates` per level as `network.proposals` says.

    The argument `candidates`, `[batch, n]` per level, marks the boxes that may be chosen; None: all. Of oriented
    boxes those around them are compared.
    """
    settings = network.proposals
    limits = settings[phase]
    if candidates is None:
        candidates = tuple(jnp.ones(x.shape, bool) for x in logits)

    def of_level(
        boxes: Array, logits: Array, candidates: Array, size: Array, scale: Array
    ) -> tuple[Array, Array, Array]:
        scores = jnp.where(candidates, jax.nn.sigmoid(logits), -1.0)
        scores, best = jax.lax.top_k(scores, min(limits["candidates"], logits.shape[0]))
        chosen = kinds.kind_of(boxes).clip(boxes[best], size)
        around = kinds.enclose(chosen)
        real = (around[:, 2] > around[:, 0]) & (around[:, 3] > around[:, 1]) & (scores >= 0)
        similarity = similarity_of(network.similarities, settings["nms_similarity"], scale)
        return chosen, scores, nms.suppress(around, real, limits["nms_overlap"], similarity)

    def of_image(boxes: PerLevel, logits: PerLevel, candidates: PerLevel, size: Array, scale: Array) -> Proposals:
        levels = [of_level(*level, size, scale) for level in zip(boxes, logits, candidates, strict=True)]
        chosen, scores, keep = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
        padding = max(0, settings["max_proposals"] - scores.shape[0])
        chosen = jnp.pad(chosen, ((0, padding), (0, 0)))
        ranked = jnp.pad(jnp.where(keep, scores, -1.0), (0, padding), constant_values=-1.0)
        top, best = jax.lax.top_k(ranked, settings["max_proposals"])
        return Proposals(chosen[best], jnp.maximum(top, 0.0), top >= 0)

    return jax.lax.stop_gradient(jax.vmap(of_image)(boxes, logits, candidates, sizes, scales))


def sample_anchors(
    network: Any, assignment: matching.Assignment, priorities: Array
) -> tuple[sampling.Sample, Float[Array, ""]]:
    """The anchors of one image that `network` learns from, and what their losses are divided by.

    The divisor is max(positives, 1) + max(negatives, 1).
    """
    sample = sampling.sample_balanced(
        priorities,
        assignment.positive,
        assignment.negative,
        size=network.samples,
        positive_fraction=network.positive_fraction,
    )
    positives, negatives = sample.positive.sum(), (sample.valid & ~sample.positive).sum()
    count = jnp.maximum(positives, 1) + jnp.maximum(negatives, 1)
    return sample, count.astype(jnp.float32)


def anchor_losses(
    network: Any,
    stds: tuple[float, ...],
    anchors: Array,
    logits: Array,
    deltas: Array,
    assignment: matching.Assignment,
    boxes: Array,
    scale: Array,
    priorities: Array,
) -> dict[str, Term]:
    """Binary cross-entropy and box loss, both weighted, of the anchors of one image that `network` samples.

    The argument `boxes` holds those of the objects, `[objects, 4]` or, for midpoint offsets, `[objects, 5]`.
    """
    sample, count = sample_anchors(network, assignment, priorities)
    loss = optax.losses.sigmoid_binary_cross_entropy(logits[sample.indices], sample.positive)
    objectness = network.objectness_weight * jnp.where(sample.valid, loss, 0.0).sum()
    anchors, deltas, objects = (x[sample.indices] for x in (anchors, deltas, assignment.indices))
    loss = box_losses(network, stds, anchors, deltas, boxes[objects], scale)
    box = network.box_weight * jnp.where(sample.positive, loss, 0.0).sum()
    return {"objectness": Term(objectness, count), "box": Term(box, count)}


def box_losses(
    network: Any, stds: tuple[float, ...], anchors: Array, deltas: Array, boxes: Array, scale: Array
) -> Float[Array, " anchors"]:
    """How far `deltas` lead from what leads from anchors to `boxes`, as `network.box_loss` measures it; unweighted."""
    coder = midpoint_offset if boxes.shape[-1] == 5 else horizontal
    if network.box_loss == "l1":
        return losses.l1(deltas, coder.encode(anchors, boxes, stds))
    if network.box_loss == "smooth_l1":
        return losses.smooth_l1(deltas, coder.encode(anchors, boxes, stds), network.smooth_beta)
    decoded = horizontal.decode(anchors, deltas, stds)
    if network.box_loss == "iou":
        return losses.iou_loss(decoded, boxes)
    return losses.nwd_loss(decoded, boxes, **in_pixels(network.similarities["nwd"], scale))


def recall_statistics(
    positive: Bool[Array, " anchors"], indices: Int[Array, " anchors"], truth: GroundTruth
) -> dict[str, Term]:
    """How many anchors are positive, and the share of objects that have one, in one image.

    `indices` are the objects for which the anchors stand.
    """
    objects = truth.is_object
    hit = jnp.zeros(objects.shape, bool).at[indices].max(positive)
    return {
        "positive_anchors": Term(positive.sum().astype(jnp.float32), jnp.float32(1)),
        "objects_with_anchor": Term(
            (hit & objects).sum().astype(jnp.float32),
            objects.sum().astype(jnp.float32),
        ),
    }
