"""Detections in pictures of any size: cut into windows, detected in batches of one shape, merged."""

import csv
import functools
import io
import json
import os
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from cfinet_jax.errors import Interrupted, UserError
from cfinet_jax.input.pictures import (
    Range,
    as_picture,
    check_range,
    common_range,
    deep_values,
    extremes,
    find_pictures,
    identity,
    open_picture,
    upright_size,
)
from cfinet_jax.input.sizes import scales_of, with_sizes
from cfinet_jax.input.windows import cut_window, window_origins
from cfinet_jax.metrics.merging import Found, merge
from cfinet_jax.metrics.results import Columns, columns, columns_of_image, entries, write_coco
from cfinet_jax.report.overlays import write_overlays
from cfinet_jax.restore import Trained, detection, open_trained
from cfinet_jax.runtime.files import read_bytes, replace_text
from cfinet_jax.runtime.interruption import requests
from cfinet_jax.runtime.log import append
from cfinet_jax.runtime.paths import absolute, user_path
from cfinet_jax.runtime.progress import Progress
from cfinet_jax.structures import without_truth

Picture = UInt8[np.ndarray, "height width 3"]
Given = np.ndarray | Image.Image | epath.PathLike  # what `Model.predict` takes for a picture
SAMPLE = 256  # pictures whose grey values decide on the range where the detector knows none
LONGEST = 200  # bytes of an overlay's name; systems allow 255


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
        self.grey_range = check_range(config.dataset.get("grey_range"))
        self.detect = jax.jit(detection(trained.detector, config.dataset))

    def predict(self, pictures: Given | Iterable[Given]) -> list[Prediction]:
        """Detect in pictures: paths, PIL pictures, or arrays as `as_picture` takes them; a single one is a list of one.

        Raises:
          UserError: one of them is no picture, or cannot be read.
        """
        lone = getattr(pictures, "ndim", None) in (0, 2, 3) or isinstance(pictures, str | os.PathLike | Image.Image)
        several: Iterable[Any] = [pictures] if lone or not isinstance(pictures, Iterable) else pictures
        loaded = (self.read(each) for each in several)
        return [prediction for _, prediction in self.follow(enumerate(loaded))]

    def read(self, given: Given) -> Picture:
        """The pixels of a picture. Raises `UserError` where it is none or cannot be read."""
        if isinstance(given, str | os.PathLike):
            return open_picture(epath.Path(given).expanduser(), self.grey_range)
        return as_picture(given, self.grey_range)

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


def grey_range_of(files: Sequence[epath.Path]) -> Range | None:
    """Find the range of grey values of files from the same sample of them at every call; None if all have 8 bits."""
    found, sample = [], random.Random(0).sample(files, min(SAMPLE, len(files)))
    for file in sample:
        try:
            values = deep_values(read_bytes(file), str(file))
        except (OSError, UserError):  # it is named later
            continue
        found += [] if values is None else [extremes(values)]
    return common_range(found, len(sample))


def predict(config: ConfigDict, workdir: epath.Path, images: epath.PathLike, output: epath.PathLike) -> None:
    """Detects in a picture or a folder of them and leaves `detections.json`, `counts.csv` and overlays in `output`.

    Pictures that cannot be read are named, counted and left out. After an interruption the same command resumes.
    """
    images, output = absolute(images), absolute(output)
    overlays = output / "overlays"
    found = find_pictures(images)
    try:
        overlays.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error}): choose another --output.") from error
    same = functools.cache(lambda folder: identity(folder) == identity(overlays))
    files = [file for file in found if not same(file.parent)]  # those are an earlier run's
    if not files:
        raise UserError(f"{overlays} would be overwritten and holds the pictures: choose another --output.")
    trained, config = open_trained(workdir, config)
    if config.dataset.get("grey_range") is None and (greys := grey_range_of(files)):
        config = with_sizes(config, grey_range=greys)
    model = Model(trained, config)
    names = [str(file.relative_to(images)) if file != images else file.name for file in files]
    try:
        done = Done(output / "unfinished.jsonl", model)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error}): choose another --output.") from error
    broken: list[str] = []
    try:
        with requests():
            detect_files(model, dict(zip(names, files, strict=True)), overlays, done, broken)
    except Interrupted as error:
        write_results(model, done, names, output)
        raise Interrupted(f"{error} {len(done.pictures):,} of {len(files):,} pictures are done: {output}.") from error
    for line in broken:
        print(f"Left out: {line}".encode(errors="backslashreplace").decode(), flush=True)
    if not done.pictures:
        raise UserError(f"None of the {len(files)} pictures at {images} can be read: {broken[0]}")
    total = write_results(model, done, names, output)
    done.file.unlink()
    shown = config.prediction.min_score
    print(f"{len(done.pictures):,} pictures, {total:,} objects with a score of at least {shown}: {output}")


