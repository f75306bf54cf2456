"""Detect in pictures of any size: cut them into windows, detect in batches of one shape, merge."""

import json
import os
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from cfinet_jax.config_checks import check_numbers
from cfinet_jax.detection import detection
from cfinet_jax.errors import Interrupted, UserError
from cfinet_jax.input.pictures import (
    Range,
    as_picture,
    check_range,
    common_range,
    deep_values,
    extremes,
    open_picture,
    upright_size,
)
from cfinet_jax.input.sizes import scales_of, with_sizes
from cfinet_jax.input.windows import cut_window, window_origins
from cfinet_jax.metrics.merging import in_image, merge
from cfinet_jax.metrics.results import Found, columns_of_image, entries
from cfinet_jax.prediction_files import UNFINISHED, input_files, overlay_names, resume, write_results
from cfinet_jax.report.overlays import write_overlays
from cfinet_jax.restore import Trained, open_trained
from cfinet_jax.runtime.files import read_bytes, writing
from cfinet_jax.runtime.interruption import requests
from cfinet_jax.runtime.json_values import shown
from cfinet_jax.runtime.log import append
from cfinet_jax.runtime.paths import absolute, user_path
from cfinet_jax.runtime.progress import Progress
from cfinet_jax.structures import without_truth

Picture = UInt8[np.ndarray, "height width 3"]
Given = np.ndarray | Image.Image | epath.PathLike  # a picture as `Model.predict` takes it
SAMPLE = 256  # pictures that the range of grey values is taken from if the detector knows none


class Prediction(NamedTuple):
    """Detections in one picture, best first; boxes x1 y1 x2 y2 or cx cy w h angle in its pixels."""

    boxes: Float[np.ndarray, "n numbers"]
    scores: Float[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]  # index into `classes`
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections in COCO's results format, boxes x y w h or cx cy w h angle."""
        category_ids = np.array(self.category_ids)[self.labels]
        return list(entries(columns_of_image(self.boxes, self.scores, category_ids, image_id)))


class Model:
    """A trained detector, compiled at its first picture for windows of one shape."""

    def __init__(self, trained: Trained, config: ConfigDict) -> None:
        self.trained, self.config = trained, config
        self.window = tuple(config.dataset.stored_size)
        shared = config.dataset.window_overlap
        shared = config.prediction.overlap if shared is None else shared
        self.overlap = tuple(min(shared, side - 1) for side in self.window)
        self.batch_size = config.dataset.eval_batch_size
        self.grey_range = check_range(config.dataset.get("grey_range"))
        self.detect = jax.jit(detection(trained.detector, config))

    def predict(self, pictures: Given | Iterable[Given]) -> list[Prediction]:
        """Detect in pictures.

        Args:
          pictures: one picture or several: paths, PIL pictures, or arrays [height, width] or [height, width, 1, 3 or 4]
            (R G B) of uint8, uint16 or float.

        Returns:
          a prediction for each picture; for a single picture a list of one.

        Raises:
          UserError: a picture cannot be read or is something else.
        """
        alone = getattr(pictures, "ndim", None) in (0, 2, 3) or isinstance(pictures, str | os.PathLike | Image.Image)
        several: Iterable[Any] = [pictures] if alone or not isinstance(pictures, Iterable) else pictures
        loaded = (self.read(each) for each in several)
        return [prediction for _, prediction in self.follow(enumerate(loaded))]

    def read(self, given: Given) -> Picture:
        """Return the pixels of a picture. Raises `UserError` if it cannot be read or is something else."""
        try:
            if isinstance(given, str | os.PathLike):
                return open_picture(user_path(given), self.grey_range)
            return as_picture(given, self.grey_range)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes only now
            raise UserError(f"picture {shown(given)} cannot be read ({error}): replace it.") from error

    def windows_in(self, size: tuple[int, int]) -> Int[np.ndarray, "windows 2"]:
        """Return row and column of the windows that a picture of `size` (height, width) is cut into."""
        return window_origins(size, self.window, self.overlap)

    def follow(
        self, pictures: Iterable[tuple[Any, Picture]], progress: Progress | None = None
    ) -> Iterator[tuple[Any, Prediction]]:
        """Yield (key, prediction) of each (key, picture), in order, as soon as all windows of the picture are done."""
        waiting: list[tuple[Any, np.ndarray, list[Found]]] = []  # unfinished pictures, oldest first
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
        """Yield up to `batch_size` windows of one or more pictures, and add the pictures to `waiting`.

        A window is the list to add its detections to, its pixels, and the size of the picture's part of it.
        """
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
        """Detect in up to `batch_size` windows; boxes are in pixels of each window."""
        empty = self.batch_size - len(windows)
        images = np.pad(np.stack(windows), ((0, empty), (0, 0), (0, 0), (0, 0)))
        extents = np.pad(np.asarray(sizes, np.float32), ((0, empty), (0, 0)), constant_values=1)
        batch = without_truth(images, extents, scales_of(extents, self.config.dataset))
        found, _ = jax.device_get(self.detect(self.trained.variables, batch))
        return [in_image(found, place) for place in range(len(windows))]


