"""Random small objects, batches of them, and large pictures in the folders of SODA-D."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import Float

from cfinet_jax.structures import Batch
from cfinet_jax.train_step import empty_batch

CLASSES, OBJECTS, SMALLEST, LARGEST = 9, 20, 8, 40  # objects in a picture; pixels of a side
HEIGHT, WIDTH = 3000, 4000  # of a large picture
LEARNT, IGNORED = 11, 4  # objects and ignore regions in one, as many as SODA-D has
SPREAD = (1200, 1600)  # they lie close together: about six windows a picture, as in SODA-D


def boxes(rng: np.random.Generator, shape: tuple[int, ...], extent: float) -> Float[np.ndarray, "*shape 4"]:
    """Draw boxes anywhere in a square picture."""
    corner = rng.uniform(0, extent - LARGEST, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(SMALLEST, LARGEST, (*shape, 2))], -1).astype(np.float32)


def batch(settings: Any, objects: int = OBJECTS) -> Batch:
    """Draw noise with objects, if there is room for them, as the host ships it to a training step.

    `settings` is the section `dataset` of a configuration.
    """
    rng, count, objects = np.random.default_rng(0), settings.batch_size, min(objects, settings.max_objects)
    empty = jax.tree.map(np.array, empty_batch(count, settings.stored_size, settings.max_objects))
    truth = empty.ground_truth
    truth.boxes[:, :objects] = boxes(rng, (count, objects), min(settings.stored_size))
    truth.labels[:, :objects] = rng.integers(0, CLASSES, (count, objects))
    truth.valid[:, :objects] = True
    images = rng.integers(0, 256, empty.images.shape).astype(np.uint8)
    return dataclasses.replace(empty, images=images, index=np.arange(count, dtype=np.int32))


def soda_d(source: Path, count: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    """Write SODA-D's folders with a split `train` of drawn pictures; return the contents of its JSON file."""
    (height, width), rng, annotations = size, np.random.default_rng(0), []
    for folder in ("Images", "Annotations"):
        (source / folder).mkdir(parents=True)
    for number in range(count):
        coarse = rng.integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(source / "Images" / f"{number}.jpg"), picture)
        spread = np.minimum(SPREAD, size)[::-1]
        corner = rng.uniform(0, np.subtract((width, height), spread))
        for category, extent in [(1, 20)] * LEARNT + [(2, 150)] * IGNORED:
            box = [*(corner + rng.uniform(0, spread - extent)).tolist(), extent, extent]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
            annotations.append(entry | {"area": extent**2, "ignore": int(category == 2)})
    images = [{"id": n, "file_name": f"{n}.jpg", "height": height, "width": width} for n in range(count)]
    categories = [{"id": 1, "name": "object"}, {"id": 2, "name": "ignore"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (source / "Annotations" / "train.json").write_text(json.dumps(coco))
    return coco
