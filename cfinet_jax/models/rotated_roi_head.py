"""RoI heads that predict oriented boxes, one for all classes, from upright or oriented regions."""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from cfinet_jax.boxes import kinds, oriented
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.models.roi_head import Predictions, RoiHead
from cfinet_jax.ops import losses, nms, roi_align, rotated_roi_align
from cfinet_jax.structures import Detections, GroundTruth, Proposals, RoiSamples


class RotatedRoiHead(RoiHead):
    """The head of rotated Faster R-CNN: upright regions, matched to the upright hulls of objects."""

    smooth_beta: float

    numbers: ClassVar[int] = 5

    @property
    def shapes(self) -> int:
        """Number of boxes predicted for a region: one, whatever the class."""
        return 1

    def distance(self, deltas: Float[Array, "*n numbers"], targets: Float[Array, "*n numbers"]) -> Float[Array, "*n"]:
        """Return the smooth L1 loss."""
        return losses.smooth_l1(deltas, targets, self.smooth_beta)

    def detect_image(self, predictions: Predictions, proposals: Proposals, size: Array) -> Detections:
        """Return the detections of one image, after NMS by rotated IoU within each class; classes share boxes."""
        boxes = kinds.decode(proposals.boxes, predictions.deltas[:, 0], self.stds)
        return nms.class_wise_shared(
            oriented.clip(boxes, size),
            jax.nn.softmax(predictions.logits)[:, :-1],
            proposals.valid,
            min_score=self.min_score,
            max_overlap=self.nms_overlap,
            max_detections=self.max_detections,
            similarity=oriented.iou,
        )


class OrientedRoiHead(RotatedRoiHead):
    """The head of Oriented R-CNN (Xie et al. 2021): regions are oriented, too, and matched by rotated IoU.

    A bin takes `max_grid` x `max_grid` samples, whatever the size of its region.
    """

    def sample_image(self, proposals: Proposals, truth: GroundTruth, priorities: Array) -> RoiSamples:
        """Choose regions of one image among oriented ones."""
        return super().sample_image(proposals, dataclasses.replace(truth, boxes=truth.targets), priorities)

    def pool_image(self, pyramid: tuple[Array, ...], boxes: Float[Array, "regions 5"]) -> Array:
        """Return the RoI features of one image, along the axes of each region."""
        levels = roi_align.pyramid_levels(oriented.area(boxes), self.finest_scale, len(pyramid))
        return rotated_roi_align.rotated_roi_align(
            pyramid, boxes, levels, strides_of(len(pyramid)), size=self.pool_size, grid=self.max_grid
        )
