"""The record that every data set is prepared into, read by `cfinet_jax.dataset`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

OBJECTS: dict[str, type] = {  # columns with a row an object, and their types
    "bbox": np.float32,  # x1 y1 x2 y2 in pixels; of an oriented box those that enclose it
    "label": np.int64,  # -1: a region in which objects of every class are to be ignored
    "ignore": np.bool_,
    "iscrowd": np.bool_,
    "area": np.float32,
    "id": np.int64,  # of the annotation it comes from
}
COLUMNS: dict[str, dict[str, type]] = {  # by what the boxes of a data set are
    "horizontal": OBJECTS,
    "oriented": OBJECTS
    | {
        "rbox": np.float32,  # cx cy w h angle, as `cfinet_jax/boxes/oriented.py` has it
        "poly": np.float32,  # x1 y1 .. x4 y4 in pixels: the corners as annotated, around which `rbox` lies
    },
}
NUMBERS = {"bbox": (4,), "rbox": (5,), "poly": (8,)}  # the shape of a row where it is not one number


def features(boxes: str) -> tfds.features.FeaturesDict:
    """The record of a data set whose boxes are "horizontal" or "oriented"."""
    objects = COLUMNS[boxes].items()
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(shape=(), dtype=np.object_),  # encoded, as in its file; empty: read `path`
            "path": tfds.features.Text(),
            "image_id": np.int64,
            "file_name": tfds.features.Text(),
            "height": np.int32,
            "width": np.int32,
            # A sequence of objects would be written and read value by value.
            "objects": {
                key: tfds.features.Tensor(shape=(None, *NUMBERS.get(key, ())), dtype=dtype) for key, dtype in objects
            },
        }
    )


def columns(objects: Mapping[str, Any], boxes: str = "horizontal") -> dict[str, np.ndarray]:
    """The columns of objects, also where there is none."""
    described = COLUMNS[boxes].items()
    return {key: np.array(objects[key], dtype).reshape(-1, *NUMBERS.get(key, ())) for key, dtype in described}
