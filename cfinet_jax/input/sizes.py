"""Shape of the network's input and preparation of a batch, by the config section `dataset`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.ops import preprocess
from cfinet_jax.structures import Batch, fitting_scales

MULTIPLE = 32  # the coarsest stride of C2..C5
OPEN = ("stored_size", "max_objects")  # keys that may be None in a config: the data decide
OBJECTS_MULTIPLE, FEWEST_OBJECTS = 16, 32  # coarse steps, so that data that grow a little need no new compilation


def input_shape(settings: Any) -> tuple[int, int]:
    """Return height and width of the network's input: the largest picture, rounded up to whole cells of C5.

    Raises:
      UserError: `stored_size` or `image_size` is not two positive whole numbers.
    """
    for name in ("stored_size", "image_size"):
        size = settings[name]
        if size is not None and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise UserError(f'dataset.{name} is {size}: give height and width, --config.dataset.{name}="(512, 640)".')
    height, width = settings.image_size or settings.stored_size
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def room_for(picture: tuple[int, int], objects: int) -> dict[str, Any]:
    """Return values of the `OPEN` keys that hold a picture of (height, width) with that many objects."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in picture)
    most = max(-(-objects // OBJECTS_MULTIPLE) * OBJECTS_MULTIPLE, FEWEST_OBJECTS)
    return {"stored_size": (height, width), "max_objects": most}


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


def preparation(settings: Any) -> Callable[[Batch, jax.Array], Batch]:
    """Return the function (batch as shipped, flips) -> batch as the detector takes it."""
    return partial(
        preprocess.prepare,
        resize=settings.image_size is not None,
        shape=input_shape(settings),
        mean=tuple(settings.mean),
        std=tuple(settings.std),
    )
