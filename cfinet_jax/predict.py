"""Detections in pictures of any size: cut into windows, detected in batches of one shape, merged."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from cfinet_jax.buckets import user_path
from cfinet_jax.errors import UserError
from cfinet_jax.inputs import scales_of
from cfinet_jax.merging import Found, merge
from cfinet_jax.metrics.results import Columns, columns_of_image, entries, joined, write_coco
from cfinet_jax.outside import read_bytes
from cfinet_jax.pictures import decode_image, find_pictures, upright_size
from cfinet_jax.progress import Progress
from cfinet_jax.report.overlays import write_overlays
from cfinet_jax.slicing import cut_window, window_origins
from cfinet_jax.structures import without_truth
from cfinet_jax.trained import Trained, detection, open_trained

Picture = UInt8[np.ndarray, "height width 3"]


class Prediction(NamedTuple):
    """What was found in one picture, best first; boxes x1 y1 x2 y2 or cx cy w h angle in its pixels."""

    boxes: Float[np.ndarray, "n numbers"]
    scores: Float[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]  # index into `classes`
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def columns(self, image_id: int) -> Columns:
        """The detections as those of an image of a split, boxes x y w h."""
        return columns_of_image(self.boxes, self.scores, np.array(self.category_ids)[self.labels], image_id)

    def coco(self, image_id: int) -> list[dict[str, Any]]:
        """The detections in COCO's results format, boxes x y w h."""
        return list(entries(self.columns(image_id)))


class Model:
    """A trained detector, compiled at its first picture for windows of one shape."""

    def __init__(self, trained: Trained, config: ConfigDict) -> None:
        self.trained, self.config = trained, config
        self.window = tuple(config.dataset.stored_size)
        shared = config.dataset.window_overlap
        shared = config.prediction.overlap if shared is None else shared
        self.overlap = tuple(min(shared, side - 1) for side in self.window)
        self.batch_size = config.dataset.eval_batch_size
        self.detect = jax.jit(detection(trained.detector, config.dataset))

    def predict(self, pictures: Picture | epath.PathLike | Iterable[Picture | epath.PathLike]) -> list[Prediction]:
        """Detect in pictures, uint8 [height, width, 3] R G B or paths of files; a single one is a list of one."""
        if isinstance(pictures, str | os.PathLike) or (isinstance(pictures, np.ndarray) and pictures.ndim == 3):
            pictures = [pictures]
        loaded = (each if isinstance(each, np.ndarray) else read(epath.Path(each).expanduser()) for each in pictures)
        return [prediction for _, prediction in self.follow(enumerate(loaded))]

    def windows_in(self, size: tuple[int, int]) -> Int[np.ndarray, "windows 2"]:
        """The corners of the windows that a picture of `size` is cut into."""
        return window_origins(size, self.window, self.overlap)

    def follow(
        self, pictures: Iterable[tuple[Any, Picture]], progress: Progress | None = None
    ) -> Iterator[tuple[Any, Prediction]]:
        """(key, prediction) of (key, picture), in order and as soon as done; windows of several share a batch."""
        waiting: list[tuple[Any, np.ndarray, list[Found]]] = []  # pictures that are not done, oldest first
        for batch in self.batches(pictures, waiting):
            owners, windows, sizes = zip(*batch, strict=True)
            for owner, found in zip(owners, self.detect_windows(windows, sizes), strict=True):
                owner.append(found)
            if progress is not None:
                progress.advance(len(batch))
            while waiting and len(waiting[0][2]) == len(waiting[0][1]):
                key, origins, found = waiting.pop(0)
                merged = merge(found, origins, self.config.prediction.merge_overlap)
                yield key, Prediction(*merged, self.trained.classes, self.trained.category_ids)

    def batches(self, pictures: Iterable[tuple[Any, Picture]], waiting: list) -> Iterator[list]:
        """Windows by `batch_size`: the list that its detections go to, its pixels, the size of what is picture."""
        batch = []
        for key, picture in pictures:
            origins, found = self.windows_in(picture.shape[:2]), []
            waiting.append((key, origins, found))
            for origin in origins:
                batch.append((found, *cut_window(picture, origin, self.window)))
                if len(batch) == self.batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def detect_windows(self, windows: Sequence[Picture], sizes: Sequence[tuple[int, int]]) -> list[Found]:
        """The detections of up to `batch_size` windows, in pixels of each."""
        empty = self.batch_size - len(windows)
        images = np.pad(np.stack(windows), ((0, empty), (0, 0), (0, 0), (0, 0)))
        extents = np.pad(np.asarray(sizes, np.float32), ((0, empty), (0, 0)), constant_values=1)
        batch = without_truth(images, extents, scales_of(extents, self.config.dataset))
        found, _ = jax.device_get(self.detect(self.trained.variables, batch))
        return [
            Found(found.boxes[k][found.valid[k]], found.scores[k][found.valid[k]], found.labels[k][found.valid[k]])
            for k in range(len(windows))
        ]


