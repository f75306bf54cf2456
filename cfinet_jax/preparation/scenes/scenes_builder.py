"""Write generated road scenes as a TFDS data set."""

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from cfinet_jax.input.records import columns, features, seal
from cfinet_jax.preparation.scenes.render import SIZE, Scene, render_scene
from cfinet_jax.preparation.scenes.templates import CLASSES
from cfinet_jax.runtime.progress import track

COUNTS = {"train": 2000, "val": 100, "test": 200}
JPEG_QUALITY = 95


class Builder(tfds.core.GeneratorBasedBuilder):
    """Builder of the scenes, which are rendered while they are written: nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, counts: Mapping[str, int] = COUNTS, **arguments):
        """Create the builder, with the number of images per split and the arguments of every TFDS builder."""
        self.counts = counts
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        metadata: dict[str, Any] = {"classes": list(CLASSES), "category_ids": list(range(1, len(CLASSES) + 1))}
        metadata["seal"] = seal(metadata, {})
        return self.dataset_info_from_configs(
            features=features("horizontal"), metadata=tfds.core.MetadataDict(metadata)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self.counts}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in track(range(self.counts[split]), f"Drawing {split}"):
            yield index, example(render_scene(split, index), index)


def example(scene: Scene, index: int) -> dict:
    """Return the record of a scene, with its image as JPEG."""
    jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    areas = np.prod(scene.boxes[:, 2:] - scene.boxes[:, :2], axis=1)
    return {
        "image": jpeg.tobytes(),
        "path": "",
        "image_id": index + 1,
        "file_name": f"{scene.scene_seed:07d}.jpg",
        "height": SIZE,
        "width": SIZE,
        "objects": columns(
            {
                "bbox": scene.boxes,
                "label": scene.labels,
                "ignore": scene.ignore,
                "iscrowd": scene.ignore,
                "area": areas,
                "id": np.arange(len(areas)) + 1,
            }
        ),
    }
