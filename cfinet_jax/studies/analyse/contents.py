"""Contents of a split as arrays, and how well anchors fit them."""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cfinet_jax.boxes import kinds
from cfinet_jax.boxes.anchors import best_overlap
from cfinet_jax.input.annotations import Objects, fill_a_pixel, sides
from cfinet_jax.input.sizes import input_shape, scales_of
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.ops.matching import dynamic_thresholds


class Contents(NamedTuple):
    """Images of a split, or the windows that they are cut into, and the objects to learn in them."""

    pictures: np.ndarray  # [images, 2], height and width as stored
    scales: np.ndarray  # [images], network pixels per stored pixel
    boxes: np.ndarray  # [objects, 4], in stored pixels; for oriented objects the upright boxes around them
    areas: np.ndarray  # [objects], in stored square pixels; for oriented objects that of the oriented box
    labels: np.ndarray  # [objects]
    owners: np.ndarray  # [objects], index of the image
    regions: np.ndarray  # [images], number of ignore regions

    @property
    def objects(self) -> np.ndarray:
        """Number of objects in every image."""
        return np.bincount(self.owners, minlength=len(self.pictures))

    @property
    def network_boxes(self) -> np.ndarray:
        """Boxes of the objects in pixels of the network's input."""
        return self.boxes * self.scales[self.owners, None]


def read_contents(views: Iterable[tuple[tuple[int, int], Objects]], settings: ConfigDict) -> Contents:
    """Return the contents of images, or windows, given by size and objects; objects below a pixel are left out."""
    pictures, boxes, areas, labels, owners, regions = [], [], [], [], [], []
    for index, (size, objects) in enumerate(views):
        sound = fill_a_pixel(objects.boxes)
        learnt = sound & ~objects.ignore
        pictures.append(size)
        annotated = objects.boxes[learnt].astype(float)
        boxes.append(kinds.enclose(annotated))
        areas.append(np.prod(sides(annotated), axis=1))
        labels.append(objects.labels[learnt])
        owners.append(np.full(learnt.sum(), index))
        regions.append(np.sum(sound & objects.ignore))
    sizes = np.array(pictures)
    joined = [np.concatenate(parts) for parts in (boxes, areas, labels, owners)]
    return Contents(sizes, scales_of(sizes, settings), *joined, regions=np.array(regions))


def overlaps_with_anchors(contents: Contents, config: ConfigDict, scale: float) -> np.ndarray:
    """Return the IoU `[objects]` with the best anchor of the config's proposal network, with anchors of this scale."""
    network = config.detector.proposal_network
    ratios = network[network.name].get("aspect_ratios", (1.0,))  # without the key: square anchors only
    shape, boxes = input_shape(config.dataset), contents.network_boxes
    return np.max([
        best_overlap(boxes, (-(-shape[0] // stride), -(-shape[1] // stride)), stride, scale, ratios)
        for stride in strides_of(config.detector.neck.levels)
    ], axis=0)  # fmt: skip


def unmatched(contents: Contents, config: ConfigDict, overlaps: np.ndarray) -> dict[str, float]:
    """Return the share of objects for which the coarse stage has no anchor, by rule; empty without a coarse stage.

    `overlaps` are IoU `[objects]` with the best anchor. An object without an anchor adds nothing to the coarse loss.
    The size of an oriented object is that of the upright box around it, whatever `size_of` says.
    """
    stage = config.detector.proposal_network[config.detector.proposal_network.name]
    thresholds = {
        name: dynamic_thresholds(jnp.asarray(contents.boxes), jnp.ones(()), base_size=stage.base_size, **rule)
        for name, rule in stage.get("coarse_thresholds", {}).items()
    }
    return {name: float(np.mean(overlaps < np.asarray(values))) for name, values in thresholds.items()}
