"""The record that every data set is prepared into, read by `cfinet_jax.dataset`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

OBJECTS: dict[str, type] = {  # columns with a row an object, and their types
    "bbox": np.float32,  # x1 y1 x2 y2 in pixels
    "label": np.int64,  # -1: a region in which objects of every class are to be ignored
    "ignore": np.bool_,
    "iscrowd": np.bool_,
    "area": np.float32,
    "id": np.int64,  # of the annotation it comes from
}


def row(key: str) -> tuple[int, ...]:
    """The shape of a row of a column."""
    return (4,) if key == "bbox" else ()


FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Tensor(shape=(), dtype=np.object_),  # encoded, as in its file; empty: read `path`
        "path": tfds.features.Text(),
        "image_id": np.int64,
        "file_name": tfds.features.Text(),
        "height": np.int32,
        "width": np.int32,
        # A sequence of objects would be written and read value by value.
        "objects": {key: tfds.features.Tensor(shape=(None, *row(key)), dtype=dtype) for key, dtype in OBJECTS.items()},
    }
)


def columns(objects: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The columns of objects, also where there is none."""
    return {key: np.array(objects[key], dtype).reshape(-1, *row(key)) for key, dtype in OBJECTS.items()}
