"""From the config section `dataset` to the network's input: its shape and how a batch is prepared."""

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
OPEN = ("stored_size", "max_objects")  # what a config may leave open, by None, for the data to say
OBJECTS_MULTIPLE, FEWEST_OBJECTS = 16, 32  # data that grow a little find their compiled program again


def input_shape(settings: Any) -> tuple[int, int]:
    """Height and width of the network's input: the picture's limits, rounded up to whole cells of C5.

    Raises:
      UserError: `stored_size` or `image_size` is no size.
    """
    for name in ("stored_size", "image_size"):
        size = settings[name]
        if size is not None and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise UserError(f'dataset.{name} is {size}: give height and width, --config.dataset.{name}="(512, 640)".')
    height, width = settings.image_size or settings.stored_size
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def room_for(picture: tuple[int, int], objects: int) -> dict[str, Any]:
    """Values for what is `OPEN` that hold a picture of (height, width) with that many objects."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in picture)
    most = max(-(-objects // OBJECTS_MULTIPLE) * OBJECTS_MULTIPLE, FEWEST_OBJECTS)
    return {"stored_size": (height, width), "max_objects": most}


def with_sizes(config: ConfigDict, **sizes: Any) -> ConfigDict:
    """A copy of a config with the given values for what it leaves open (`OPEN`)."""
    filled = config.copy_and_resolve_references()
    filled.dataset.update({key: value for key, value in sizes.items() if filled.dataset.get(key) is None})
    return filled


def scales_of(sizes: Any, settings: Any) -> Any:
    """Network pixels per stored one, of pictures of `sizes` [..., 2]: whole ones fit the input, windows are alike."""
    alike = settings.window_overlap is not None
    fitted = np.broadcast_to(np.asarray(settings.stored_size, np.float32), sizes.shape) if alike else sizes
    return fitting_scales(fitted, settings.image_size)


def preparation(settings: Any) -> Callable[[Batch, jax.Array], Batch]:
    """The function (batch as shipped, flips) -> batch as the detector wants it."""
    return partial(
        preprocess.prepare,
        resize=settings.image_size is not None,
        shape=input_shape(settings),
        mean=tuple(settings.mean),
        std=tuple(settings.std),
    )
