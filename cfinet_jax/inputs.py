"""From the config section `dataset` to the network's input: its shape and how a batch is prepared."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from cfinet_jax.errors import UserError
from cfinet_jax.ops import preprocess
from cfinet_jax.structures import Batch

MULTIPLE = 32  # the coarsest stride of C2..C5


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


def preparation(settings: Any) -> Callable[[Batch, jax.Array], Batch]:
    """The function (batch as shipped, flips) -> batch as the detector wants it."""
    return partial(
        preprocess.prepare,
        resize=settings.image_size is not None,
        shape=input_shape(settings),
        mean=tuple(settings.mean),
        std=tuple(settings.std),
    )
