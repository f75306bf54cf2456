"""Shape of the network's input and preparation of a batch, by the config section `dataset`."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.ops import augmentation, preprocess
from cfinet_jax.structures import Batch, fitting_scales

MULTIPLE = 32  # the coarsest stride of C2..C5
OPEN = ("stored_size", "max_objects")  # keys that may be None in a config: the data decide
OBJECTS_MULTIPLE, FEWEST_OBJECTS = 16, 32  # coarse steps, so that data that grow a little need no new compilation


def input_shape(settings: Any) -> tuple[int, int]:
    """Return height and width of the network's input: the largest picture, rounded up to whole cells of C5.

    Raises:
      UserError: `stored_size` or `image_size` is not two positive whole numbers.
    """
    check_size(settings, "stored_size")
    check_size(settings, "image_size")
    return whole_cells(settings.image_size or settings.stored_size)


def training_shape(settings: Any) -> tuple[int, int]:
    """Return height and width of what training sees: `train_size`, rounded up, or the network's input.

    Where pictures are turned and none is cropped, it is a square that holds the input either way.
    """
    if settings.train_size is not None:
        return whole_cells(settings.train_size)
    height, width = input_shape(settings)
    side = max(height, width)
    return (side, side) if settings.quarter_turns else (height, width)


def whole_cells(size: tuple[int, int]) -> tuple[int, int]:
    """Round height and width up to whole cells of C5."""
    height, width = size
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def check_size(settings: Any, name: str) -> None:
    """Raise `UserError` unless a key is None or two positive whole numbers."""
    size = settings[name]
    if size is not None and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise UserError(f'dataset.{name} is {size}: give height and width, --config.dataset.{name}="(512, 640)".')


def room_for(picture: tuple[int, int], objects: int) -> dict[str, Any]:
    """Return values of the `OPEN` keys that hold a picture of (height, width) with that many objects."""
    most = max(-(-objects // OBJECTS_MULTIPLE) * OBJECTS_MULTIPLE, FEWEST_OBJECTS)
    return {"stored_size": whole_cells(picture), "max_objects": most}


def with_sizes(config: ConfigDict, **sizes: Any) -> ConfigDict:
    """Copy a config, setting keys of `dataset` that are None to the given values."""
    filled = config.copy_and_resolve_references()
    filled.dataset.update({key: value for key, value in sizes.items() if filled.dataset.get(key) is None})
    return filled


def scales_of(sizes: Any, settings: Any) -> Any:
    """Return network pixels per stored pixel of pictures of `sizes` [..., 2].

    Whole pictures are each scaled to fit the input, windows all alike.
    """
    alike = settings.window_overlap is not None
    fitted = np.broadcast_to(np.asarray(settings.stored_size, np.float32), sizes.shape) if alike else sizes
    return fitting_scales(fitted, settings.image_size)


def preparation(settings: Any) -> Callable[..., Batch]:
    """Return the function (batch as shipped, flips) -> batch as the detector takes it, with the whole pictures."""
    return partial(
        preprocess.prepare,
        resize=settings.image_size is not None,
        shape=input_shape(settings),
        mean=tuple(settings.mean),
        std=tuple(settings.std),
    )


def training_preparation(settings: Any) -> Callable[[Batch, jax.Array], Batch]:
    """Return the function (batch as shipped, key of the step) -> batch as the detector learns from it."""
    chosen, whole = augmentation_of(settings), preparation(settings)

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        flips = augmentation.draw_flips(key, batch.index, settings.flip)
        if chosen is None:
            return whole(batch, flips)
        seen = augmentation.augment(batch, key, chosen)
        prepared = whole(seen, flips, resize=False, shape=chosen.shape)  # what is seen is scaled already
        return dataclasses.replace(prepared, scales=batch.scales)

    return prepare


def augmentation_of(settings: Any) -> augmentation.Augmentation | None:
    """Return what may be drawn besides mirror images from left to right; None if nothing may."""
    rescaled = tuple(settings.scale_jitter) != (1.0, 1.0)
    cropped = settings.train_size is not None or rescaled
    others = ("vertical_flip", "quarter_turns", "colour_jitter", "invert")
    if not (cropped or any(settings[key] for key in others)):
        return None
    return augmentation.Augmentation(
        shape=training_shape(settings),
        resize=settings.image_size is not None or rescaled,
        crop=cropped,
        vertical_flip=settings.vertical_flip,
        quarter_turns=settings.quarter_turns,
        scale_jitter=tuple(settings.scale_jitter),
        crop_at_object=settings.crop_at_object,
        colour_jitter=settings.colour_jitter,
        invert=settings.invert,
    )
