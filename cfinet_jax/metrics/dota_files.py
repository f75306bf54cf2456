"""Write detections as the files that DOTA's evaluation server takes."""

from collections.abc import Mapping

import numpy as np
from etils import epath

from cfinet_jax.boxes import oriented
from cfinet_jax.metrics.results import Columns
from cfinet_jax.runtime.paths import matching


def write_task1(results: Columns, images: Mapping[int, str], classes: Mapping[int, str], folder: epath.Path) -> None:
    """Write `Task1_CLASS.txt` for every class, with lines `image score x1 y1 ... x4 y4`; replace earlier files.

    Args:
      results: oriented detections.
      images: file names without extension, by image id.
      classes: names, by category id.
      folder: where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in matching(folder, "Task1_*.txt"):
        old.unlink()
    for category_id, name in classes.items():
        own = np.flatnonzero(results.category_ids == category_id)
        with (folder / f"Task1_{name.replace('/', '_')}.txt").open("w") as file:
            columns = results.image_ids[own], results.scores[own], oriented.to_polygon(results.boxes[own])
            for image_id, score, polygon in zip(*columns, strict=True):
                file.write(f"{images[int(image_id)]} {score:.6f} {' '.join(f'{place:.2f}' for place in polygon)}\n")