def load(path: epath.PathLike, views: Sequence[str] | None = None) -> Model:
    """Load the detector of a workdir, ready to predict.

    Args:
      path: the workdir.
      views: `prediction.views`, such as ("plain", "flip"); None for those of the run.

    Raises:
      UserError: the workdir holds no trained detector, or there is no such view.
    """
    trained, config = open_trained(user_path(path))
    if views is not None:
        config.prediction.views = tuple(views)
        check_numbers(config)
    return Model(trained, config)


def predict(config: ConfigDict, workdir: epath.Path, images: epath.PathLike, output: epath.PathLike) -> None:
    """Detect in a picture or a folder of pictures and write `detections.json`, `counts.csv` and overlays to `output`.

    Unreadable pictures are listed and left out. After an interruption the same command resumes.

    Raises:
      UserError: there is no picture, none can be read, or `output` cannot be written or holds the pictures.
    """
    images, output = absolute(images), absolute(output)
    files = input_files(images, output)
    trained, config = open_trained(workdir, config)
    if config.dataset.get("grey_range") is None and (greys := grey_range_of(list(files.values()))):
        config = with_sizes(config, grey_range=greys)
    model = Model(trained, config)
    with writing(output, "--output"):
        done, unreadable = resume(trained.variables, config, output), []
    shown = config.prediction.min_score
    try:
        with requests():
            detect_files(model, files, output, done, unreadable)
    except Interrupted as error:
        write_results(trained, shown, done, list(files), output)
        raise Interrupted(f"{error} {len(done):,} of {len(files):,} pictures are done: {output}.") from error
    for line in unreadable:
        print(f"Left out: {line}".encode(errors="backslashreplace").decode(), flush=True)
    if not done:
        raise UserError(f"None of the {len(files)} pictures at {images} can be read: {unreadable[0]}")
    total = write_results(trained, shown, done, list(files), output)
    (output / UNFINISHED).unlink()
    print(f"{len(done):,} pictures, {total:,} objects with a score of at least {shown}: {output}")


def grey_range_of(files: Sequence[epath.Path]) -> Range | None:
    """Return the range of grey values of a sample of files, the same at every call; None if all of them have 8 bits."""
    found, sample = [], random.Random(0).sample(files, min(SAMPLE, len(files)))
    for file in sample:
        try:
            values = deep_values(read_bytes(file), str(file))
        except (OSError, UserError):  # reported when its turn comes
            continue
        found += [] if values is None else [extremes(values)]
    return common_range(found, len(sample))


def detect_files(
    model: Model,
    files: dict[str, epath.Path],
    output: epath.Path,
    done: dict[str, dict[str, Any]],
    unreadable: list[str],
) -> None:
    """Detect in the files that are not `done`, draw overlays and add the results; list failures in `unreadable`."""
    windows = {name: len(model.windows_in(upright_size(file) or (1, 1))) for name, file in files.items()}
    progress = Progress("Predicting", sum(windows.values()), unit="windows")
    overlays = overlay_names(files)
    classes = dict(zip(model.trained.category_ids, model.trained.classes, strict=True))

    def pictures() -> Iterator[tuple[tuple[str, int, Picture], Picture]]:
        for name, file in files.items():
            try:
                checksum = zlib.crc32(read_bytes(file))
                if done.get(name, {}).get("checksum") != checksum:  # new, or changed since
                    picture = model.read(file)
                    yield (name, checksum, picture), picture
                    continue
            except (OSError, UserError) as error:
                unreadable.append(str(error))
                done.pop(name, None)
            progress.advance(windows[name])

    for (name, checksum, picture), prediction in model.follow(pictures(), progress):
        found, (height, width) = prediction.coco(0), picture.shape[:2]
        drawn = [(overlays[name], picture, found, [])]
        write_overlays(output / "overlays", drawn, classes, model.config.prediction.min_score)
        entry = {"file_name": name, "height": height, "width": width, "checksum": checksum, "found": found}
        append(output / UNFINISHED, json.dumps(entry) + "\n")
        done[name] = entry
    progress.close()
