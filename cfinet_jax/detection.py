"""The function that detects in a batch of the host: prepare, detect in one view or several, merge."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from cfinet_jax.boxes import kinds
from cfinet_jax.errors import UserError
from cfinet_jax.input.sizes import preparation
from cfinet_jax.models.detector import Detector
from cfinet_jax.ops import nms, preprocess
from cfinet_jax.structures import Batch, Detections, Proposals

Detect = Callable[[Any, Batch], tuple[Detections, Proposals]]

MIRRORED = {"plain": None, "scale": None, "flip": 1, "vertical": 0}  # axis of the picture that a view turns round


class View(NamedTuple):
    """A way to look at a picture: mirrored along an axis, enlarged, or both."""

    axis: int | None  # 0 rows, 1 columns
    factor: float


def view_of(name: str) -> View:
    """Return the view of a name such as `plain`, `flip`, `vertical`, `scale:1.5` or `flip:1.5`.

    Raises:
      UserError: there is no such view.
    """
    kind, _, factor = str(name).partition(":")
    try:
        number = float(factor or 1)
    except ValueError:
        number = 0.0
    if kind not in MIRRORED or not 0.1 <= number <= 10 or (kind == "scale" and not factor):
        raise UserError(
            f"prediction.views has {name!r}: choose from plain, flip and vertical, and scale:1.5 or flip:1.5, with any "
            "factor from 0.1 to 10."
        )
    return View(MIRRORED[kind], number)


def detection(detector: Detector, config: ConfigDict) -> Detect:
    """Return the function (variables, batch of the host) -> detections and proposals in stored pixels.

    Detections of several `prediction.views` are merged by NMS within each class, at `prediction.merge_overlap`, into as
    many as one view has. Proposals are those of the first view.
    """
    views = [detection_in(detector, config.dataset, view_of(name)) for name in config.prediction.views]
    if len(views) == 1:
        return views[0]
    most, overlap = detector.roi_head.max_detections, config.prediction.merge_overlap

    def detect(variables: Any, batch: Batch) -> tuple[Detections, Proposals]:
        seen, proposals = zip(*(view(variables, batch) for view in views), strict=True)
        together = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *seen)
        return jax.vmap(lambda found: nms.merge(found, overlap, most))(together), proposals[0]

    return detect


def detection_in(detector: Detector, settings: ConfigDict, view: View) -> Detect:
    """Return the function that detects in one view; `settings` is the section `dataset` of the config."""
    prepare = preparation(enlarged(settings, view.factor))

    def detect(variables: Any, batch: Batch) -> tuple[Detections, Proposals]:
        if view.factor != 1:
            batch = dataclasses.replace(batch, scales=batch.scales * view.factor)
        batch = prepare(batch, jnp.zeros(batch.index.shape, bool))
        if view.axis is not None:
            batch = dataclasses.replace(
                batch, images=jax.vmap(mirror, (0, 0, None))(batch.images, batch.sizes, view.axis)
            )
        outputs: Any = detector.apply(variables, batch, method="detect")

        def restore(boxes: Array, size: Array, scale: Array) -> Array:
            seen = boxes if view.axis is None else kinds.mirror(boxes, size, view.axis)
            return preprocess.restore_boxes(seen, scale)

        found, proposals = (
            dataclasses.replace(each, boxes=jax.vmap(restore)(each.boxes, batch.sizes, batch.scales))
            for each in outputs
        )
        return found, proposals

    return detect


def enlarged(settings: ConfigDict, factor: float) -> ConfigDict:
    """Return the section `dataset` with an input so many times as large."""
    if factor == 1:
        return settings
    sides = settings.image_size or settings.stored_size
    return ConfigDict(settings.to_dict() | {"image_size": tuple(math.ceil(side * factor) for side in sides)})


def mirror(image: Float[Array, "height width 3"], size: Float[Array, "2"], axis: int) -> Float[Array, "height width 3"]:
    """Mirror the picture of this size (height, width) at the upper left of a prepared image along an axis."""
    turned = jnp.flip(image, axis)
    return jnp.roll(turned, size[axis].astype(jnp.int32) - image.shape[axis], axis)
