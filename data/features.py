"""The record that every data set is prepared into, read by `cfinet_jax.dataset`."""

import numpy as np
import tensorflow_datasets as tfds

FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Tensor(shape=(), dtype=np.object_),  # encoded, as in its file; empty: read `path`
        "path": tfds.features.Text(),
        "image_id": np.int64,
        "file_name": tfds.features.Text(),
        "height": np.int32,
        "width": np.int32,
        "objects": tfds.features.Sequence(
            {
                "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),  # x1 y1 x2 y2 in pixels
                "label": np.int64,  # -1: a region in which objects of every class are to be ignored
                "ignore": np.bool_,
                "iscrowd": np.bool_,
                "area": np.float32,
                "id": np.int64,  # of the annotation it comes from
            }
        ),
    }
)
