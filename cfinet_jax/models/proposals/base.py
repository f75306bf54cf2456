"""The base class of proposal networks: what they share of assigning, sampling, losses and choosing.

Losses and targets are written for one image; `vmap` adds the batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import ClassVar, Literal, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import anchors, horizontal, kinds
from cfinet_jax.boxes.similarity import SIMILARITIES, Pairwise, in_pixels
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.models.proposals.assigners import Assigner
from cfinet_jax.ops import centre_matching, losses, matching, nms, sampling
from cfinet_jax.structures import Batch, GroundTruth, Priorities, Proposals, Term

PerLevel = tuple[Array, ...]  # one array [batch, anchors of the level, ...] per level, fine to coarse
Phase = Literal["train", "test"]


@runtime_checkable
class Outputs(Protocol):
    """Predictions that all networks have; the outputs of one may hold more."""

    anchors: PerLevel  # [n, 4] or [batch, n, 4], from which the deltas lead to proposals
    logits: PerLevel  # [batch, n], objectness
    deltas: PerLevel  # [batch, n, numbers]


@dataclasses.dataclass(frozen=True)
class PhaseSettings:
    """How proposals are chosen in training or in testing."""

    candidates: int  # of each level, before NMS
    nms_overlap: float


@dataclasses.dataclass(frozen=True)
class ProposalSettings:
    """The section `proposals` of a network."""

    max_proposals: int  # of an image
    nms_similarity: str  # in which `nms_overlap` is measured: a row of `similarities`
    train: PhaseSettings
    test: PhaseSettings


class ProposalNetwork(nn.Module):
    """The first stage: boxes that may hold an object.

    Fields are the keys of a network's section, `ignore_overlap` and `similarities`.
    """

    channels: int
    anchor_scale: float
    assigner: Assigner
    positive_overlap: float
    negative_overlap: float
    min_positive_overlap: float
    samples: int
    positive_fraction: float
    objectness_weight: float
    box_loss: Literal["l1", "iou", "nwd"]
    box_weight: float
    proposals: ProposalSettings
    ignore_overlap: float
    similarities: Mapping[str, Mapping[str, float]]  # constants by name, in stored pixels

    coder: ClassVar[ModuleType] = horizontal  # of the deltas that lead from anchors to proposals

    def __call__(self, pyramid: PerLevel, sizes: Float[Array, "batch 2"]) -> Outputs:
        """Return the predictions for images of `sizes` (height, width) inside their padding."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, batch: Batch, priorities: Priorities) -> tuple[dict[str, Term], dict[str, Term]]:
        """Return losses and statistics as terms per image `[batch]`."""
        raise NotImplementedError

    def count_anchors(self, shape: tuple[int, int], levels: int) -> int:
        """Count the random priorities that an image needs: one for each anchor of an input of `shape`."""
        return count_cells(shape, levels)

    def grids(self, pyramid: PerLevel, ratios: Sequence[float] = (1.0,)) -> PerLevel:
        """Return the fixed anchors `[n, 4]` of every level; square ones by default."""
        return tuple(
            jnp.asarray(anchors.anchor_grid((x.shape[1], x.shape[2]), stride, self.anchor_scale, ratios))
            for x, stride in zip(pyramid, strides_of(len(pyramid)), strict=True)
        )

    def similarity(self, name: str, scale: Array | float) -> Pairwise:
        """Return a similarity of boxes in network pixels, of which a stored one has `scale`."""
        return lambda a, b: SIMILARITIES[name](a, b, **in_pixels(self.similarities[name], scale))

    def assign(
        self,
        anchors: Float[Array, "anchors 4"],
        levels: Int[Array, " anchors"],
        truth: GroundTruth,
        scale: Float[Array, ""],
    ) -> matching.Assignment:
        """Decide which anchors of one image learn to be which object, by the rule of the section's `assigner`."""
        similarity = self.similarity(self.assigner.similarity, scale)
        return self.assigner(anchors, levels, truth, similarity, self.ignore_overlap)

    def match_middles(
        self, grids: PerLevel, truth: GroundTruth, centre_ratio: float, ignore_ratio: float
    ) -> tuple[centre_matching.CentreMatch, Bool[Array, " anchors"]]:
        """Find the anchors of one image in the middle of an object, and those inside ignore regions.

        Args:
          grids: Square anchors `[n, 4]` of every level.
          truth: Objects and ignore regions.
          centre_ratio: Share of an object's sides that is its middle.
          ignore_ratio: The larger share around it, in which earlier objects get no positives.
        """
        match = centre_matching.match_centres(
            grids,
            truth,
            strides=strides_of(len(grids)),
            anchor_scale=self.anchor_scale,
            centre_ratio=centre_ratio,
            ignore_ratio=ignore_ratio,
        )
        return match, matching.inside_region(jnp.concatenate(grids), truth, self.ignore_overlap)

    def sample(
        self, assignment: matching.Assignment, priorities: Float[Array, " anchors"]
    ) -> tuple[sampling.Sample, Float[Array, ""]]:
        """Draw the anchors of one image that are learnt from.

        Returns:
          The sample, and what its losses are divided by: max(positives, 1) + max(negatives, 1).
        """
        sample = sampling.sample_balanced(
            priorities,
            assignment.positive,
            assignment.negative,
            size=self.samples,
            positive_fraction=self.positive_fraction,
        )
        positives, negatives = sample.positive.sum(), (sample.valid & ~sample.positive).sum()
        count = jnp.maximum(positives, 1) + jnp.maximum(negatives, 1)
        return sample, count.astype(jnp.float32)

    def anchor_losses(
        self,
        stds: tuple[float, ...],
        anchors: Float[Array, "anchors 4"],
        logits: Float[Array, " anchors"],
        deltas: Float[Array, "anchors numbers"],
        assignment: matching.Assignment,
        boxes: Float[Array, "objects coordinates"],
        scale: Float[Array, ""],
        priorities: Float[Array, " anchors"],
    ) -> dict[str, Term]:
        """Return the weighted objectness and box losses of a sample of one image's anchors.

        Args:
          stds: Divisors of the deltas.
          anchors: Boxes from which the deltas lead.
          logits: Objectness.
          deltas: Predicted deltas.
          assignment: Which anchors learn to be which object.
          boxes: The boxes that objects are to be proposed as, those to which `coder` leads.
          scale: Network pixels per stored pixel.
          priorities: Random numbers that decide the draw.
        """
        sample, count = self.sample(assignment, priorities)
        loss = optax.losses.sigmoid_binary_cross_entropy(logits[sample.indices], sample.positive)
        objectness = self.objectness_weight * jnp.where(sample.valid, loss, 0.0).sum()
        anchors, deltas, objects = (x[sample.indices] for x in (anchors, deltas, assignment.indices))
        loss = self.box_losses(stds, anchors, deltas, boxes[objects], scale)
        box = self.box_weight * jnp.where(sample.positive, loss, 0.0).sum()
        return {"objectness": Term(objectness, count), "box": Term(box, count)}

    def box_losses(
        self,
        stds: tuple[float, ...],
        anchors: Float[Array, "anchors 4"],
        deltas: Float[Array, "anchors numbers"],
        boxes: Float[Array, "anchors coordinates"],
        scale: Float[Array, ""],
    ) -> Float[Array, " anchors"]:
        """Return the unweighted `box_loss` of each anchor, given the box of its object."""
        if self.box_loss in ("l1", "smooth_l1"):
            targets = self.coder.encode(anchors, boxes, stds)
            if self.box_loss == "l1":
                return losses.l1(deltas, targets)
            return losses.smooth_l1(deltas, targets, self.smooth_beta)  # type: ignore[attr-defined]
        decoded = self.coder.decode(anchors, deltas, stds)
        if self.box_loss == "iou":
            return losses.iou_loss(decoded, boxes)
        return losses.nwd_loss(decoded, boxes, **in_pixels(self.similarities["nwd"], scale))

    @property
    def final_stds(self) -> tuple[float, ...]:
        """Divisors of the deltas that lead to proposals."""
        return self.stds  # type: ignore[attr-defined]

    def candidates(self, outputs: Outputs, phase: Phase) -> PerLevel:
        """Mark the anchors that may become proposals, `[batch, n]` per level: all of them by default."""
        return tuple(jnp.ones(x.shape, bool) for x in outputs.logits)

    def choose(
        self, outputs: Outputs, sizes: Float[Array, "batch 2"], scales: Float[Array, "batch"], phase: Phase
    ) -> Proposals:
        """Return the best boxes of every image after NMS within each level, without gradients.

        Oriented boxes are compared by their upright hulls. Where there are too few, the rest is padding.
        """
        settings = self.proposals
        limits: PhaseSettings = getattr(settings, phase)
        boxes = tuple(
            self.coder.decode(anchors, deltas, self.final_stds)
            for anchors, deltas in zip(outputs.anchors, outputs.deltas, strict=True)
        )

        def of_level(
            boxes: Array, logits: Array, candidates: Array, size: Array, scale: Array
        ) -> tuple[Array, Array, Array]:
            scores = jnp.where(candidates, jax.nn.sigmoid(logits), -1.0)
            scores, best = jax.lax.top_k(scores, min(limits.candidates, logits.shape[0]))
            chosen = kinds.kind_of(boxes).clip(boxes[best], size)
            hulls = kinds.enclose(chosen)
            real = (hulls[:, 2] > hulls[:, 0]) & (hulls[:, 3] > hulls[:, 1]) & (scores >= 0)
            similarity = self.similarity(settings.nms_similarity, scale)
            return chosen, scores, nms.suppress(hulls, real, limits.nms_overlap, similarity)

        def of_image(boxes: PerLevel, logits: PerLevel, candidates: PerLevel, size: Array, scale: Array) -> Proposals:
            levels = [of_level(*level, size, scale) for level in zip(boxes, logits, candidates, strict=True)]
            chosen, scores, keep = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
            padding = max(0, settings.max_proposals - scores.shape[0])
            chosen = jnp.pad(chosen, ((0, padding), (0, 0)))
            ranked = jnp.pad(jnp.where(keep, scores, -1.0), (0, padding), constant_values=-1.0)
            top, best = jax.lax.top_k(ranked, settings.max_proposals)
            return Proposals(chosen[best], jnp.maximum(top, 0.0), top >= 0)

        chosen = jax.vmap(of_image)(boxes, outputs.logits, self.candidates(outputs, phase), sizes, scales)
        return jax.lax.stop_gradient(chosen)


def levels_of(grids: PerLevel) -> Int[Array, " anchors"]:
    """Return the level, from 0, of every anchor of the concatenated `grids` `[n, 4]`."""
    return jnp.concatenate([jnp.full(len(grid), level) for level, grid in enumerate(grids)])


def count_cells(shape: tuple[int, int], levels: int) -> int:
    """Count the cells of all levels for an input of `shape` (height, width)."""
    return sum(-(-shape[0] // stride) * -(-shape[1] // stride) for stride in strides_of(levels))


def flatten(x: Float[Array, "batch rows columns n"], size: int) -> Float[Array, "batch anchors size"]:
    """Reshape a map with `size` numbers per anchor to a list of anchors, float32."""
    return x.reshape(x.shape[0], -1, size).astype(jnp.float32)


def recall_statistics(
    positive: Bool[Array, " anchors"], indices: Int[Array, " anchors"], truth: GroundTruth
) -> dict[str, Term]:
    """Count the positive anchors of one image, and the objects that have one.

    Args:
      positive: Which anchors are positive.
      indices: The object that each anchor stands for.
      truth: The objects.
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
