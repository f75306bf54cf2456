"""Augmentation on the device: how training sees a picture is drawn again at every step.

Scale, crop, turns and mirror images are one map of the picture, applied alike to its pixels and to its boxes. Only the
mirror image from left to right, which is older, is left to `ops/preprocess.py`, as is normalisation.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, Shaped, UInt8

from cfinet_jax.boxes import kinds, oriented
from cfinet_jax.boxes.kinds import kind_of
from cfinet_jax.ops.preprocess import mirrored, scale_boxes
from cfinet_jax.structures import CUT_OFF, WHOLE, Batch, GroundTruth

LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue in the grey of a pixel (ITU-R BT.601)


class Augmentation(NamedTuple):
    """Choices to draw from; but for the first three, keys of the config section `dataset`."""

    shape: tuple[int, int]  # height and width of what training sees
    resize: bool  # whether any picture is scaled
    crop: bool  # whether a picture may be larger than that
    vertical_flip: float  # probability of a mirror image from top to bottom
    quarter_turns: float  # probability of a turn, by 90, 180 or 270 degrees
    scale_jitter: tuple[float, float]  # range of a factor of the picture's own scale
    crop_at_object: float  # probability of a crop that holds an object; else it is anywhere in the picture
    colour_jitter: float  # factors of saturation, contrast and brightness are within 1 +- this
    invert: float  # probability of the negative of a picture


class View(NamedTuple):
    """How one picture is seen: scaled, cropped, transposed, mirrored, in this order; None leaves it as it is."""

    scale: Float[Array, ""]  # network pixels per stored pixel
    corner: Float[Array, "2"] | None = None  # first row and column of the crop, whole pixels of the scaled picture
    transposed: Bool[Array, ""] | None = None  # rows become columns; together with one mirror image a quarter turn
    across: Bool[Array, ""] | None = None  # mirrored left to right
    down: Bool[Array, ""] | None = None  # mirrored top to bottom
    colours: Float[Array, "3"] | None = None  # factors of saturation, contrast, brightness
    inverted: Bool[Array, ""] | None = None  # bright becomes dark


def draw_flips(key: Array, index: Array, probability: float) -> Bool[Array, " batch"]:
    """Draw which images are mirrored left to right; `index` is the position of each in the global batch."""
    return jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(key, index), probability))(index)


def augment(batch: Batch, key: Array, settings: Augmentation) -> Batch:
    """Draw a view of every image and show it.

    Args:
      batch: Images as shipped by the host.
      key: The key of the step; the position of an image in the global batch is folded in.
      settings: What may be drawn.

    Returns:
      The batch with float32 images of `settings.shape`, not yet normalised; everything in network pixels, so `scales`
      are 1.
    """

    def draw(size: Array, scale: Array, truth: GroundTruth, index: Array) -> View:
        # The key itself draws `draw_flips`.
        return draw_view(jax.random.fold_in(jax.random.fold_in(key, index), 1), size, scale, truth, settings)

    truth = batch.ground_truth
    views = jax.vmap(draw)(batch.sizes, batch.scales, truth, batch.index)
    show_one = partial(show, resize=settings.resize, shape=settings.shape)
    # Not `vmap`: it lets XLA on a CPU repeat the arithmetic of the draws at every pixel, which is 40 times slower.
    images, sizes, truth = jax.lax.map(lambda each: show_one(*each), (batch.images, batch.sizes, truth, views))
    return dataclasses.replace(
        batch, images=images, sizes=sizes, scales=jnp.ones_like(batch.scales), ground_truth=truth
    )


def draw_view(
    key: Array, size: Float[Array, "2"], scale: Float[Array, ""], truth: GroundTruth, settings: Augmentation
) -> View:
    """Draw the view of a picture of `size` (height, width), `scale` and annotations, all in stored pixels."""
    scale_key, turn_key, down_key, crop_key, colour_key = jax.random.split(key, 5)
    low, high = settings.scale_jitter
    if (low, high) != (1.0, 1.0):
        scale *= jnp.exp(jax.random.uniform(scale_key, minval=math.log(low), maxval=math.log(high)))
    view = View(scale)
    if settings.vertical_flip:
        view = view._replace(down=jax.random.bernoulli(down_key, settings.vertical_flip))
    if settings.quarter_turns:
        chance, angle = jax.random.split(turn_key)
        quarters = jnp.where(
            jax.random.bernoulli(chance, settings.quarter_turns), jax.random.randint(angle, (), 1, 4), 0
        )
        half = quarters >= 2
        view = view._replace(
            transposed=quarters % 2 == 1,
            across=(quarters == 1) | (quarters == 2),
            down=half if view.down is None else view.down ^ half,
        )
    if settings.crop:
        room = turn(jnp.asarray(settings.shape, jnp.float32), view)
        view = view._replace(corner=draw_corner(crop_key, size, scale, truth, room, settings.crop_at_object))
    if settings.colour_jitter:
        strength = settings.colour_jitter
        view = view._replace(colours=jax.random.uniform(colour_key, (3,), minval=1 - strength, maxval=1 + strength))
    if settings.invert:
        view = view._replace(inverted=jax.random.bernoulli(jax.random.fold_in(colour_key, 1), settings.invert))
    return view


def turn(pair: Shaped[Array, "2"], view: View) -> Shaped[Array, "2"]:
    """Exchange what belongs to rows and to columns if the view is transposed."""
    return pair if view.transposed is None else jnp.where(view.transposed, pair[::-1], pair)


def draw_corner(
    key: Array,
    size: Float[Array, "2"],
    scale: Float[Array, ""],
    truth: GroundTruth,
    room: Float[Array, "2"],
    at_object: float,
) -> Float[Array, "2"]:
    """Draw the corner (row, column) of a crop of `room` (height, width) inside the scaled picture, in whole pixels.

    With probability `at_object` an object is drawn, each alike, and then one of the crops that hold all of it, or of
    those that lie inside it if it is larger than the crop. Otherwise, and if there is none, any crop is drawn.
    """
    which, chance, place = jax.random.split(key, 3)
    priorities = jax.random.uniform(which, truth.is_object.shape)
    box = truth.boxes[jnp.argmax(jnp.where(truth.is_object, priorities, -1.0))] * scale
    begin, end = box[1::-1], box[:1:-1]
    free = jnp.maximum(jnp.round(size * scale) - room, 0.0)
    around = jax.random.bernoulli(chance, at_object) & truth.is_object.any()
    low = jnp.where(around, jnp.minimum(begin, end - room), 0.0)
    high = jnp.where(around, jnp.maximum(begin, end - room), free)
    low, high = jnp.clip(jnp.ceil(low), 0.0, free), jnp.clip(jnp.floor(high), 0.0, free)
    drawn = low + jnp.floor(jax.random.uniform(place, (2,)) * (high - low + 1.0))
    return jnp.minimum(drawn, jnp.maximum(low, high))


def show(
    image: UInt8[Array, "rows columns 3"],
    size: Float[Array, "2"],
    truth: GroundTruth,
    view: View,
    *,
    resize: bool,
    shape: tuple[int, int],
) -> tuple[Float[Array, "height width 3"], Float[Array, "2"], GroundTruth]:
    """Return a view of a picture in an input of `shape`: its pixels, height and width, and annotations.

    What lies right of and below the height and width is arbitrary.
    """
    whole = turn(jnp.round(size * view.scale), view)
    seen = whole if view.corner is None else jnp.minimum(whole, jnp.asarray(shape, jnp.float32))
    pixels = read_pixels(image, view, seen, resize=resize, shape=shape)
    if view.colours is not None:
        pixels = change_colours(pixels, seen, view.colours)
    if view.inverted is not None:
        pixels = jnp.where(view.inverted, 255.0 - pixels, pixels)
    boxes, turned = (None if each is None else move_boxes(each, view, seen) for each in (truth.boxes, truth.oriented))
    truth = dataclasses.replace(truth, boxes=boxes, oriented=turned)
    return pixels, seen, truth if view.corner is None else cut(truth, seen)


def read_pixels(
    image: UInt8[Array, "rows columns 3"],
    view: View,
    seen: Float[Array, "2"],
    *,
    resize: bool,
    shape: tuple[int, int],
) -> Float[Array, "height width 3"]:
    """Return the pixels of a view, of which `seen` (height, width) is picture."""
    # Mirror images only change the order in which rows and columns are read.
    down, across = (jnp.zeros((), bool) if each is None else each for each in (view.down, view.across))
    extents, flips = turn(seen, view), turn(jnp.stack([down, across]), view)
    # Transposed or not, a square holds all that is needed.
    sides = shape if view.transposed is None else (max(shape), max(shape))
    corner = jnp.zeros(2) if view.corner is None else view.corner
    pixels = image
    for axis in (0, 1):
        places = mirrored(jnp.arange(sides[axis]), extents[axis], flips[axis]) + corner[axis]
        if resize:
            pixels = interpolate(pixels, (places + 0.5) / view.scale - 0.5, axis)
        else:
            pixels = jnp.take(pixels, places.astype(jnp.int32), axis=axis, mode="clip")
    pixels = pixels.astype(jnp.float32)
    if view.transposed is not None:
        pixels = jnp.where(view.transposed, pixels.swapaxes(0, 1), pixels)
    return pixels[: shape[0], : shape[1]]


def interpolate(
    pixels: Num[Array, "rows columns 3"], places: Float[Array, " n"], axis: int
) -> Float[Array, "height width 3"]:
    """Read a picture at `places` along an axis, linearly, its border repeated.

    Once along each axis this is what `jax.image.scale_and_translate` computes for the whole picture, which is a product
    with a dense matrix and takes 27 times as long for a crop of 320 x 320 pixels on a CPU.
    """
    places = jnp.clip(places, 0, pixels.shape[axis] - 1)
    before = jnp.floor(places).astype(jnp.int32)
    share = jnp.expand_dims(places - before, (1 - axis, 2))
    near, far = (jnp.take(pixels, each, axis=axis, mode="clip").astype(jnp.float32) for each in (before, before + 1))
    return near + share * (far - near)


def move_boxes(
    boxes: Float[Array, "objects numbers"], view: View, seen: Float[Array, "2"]
) -> Float[Array, "objects numbers"]:
    """Move boxes, upright or oriented, from the picture to its view, of which `seen` (height, width) is picture."""
    kind = kind_of(boxes)
    boxes = scale_boxes(boxes, view.scale)
    if view.corner is not None:
        boxes = kind.shift(boxes, -view.corner[::-1])
    if view.transposed is not None:
        boxes = jnp.where(view.transposed, kind.transpose(boxes), boxes)
    if view.across is not None:
        boxes = jnp.where(view.across, kinds.mirror(boxes, seen, 1), boxes)
    if view.down is not None:
        boxes = jnp.where(view.down, kinds.mirror(boxes, seen, 0), boxes)
    return boxes


def cut(truth: GroundTruth, seen: Float[Array, "2"]) -> GroundTruth:
    """Turn what a crop of `seen` (height, width) mostly cuts off into ignore regions, and drop what it does not show.

    The rules are those of windows (`input/annotations.py:objects_in_window`), but for oriented objects that are cut:
    these are ignored here, since they are still visible. Upright boxes are clipped. Oriented ones, and with them their
    hulls, stay whole: the middle of an object is always inside, or at most half of it would be.
    """
    boxes = truth.targets
    frame = jnp.concatenate([jnp.zeros(2), seen[::-1]])[None]
    if truth.oriented is None:
        share = kind_of(boxes).overlap_of_first(boxes, frame)[:, 0]
        mostly_cut = share <= CUT_OFF
        truth = dataclasses.replace(truth, boxes=kind_of(boxes).clip(boxes, seen))
    else:
        share = oriented.overlap_of_first(boxes, oriented.from_horizontal(frame))[:, 0]
        mostly_cut = share < WHOLE
    return dataclasses.replace(truth, valid=truth.valid & (share > 0), ignore=truth.ignore | mostly_cut)


def change_colours(
    pixels: Float[Array, "height width 3"], seen: Float[Array, "2"], factors: Float[Array, "3"]
) -> Float[Array, "height width 3"]:
    """Multiply how far pixels are from their grey, how far from the picture's mean grey, and from black.

    Args:
      pixels: From 0 to 255, as are the results.
      seen: Height and width of the part that is picture.
      factors: Of saturation, contrast and brightness. Grey pixels stay grey.
    """
    saturation, contrast, brightness = factors
    rows, columns = (jnp.arange(count) < extent for count, extent in zip(pixels.shape[:2], seen, strict=True))
    grey = (pixels * jnp.asarray(LUMA)).sum(-1, keepdims=True)
    mean = jnp.where((rows[:, None] & columns)[..., None], grey, 0.0).sum() / jnp.maximum(seen.prod(), 1.0)
    saturated = grey + saturation * (pixels - grey)
    return jnp.clip(brightness * (mean + contrast * (saturated - mean)), 0.0, 255.0)
