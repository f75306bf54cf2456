"""What every proposal network offers, and what they share.

A network has `__call__(pyramid, sizes) -> outputs`, `losses(outputs, batch, priorities) -> (losses, statistics)`
`choose(outputs, sizes, phase) -> Proposals` and `count_anchors(shape, levels)`, the priorities that an image needs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import anchors, horizontal
from cfinet_jax.models.fpn import strides_of
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


def count_cells(shape: tuple[int, int], levels: int) -> int:
    """Cells of all levels of an input of `shape` (height, width)."""
    return sum(-(-shape[0] // stride) * -(-shape[1] // stride) for stride in strides_of(levels))


def flatten(x: Float[Array, "batch rows columns n"], size: int) -> Float[Array, "batch anchors size"]:
    """A map with `size` numbers per anchor as a list of anchors, float32."""
    return x.reshape(x.shape[0], -1, size).astype(jnp.float32)


def choose_proposals(
    boxes: PerLevel,
    logits: PerLevel,
    sizes: Array,
    settings: Mapping[str, Any],
    phase: str,
    candidates: PerLevel | None = None,
) -> Proposals:
    """The best boxes after NMS within each level, of so many `candidates` per level as `settings` say.

    The argument `candidates`, `[batch, n]` per level, marks the boxes that may be chosen; None: all.
    """
    limits = settings[phase]
    if candidates is None:
        candidates = tuple(jnp.ones(x.shape, bool) for x in logits)

    def of_level(boxes: Array, logits: Array, candidates: Array, size: Array) -> tuple[Array, Array, Array]:
        scores = jnp.where(candidates, jax.nn.sigmoid(logits), -1.0)
        scores, best = jax.lax.top_k(scores, min(limits["candidates"], logits.shape[0]))
        chosen = horizontal.clip(boxes[best], size)
        real = (chosen[:, 2] > chosen[:, 0]) & (chosen[:, 3] > chosen[:, 1]) & (scores >= 0)
        return chosen, scores, nms.suppress(chosen, real, limits["nms_overlap"])

    def of_image(boxes: PerLevel, logits: PerLevel, candidates: PerLevel, size: Array) -> Proposals:
        levels = [of_level(*level, size) for level in zip(boxes, logits, candidates, strict=True)]
        chosen, scores, keep = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
        padding = max(0, settings["max_proposals"] - scores.shape[0])
        chosen = jnp.pad(chosen, ((0, padding), (0, 0)))
        ranked = jnp.pad(jnp.where(keep, scores, -1.0), (0, padding), constant_values=-1.0)
        top, best = jax.lax.top_k(ranked, settings["max_proposals"])
        return Proposals(chosen[best], jnp.maximum(top, 0.0), top >= 0)

    return jax.lax.stop_gradient(jax.vmap(of_image)(boxes, logits, candidates, sizes))


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


def match_anchors(
    network: Any,
    anchors: Array,
    truth: GroundTruth,
    overlap: Callable[[Array, Array], Array] = horizontal.iou,
) -> matching.Assignment:
    """Max-IoU assignment by the thresholds of `network`; `overlap` takes the place of the IoU."""
    return matching.match_max_iou(
        anchors,
        truth,
        positive=network.positive_overlap,
        negative=network.negative_overlap,
        min_positive=network.min_positive_overlap,
        ignore_overlap=network.ignore_overlap,
        overlap=overlap,
    )


def objectness_loss(
    network: Any, anchors: Array, logits: Array, truth: GroundTruth, priorities: Array
) -> tuple[Term, sampling.Sample, matching.Assignment]:
    """Weighted binary cross-entropy of the anchors that `network` samples in one image, and which of all they are.

    By its count the box loss is divided too.
    """
    assignment = match_anchors(network, anchors, truth)
    sample, count = sample_anchors(network, assignment, priorities)
    loss = losses.binary_cross_entropy(logits[sample.indices], sample.positive)
    total = network.objectness_weight * jnp.where(sample.valid, loss, 0.0).sum()
    return Term(total, count), sample, assignment


def delta_losses(
    network: Any,
    distance: Callable[[Array, Array], Array],
    anchors: Array,
    logits: Array,
    deltas: Array,
    truth: GroundTruth,
    priorities: Array,
) -> tuple[dict[str, Term], dict[str, Term]]:
    """Objectness and `distance` of the box deltas of the sampled anchors of one image; losses and statistics."""
    objectness, sample, assignment = objectness_loss(network, anchors, logits, truth, priorities)
    matched = truth.boxes[assignment.indices[sample.indices]]
    targets = horizontal.encode(anchors[sample.indices], matched, network.stds)
    loss = distance(deltas[sample.indices], targets)
    box = network.box_weight * jnp.where(sample.positive, loss, 0.0).sum()
    terms = {"objectness": objectness, "box": Term(box, objectness.count)}
    return terms, recall_statistics(assignment.positive, assignment.indices, truth)


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
