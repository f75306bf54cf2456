"""Feature imitation on one image (section 3.2): instance quality, jitter, choice of samples."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes import horizontal
from cfinet_jax.boxes.kinds import kind_of
from cfinet_jax.ops import sampling
from cfinet_jax.structures import RoiSamples

# Stored pixels: 0.65 of it are 32, where SODA's normal objects begin, and 0.25 are 12, where extremely small ones end.
SIDE_OF_BEST = 32 / 0.65


class Quality(NamedTuple):
    """How well the detector currently does on each object."""

    value: Float[Array, " objects"]  # IQ of Eq. 4, 0 where no prediction counts
    count: Int[Array, " objects"]  # predictions that count


def instance_quality(
    probabilities: Float[Array, " samples"],
    overlaps: Float[Array, " samples"],
    counts: Bool[Array, " samples"],
    matched: Int[Array, " samples"],
    objects: int,
) -> Quality:
    """Return Eq. 4: the mean of class probability times IoU over the predictions of each object that count.

    Args:
      probabilities: Of the true class of each sample.
      overlaps: IoU of each sample with its object.
      counts: Which samples count.
      matched: Index of each sample's object.
      objects: Number of objects.
    """
    weight = jnp.zeros(objects).at[matched].add(jnp.where(counts, probabilities * overlaps, 0.0))
    count = jnp.zeros(objects, jnp.int32).at[matched].add(counts.astype(jnp.int32))
    return Quality(weight / jnp.maximum(count, 1), count)


def quality_released(
    probabilities: Array, samples: RoiSamples, boxes: tuple[Array, Array], objects: int, min_score: float, scale: Array
) -> Quality:
    """Grade as the released code does: the true class has probability >= `min_score`; the IoU is the proposal's."""
    own = jnp.take_along_axis(probabilities, samples.labels[:, None], 1)[:, 0]
    counts = samples.is_object & (samples.source >= objects) & (own >= min_score)
    return instance_quality(own, samples.overlaps, counts, samples.matched, objects)


def quality_paper(
    probabilities: Array, samples: RoiSamples, boxes: tuple[Array, Array], objects: int, min_score: float, scale: Array
) -> Quality:
    """Grade by Eq. 3-4: the true class is the most probable one; the IoU is that of `boxes`, (predicted, true)."""
    own = jnp.take_along_axis(probabilities, samples.labels[:, None], 1)[:, 0]
    counts = samples.is_object & (samples.source >= objects) & (probabilities.argmax(1) == samples.labels)
    return instance_quality(own, kind_of(boxes[0]).paired_iou(*boxes), counts, samples.matched, objects)


def quality_size(
    probabilities: Array, samples: RoiSamples, boxes: tuple[Array, Array], objects: int, min_score: float, scale: Array
) -> Quality:
    """Grade by size alone, whatever is predicted: large objects teach, as in earlier work on small objects.

    The grade grows with the mean side in stored pixels, to 1 at `SIDE_OF_BEST`; every sampled object counts.
    """
    sides = jnp.sqrt(kind_of(boxes[1]).area(boxes[1])) / scale
    sampled = samples.is_object & samples.valid
    value = jnp.zeros(objects).at[samples.matched].max(jnp.where(sampled, sides / SIDE_OF_BEST, 0.0))
    return Quality(jnp.minimum(value, 1.0), jnp.where(value > 0, samples.labels.shape[0], 0))


QUALITIES = {"paper": quality_paper, "released": quality_released, "size": quality_size}


def jitter(
    boxes: Float[Array, "n 4"], size: Float[Array, "2"], shifts: tuple[float, ...], rescales: tuple[float, ...]
) -> Float[Array, "n jitters 4"]:
    """Return Gamma of Algorithm 1: each box shifted, and rescaled about its centre, clipped to the picture.

    Args:
      boxes: The boxes.
      size: Height and width of the picture.
      shifts: Shares of a box's width and height; each gives four boxes, moved by +x, +y, -x, -y.
      rescales: Factors of both sides; each gives one box, after the shifted ones.
    """
    centre, extent = horizontal.centre_size(boxes)
    directions = jnp.array([[1, 0], [0, 1], [-1, 0], [0, -1]], jnp.float32)
    moves = jnp.concatenate([shift * directions for shift in shifts] + [jnp.zeros((len(rescales), 2))])
    factors = jnp.asarray((1.0,) * (4 * len(shifts)) + tuple(rescales))
    centres = centre[:, None] + moves * extent[:, None]
    half = extent[:, None] * factors[:, None] / 2
    return horizontal.clip(jnp.concatenate([centres - half, centres + half], -1), size)


class Contrast(NamedTuple):
    """Candidates that each object is compared with; `slots` are those of all classes, flattened."""

    exemplars: Bool[Array, "objects slots"]  # positives from the memory
    jitters: Bool[Array, "objects exemplars_of_image jitters"]  # positives: its own jittered boxes
    negatives: Bool[Array, "objects candidates"]  # over the regions, then (paper) the slots


def choose_contrast(
    labels: Int[Array, " objects"],
    quality_class: Int[Array, " objects"],
    own_exemplar: Bool[Array, "objects exemplars_of_image"],
    samples: RoiSamples,
    filled: Bool[Array, "classes slots"],
    priorities: tuple[Array, Array],
    *,
    negatives: str,
    size: int,
    positive_fractions: tuple[float, float],
    jitters: int,
) -> Contrast:
    """Choose positives and negatives for every object by Algorithm 1, lines 4-10.

    Args:
      labels: Classes of the objects.
      quality_class: 0 low, 1 middling, 2 high. The positives of low and middling objects are exemplars of their class,
        those of high ones their own jittered boxes, if they are exemplars.
      own_exemplar: Which of the image's exemplars is the object itself.
      samples: Regions of the image.
      filled: Which slots of the memory hold an exemplar.
      priorities: Random numbers that decide the draws of positives and of negatives.
      negatives: `paper`: background regions and exemplars of other classes; `image`: regions with another label.
      size: Samples of an object, fewer where the image has fewer background regions.
      positive_fractions: Share of positives for objects of low and of middling quality.
      jitters: Jittered boxes of each exemplar.
    """
    classes, slots = filled.shape
    background = samples.valid & ~samples.is_object
    total = jnp.minimum(background.sum(), size)
    fractions = jnp.asarray((*positive_fractions, 0.0))
    quota = jnp.floor(total * fractions[quality_class]).astype(jnp.int32)
    of_class = labels[:, None] == jnp.arange(classes)
    own_slots = filled[labels]
    most = int(size * max(positive_fractions))
    drawn = sampling.choose(priorities[0], own_slots, quota, most)
    exemplars = (drawn[:, None, :] & of_class[:, :, None]).reshape(-1, classes * slots)
    jittered = jnp.broadcast_to(own_exemplar[:, :, None], (*own_exemplar.shape, jitters))

    if negatives == "paper":
        others = (filled & ~of_class[:, :, None]).reshape(-1, classes * slots)
        regions = jnp.broadcast_to(background, (labels.shape[0], background.shape[0]))
        candidates = jnp.concatenate([regions, others], 1)
    else:
        candidates = samples.valid & (samples.labels != labels[:, None])
    positives = exemplars.sum(1) + jittered.sum((1, 2))
    chosen = sampling.choose(priorities[1], candidates, total - positives, size)
    return Contrast(exemplars, jittered, chosen)