def load(path: str | epath.Path) -> Model:
    """The detector of a workdir, ready to predict.

    Raises:
      UserError: there is none.
    """
    return Model(*open_trained(user_path(path)))


def read(file: epath.Path) -> Picture:
    """The pixels of a picture. Raises `UserError` where it cannot be read."""
    try:
        return decode_image(read_bytes(file), str(file))
    except OSError as error:
        raise UserError(f"image {file} cannot be read ({error})") from error


def predict(config: ConfigDict, workdir: epath.Path, images: epath.PathLike, output: epath.PathLike) -> None:
    """Detects in a picture or a folder of them and leaves `detections.json`, `counts.csv` and overlays in `output`.

    Pictures that cannot be read are named, counted and left out.
    """
    images, output = user_path(images), user_path(output)
    files = [file for file in find_pictures(images) if output not in file.parents]  # not an earlier run's overlays
    model = Model(*open_trained(workdir, config))
    try:
        (output / "overlays").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error}): choose another --output.") from error
    progress = Progress(
        "Predicting", sum(len(model.windows_in(upright_size(file) or (1, 1))) for file in files), unit="windows"
    )
    broken: list[str] = []

    def pictures() -> Iterator[tuple[tuple[int, epath.Path, Picture], Picture]]:
        for number, file in enumerate(files, start=1):
            try:
                picture = read(file)
            except UserError as error:
                broken.append(str(error))
                progress.advance(1)
                continue
            yield (number, file, picture), picture

    results, names, counts = [], [], []
    classes = dict(zip(model.trained.category_ids, model.trained.classes, strict=True))
    shown = config.prediction.min_score
    for (number, file, picture), prediction in model.follow(pictures(), progress):
        name = str(file.relative_to(images)) if images.is_dir() else file.name
        results.append(prediction.columns(number))
        names.append({"id": number, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
        labels = prediction.labels[prediction.scores >= shown]
        counts.append([name, *np.bincount(labels, minlength=len(classes)).tolist()])
        overlay = name.replace("/", "_")  # of equal names in different folders
        write_overlays(output / "overlays", [(overlay, picture, prediction.coco(number), [])], classes, shown)
    progress.close()
    for line in broken:
        print(f"Left out: {line}", flush=True)
    if not names:
        raise UserError(f"None of the {len(files)} pictures at {images} can be read: {broken[0]}")
    categories = [{"id": number, "name": name} for number, name in classes.items()]
    write_coco(joined(results), output / "detections.json")
    (output / "images.json").write_text(json.dumps({"images": names, "categories": categories}))
    write_counts(output / "counts.csv", counts, model.trained.classes)
    total = sum(sum(row[1:]) for row in counts)
    print(f"{len(names):,} pictures, {total:,} objects with a score of at least {shown}: {output}")


def write_counts(path: epath.Path, counts: list[list], classes: Sequence[str]) -> None:
    """One row a picture, one column a class, and their sum."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", *classes, "all"])
    writer.writerows([*row, sum(row[1:])] for row in counts)
    path.write_text(text.getvalue())