class Done:
    """The pictures that are done, a JSON line each in a file, for the same detector to resume from."""

    def __init__(self, file: epath.Path, model: Model) -> None:
        leaves = map(np.asarray, jax.tree.leaves(model.trained.variables))
        checksum = functools.reduce(lambda sum_, leaf: zlib.crc32(leaf.tobytes(), sum_), leaves, 0)
        first = json.dumps([checksum, json.loads(model.config.to_json())], sort_keys=True)
        head, *lines = file.read_text().split("\n")[:-1] if file.exists() else [""]
        known = [json.loads(line) for line in lines] if head == first else []
        self.file, self.pictures = file, {entry["file_name"]: entry for entry in known}
        replace_text(file, "".join(f"{line}\n" for line in (first, *map(json.dumps, known))))

    def add(self, entry: dict[str, Any]) -> None:
        """Keep what was found in a picture, whole or not at all."""
        append(self.file, json.dumps(entry) + "\n")
        self.pictures[entry["file_name"]] = entry


def detect_files(
    model: Model, files: dict[str, epath.Path], overlays: epath.Path, done: Done, broken: list[str]
) -> None:
    """Detect in the files that are not done, by their names, and draw what is found; say in `broken` which are none."""
    windows = {name: len(model.windows_in(upright_size(file) or (1, 1))) for name, file in files.items()}
    progress = Progress("Predicting", sum(windows.values()), unit="windows")
    flat = Counter(name.replace("/", "_") for name in files)
    classes = dict(zip(model.trained.category_ids, model.trained.classes, strict=True))

    def pictures() -> Iterator[tuple[tuple[str, int, Picture], Picture]]:
        for name, file in files.items():
            try:
                checksum = zlib.crc32(read_bytes(file))
                if done.pictures.get(name, {}).get("checksum") != checksum:
                    picture = model.read(file)
                    yield (name, checksum, picture), picture
                    continue
            except (OSError, UserError) as error:
                broken.append(str(error))
                done.pictures.pop(name, None)
            progress.advance(windows[name])

    for (name, checksum, picture), prediction in model.follow(pictures(), progress):
        found = prediction.coco(0)
        overlay = name.replace("/", "_")
        if flat[overlay] > 1 or len(os.fsencode(overlay)) > LONGEST:  # of another folder's picture, or too long
            overlay = f"{os.fsencode(overlay)[:LONGEST].decode(errors='ignore')}_{zlib.crc32(os.fsencode(name)):08x}"
        write_overlays(overlays, [(overlay, picture, found, [])], classes, model.config.prediction.min_score)
        size = {"height": picture.shape[0], "width": picture.shape[1]}
        done.add({"file_name": name, **size, "checksum": checksum, "found": found})
    progress.close()


def write_results(model: Model, done: Done, names: Sequence[str], output: epath.Path) -> int:
    """Write `detections.json`, `images.json` and `counts.csv` of the pictures that are done; the sum of the counts."""
    categories = dict(zip(model.trained.category_ids, model.trained.classes, strict=True))
    images, results, counts = [], [], []
    for number, name in enumerate(names, start=1):
        if name not in done.pictures:
            continue
        entry = done.pictures[name]
        images.append({"id": number, **{key: entry[key] for key in ("file_name", "height", "width")}})
        results += [found | {"image_id": number} for found in entry["found"]]
        seen = Counter(
            each["category_id"] for each in entry["found"] if each["score"] >= model.config.prediction.min_score
        )
        shown = name.encode(errors="backslashreplace").decode()  # names of other encodings
        counts.append([shown, *(seen[category_id] for category_id in categories)])
    described = [{"id": number, "name": name} for number, name in categories.items()]
    partial = output / "detections.json.partial"
    write_coco(columns(results), partial)
    partial.replace(output / "detections.json")
    replace_text(output / "images.json", json.dumps({"images": images, "categories": described}))
    write_counts(output / "counts.csv", counts, model.trained.classes)
    return sum(sum(row[1:]) for row in counts)


def write_counts(path: epath.Path, counts: list[list], classes: Sequence[str]) -> None:
    """One row a picture, one column a class, and their sum."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", *classes, "all"])
    writer.writerows([*row, sum(row[1:])] for row in counts)
    replace_text(path, text.getvalue())
