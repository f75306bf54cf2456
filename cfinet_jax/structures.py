"""The data that flows through the detector, and the conventions that it follows.

* Boxes are `x1 y1 x2 y2` in pixels, float32; width is `x2 - x1` (no "+1"). Inside the detector these are pixels of the
  network's input, outside it pixels of the stored image; `Batch.scales` converts the latter to the former.
* Oriented boxes are `cx cy w h angle`, clockwise on the screen, w >= h, radians in [-pi/2, pi/2) ("le90"). Ground truth
  and detections are oriented if `dataset.boxes` says so. Proposals are always scored as upright boxes.
* Labels are 0..C-1; background is C, the last logit.
* Images and feature maps are NHWC, channels R G B.
* Every padded set carries a mask that is True where an entry is real; padding holds finite values.
* Box arithmetic, NMS and losses are float32 even when the network runs in bfloat16.
"""

import dataclasses
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

T = TypeVar("T")

BOX_NUMBERS = {"horizontal": 4, "oriented": 5}  # coordinates of a box, by `dataset.boxes`
# Objects cut by the border of a window or of a crop: SODA-D's rule for upright boxes, SODA-A's for oriented ones.
CUT_OFF = 0.40  # an upright box with at most this share of its area inside is ignored there
WHOLE = 0.70  # an oriented box with less than this share inside does not count as an object there


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose fields JAX transforms."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class GroundTruth:
    """The annotations of an image, padded to `max_objects`."""

    boxes: Float[Array, "*batch objects 4"]  # upright; the hulls of oriented ones
    labels: Int[Array, "*batch objects"]
    valid: Bool[Array, "*batch objects"]
    # Ignore regions. They come from flags in the annotations (`preparation/coco_annotations.py`) and from objects of
    # which a window or crop shows too little (`input/annotations.py`, `ops/augmentation.py`). With
    # `dataset.paint_regions` they become black and are dropped (`input/annotations.py`); otherwise
    # `ops/matching.py:inside_region` takes anchors and RoIs inside them out of every assignment. In `metrics/` they
    # absorb detections, as the protocol says.
    ignore: Bool[Array, "*batch objects"]
    oriented: Float[Array, "*batch objects 5"] | None = None  # of an oriented data set

    @property
    def is_object(self) -> Bool[Array, "*batch objects"]:
        """Mark the target objects."""
        return self.valid & ~self.ignore

    @property
    def is_region(self) -> Bool[Array, "*batch objects"]:
        """Mark the ignore regions."""
        return self.valid & self.ignore

    @property
    def targets(self) -> Float[Array, "*batch objects coordinates"]:
        """Return the target boxes of the final stage: oriented if available, else upright."""
        return self.boxes if self.oriented is None else self.oriented


@pytree
class Batch:
    """Images with their ground truth, as shipped by the host or as prepared by `ops.preprocess`.

    Shipped: uint8 images, padded at the right and bottom by repeating the border; everything in stored pixels.
    Prepared: float32 images, resized, flipped, normalised, zero in the padding; everything in network pixels. While
    training that may be a crop of the picture, turned and at another scale (`ops.augmentation`): `scales` stays that of
    the picture, since what counts for Eq. 1 and the similarities is the size that the network sees.
    """

    images: Num[Array, "batch height width 3"]
    sizes: Float[Array, "batch 2"]  # height, width of the picture inside the padding
    scales: Float[Array, "batch"]  # network pixels per stored pixel
    ground_truth: GroundTruth
    image_ids: Int[Array, "batch"]
    index: Int[Array, "batch"]  # position in the global batch, whatever the mesh
    dropped: Int[Array, "batch"]  # objects left out because there are more than `max_objects`
    valid: Bool[Array, "batch"]  # False for an image that only fills up the last batch


@pytree
class Proposals:
    """Boxes that may hold an object, best first."""

    boxes: Float[Array, "*batch proposals 4"]  # 5 columns in Oriented R-CNN, inside the detector
    scores: Float[Array, "*batch proposals"]
    valid: Bool[Array, "*batch proposals"]


@pytree
class RoiSamples:
    """Regions from which the second stage learns: objects first, then background."""

    boxes: Float[Array, "*batch samples 4"]  # 5 columns in Oriented R-CNN
    labels: Int[Array, "*batch samples"]  # C for background
    matched: Int[Array, "*batch samples"]  # index of the object; arbitrary for background
    overlaps: Float[Array, "*batch samples"]  # IoU with it
    source: Int[Array, "*batch samples"]  # index into ground truth followed by proposals
    is_object: Bool[Array, "*batch samples"]
    valid: Bool[Array, "*batch samples"]


@pytree
class Detections:
    """Detected objects, best first."""

    boxes: Float[Array, "*batch detections 4"]  # 5 columns for an oriented data set
    scores: Float[Array, "*batch detections"]
    labels: Int[Array, "*batch detections"]
    valid: Bool[Array, "*batch detections"]


@pytree
class Exemplars:
    """RoI features of well detected objects, offered to the memory."""

    features: Float[Array, "*batch exemplars size size channels"]
    labels: Int[Array, "*batch exemplars"]
    quality: Float[Array, "*batch exemplars"]
    valid: Bool[Array, "*batch exemplars"]


@pytree
class ExemplarMemory:
    """A ring buffer of exemplars per class; part of the train state."""

    features: Float[Array, "classes slots size size channels"]
    cursor: Int[Array, "classes"]  # the next slot to write
    size: Int[Array, "classes"]  # slots in use


@pytree
class QuantileMemory(ExemplarMemory):
    """A memory whose threshold of high quality follows a quantile.

    A class of its own, since a field that may be None would be part of every checkpoint.
    """

    high_quality: Float[Array, ""]


@pytree
class Priorities:
    """Random numbers that decide every draw of a step: the highest win.

    They are made per image, so that no result depends on the mesh or on micro-batches, and tests can fix them.
    """

    anchors: Float[Array, "*batch anchors"]
    rois: Float[Array, "*batch regions"]
    positives: Float[Array, "*batch objects slots"]
    negatives: Float[Array, "*batch objects candidates"]


class Term(NamedTuple):
    """A loss or statistic: a sum over local samples, and a divisor, which is also summed over all devices."""

    total: Any  # float32 scalar
    count: Any  # float32 scalar


def fitting_scales(sizes: Any, image_size: tuple[int, int] | None) -> Any:
    """Return the factors that make pictures of `sizes` [..., 2] (height, width) fit `image_size`; 1 if it is None."""
    limits = sizes if image_size is None else np.asarray(image_size, np.float32)
    return (limits / sizes).min(-1)


def without_truth(images: Any, sizes: Any, scales: Any) -> Batch:
    """Return a batch of pictures to detect in, uint8 and padded, without ground truth."""
    count = images.shape[0]
    none = jnp.zeros((count, 1), bool)
    truth = GroundTruth(jnp.zeros((count, 1, 4)), jnp.zeros((count, 1), jnp.int32), none, none)
    numbers = jnp.zeros(count, jnp.int32)
    return Batch(images, sizes, scales, truth, numbers, numbers, numbers, numbers == 0)
