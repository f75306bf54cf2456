"""Preprocessing on the device: from the host's uint8 picture to the network's input."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from cfinet_jax.boxes import kinds
from cfinet_jax.structures import Batch

# Pictures are scaled alike in training and in evaluation.
resized = partial(jax.image.scale_and_translate, spatial_dims=(0, 1), method="linear", antialias=False)


def prepare_image(
    image: Num[Array, "rows columns 3"],
    size: Float[Array, "2"],
    scale: Float[Array, ""],
    flip: Bool[Array, ""],
    *,
    resize: bool,
    shape: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Array, "height width 3"]:
    """Resize, flip and normalise one picture; the padding becomes zero.

    Args:
      image: The picture with its padding.
      size: Height and width of the picture itself.
      scale: Network pixels per stored pixel.
      flip: Whether to mirror it left to right.
      resize: Whether any picture is scaled; if not, `scale` is 1.
      shape: Height and width of the result.
      mean: Of red, green, blue, subtracted.
      std: Of red, green, blue, divided by.
    """
    pixels = image.astype(jnp.float32)
    if not resize:
        pixels = jnp.pad(pixels, [(0, shape[0] - image.shape[0]), (0, shape[1] - image.shape[1]), (0, 0)])
    else:
        pixels = resized(pixels, (*shape, 3), scale=jnp.stack([scale, scale]), translation=jnp.zeros(2))
    height, width = jnp.round(size * scale)
    columns = jnp.arange(shape[1])
    pixels = jnp.take(pixels, mirrored(columns, width, flip), axis=1)
    inside = (jnp.arange(shape[0]) < height)[:, None, None] & (columns < width)[None, :, None]
    return jnp.where(inside, (pixels - jnp.asarray(mean)) / jnp.asarray(std), 0.0)


def mirrored(places: Int[Array, " n"], extent: Float[Array, ""], flip: Bool[Array, ""]) -> Int[Array, " n"]:
    """Return the rows or columns to read at `places` of a picture that has `extent` of them, in reverse if `flip`."""
    reverse = jnp.clip(extent.astype(jnp.int32) - 1 - places, 0)
    return jnp.where(flip, reverse, places)


def prepare_boxes(
    boxes: Float[Array, "objects numbers"], size: Float[Array, "2"], scale: Float[Array, ""], flip: Bool[Array, ""]
) -> Float[Array, "objects numbers"]:
    """Scale and flip the boxes of a picture, upright or oriented, as `prepare_image` does the picture."""
    boxes = scale_boxes(boxes, scale)
    return jnp.where(flip, kinds.kind_of(boxes).flip(boxes, jnp.round(size[1] * scale)), boxes)


def scale_boxes(boxes: Float[Array, "n numbers"], scale: Float[Array, ""]) -> Float[Array, "n numbers"]:
    """Multiply lengths by `scale`; an angle stays as it is."""
    return jnp.concatenate([boxes[:, :4] * scale, boxes[:, 4:]], axis=1)


def restore_boxes(boxes: Float[Array, "n numbers"], scale: Float[Array, ""]) -> Float[Array, "n numbers"]:
    """Divide lengths by `scale`: the inverse of `scale_boxes`."""
    return jnp.concatenate([boxes[:, :4] / scale, boxes[:, 4:]], axis=1)


def prepare(
    batch: Batch,
    flips: Bool[Array, " batch"],
    *,
    resize: bool,
    shape: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Batch:
    """Prepare a batch as shipped by the host for the detector: images of `shape`, boxes and sizes to match."""
    image = partial(prepare_image, resize=resize, shape=shape, mean=mean, std=std)
    truth = batch.ground_truth
    boxes, oriented = (
        None if boxes is None else jax.vmap(prepare_boxes)(boxes, batch.sizes, batch.scales, flips)
        for boxes in (truth.boxes, truth.oriented)
    )
    return dataclasses.replace(
        batch,
        images=jax.vmap(image)(batch.images, batch.sizes, batch.scales, flips),
        sizes=jnp.round(batch.sizes * batch.scales[:, None]),
        ground_truth=dataclasses.replace(truth, boxes=boxes, oriented=oriented),
    )
