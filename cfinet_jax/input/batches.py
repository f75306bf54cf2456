"""Batches of a split: its pictures, or the windows they are cut into, read through Grain as padded NumPy arrays."""

import functools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import grain
import jax
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from cfinet_jax.boxes import kinds
from cfinet_jax.errors import UserError
from cfinet_jax.input.annotations import (
    Objects,
    fill_a_pixel,
    nothing,
    objects_in_window,
    objects_of,
    paint_regions,
    training_origins,
    without_regions,
)
from cfinet_jax.input.dataset import Prepared, read_picture
from cfinet_jax.input.sizes import scales_of
from cfinet_jax.input.windows import cut_window, window_origins
from cfinet_jax.structures import Batch, GroundTruth

EPOCHS = 2**20  # practically endless
Reader = Callable[[int], tuple[dict[str, Any], np.ndarray]]  # (position in a split) -> record, decoded picture


class Windows(NamedTuple):
    """Windows that a split is read as, in order; a picture that is not cut is one window."""

    owners: Int[np.ndarray, "windows"]  # positions of the pictures, ascending
    origins: Int[np.ndarray, "windows 2"]  # row and column in the picture


def windows_of(prepared: Prepared, settings: ConfigDict, training: bool) -> Windows:
    """List the pictures of a split, or windows of `stored_size` over them if `window_overlap` is given.

    Evaluation uses windows that cover the pictures, training those that hold an object.

    Raises:
      UserError: no window holds an object.
    """
    pictures, overlap = np.arange(len(prepared)), settings.window_overlap
    if overlap is None:
        return Windows(pictures, np.zeros((len(prepared), 2), int))
    window, shared = tuple(settings.stored_size), (overlap, overlap)

    def origins(record: dict[str, Any]) -> np.ndarray:
        size = int(record["height"]), int(record["width"])
        if not training:
            return window_origins(size, window, shared)
        return training_origins(objects_of(record), size, window, shared)

    found = [origins(prepared.source[position]) for position in pictures.tolist()]
    if not any(len(each) for each in found):
        raise UserError("No window of the split holds an object: annotate some, or choose another dataset.train_split.")
    return Windows(np.repeat(pictures, [len(each) for each in found]), np.concatenate(found))


def views(prepared: Prepared, settings: ConfigDict, training: bool) -> Iterator[tuple[tuple[int, int], Objects]]:
    """Yield size (height, width) and annotations of every window of a split, without reading pictures."""
    windows = windows_of(prepared, settings, training)
    for owner, origin in zip(windows.owners.tolist(), windows.origins, strict=True):
        record = prepared.source[owner]
        size, objects = (int(record["height"]), int(record["width"])), objects_of(record)
        if settings.window_overlap is not None:
            height, width = np.minimum(settings.stored_size, size - origin).tolist()
            size, objects = (height, width), objects_in_window(objects, origin, (height, width))
            objects = without_regions(objects) if settings.paint_regions else objects
        yield size, objects


def train_batches(
    prepared: Prepared,
    windows: Windows,
    settings: ConfigDict,
    seed: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Return endless shuffled batches: the rows of this process of global batches of `batch_size` windows.

    Every epoch has its own order, and a batch may span two epochs. The global batches depend only on the seed, not on
    the number of processes. The iterator's state can be saved and restored.
    """
    count = len(windows.owners)
    if settings.window_overlap is None:
        numbers = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
    else:
        # Two orders are kept, since a batch may span two epochs.
        order = functools.lru_cache(2)(functools.partial(mixed_order, windows.owners, settings.mixed_pictures, seed))
        numbers = grain.MapDataset.range(EPOCHS * count).map(lambda number: order(number // count)[number % count])
    batches = numbers.batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
    kept = kept_pictures(windows, settings, batch_size, settings.mixed_pictures)
    decoded = remember(prepared, kept, settings.read_threads)
    return _read(batches, prepared, windows, decoded, settings, batch_size, process_index, process_count)


def eval_batches(
    prepared: Prepared,
    windows: Windows,
    settings: ConfigDict,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Return every window once and in order; blank, invalid images fill the last global batch."""
    filled = math.ceil(len(windows.owners) / batch_size) * batch_size
    batches = grain.MapDataset.range(filled).batch(batch_size, batch_fn=np.asarray)
    kept = kept_pictures(windows, settings, batch_size, settings.read_threads)
    # One thread decodes a picture for all of its windows: decode later pictures ahead to keep the others busy.
    decoded = remember(prepared, kept, settings.read_threads, ahead=settings.read_threads)
    return _read(batches, prepared, windows, decoded, settings, batch_size, process_index, process_count)


def mixed_order(owners: Int[np.ndarray, "windows"], mixed: int, seed: int, epoch: int) -> Int[np.ndarray, "windows"]:
    """Return the windows of an epoch in random order: groups of `mixed` random pictures, each with its windows mixed.

    This way a large picture is decoded once per epoch and held only while its group is read.
    """
    random = np.random.default_rng((seed, epoch))
    groups = random.permutation(owners.max() + 1)[owners] // mixed
    return np.lexsort((random.random(len(owners)), groups))


def _read(
    batches: grain.MapDataset,
    prepared: Prepared,
    windows: Windows,
    decoded: Reader,
    settings: ConfigDict,
    batch_size: int,
    process_index: int,
    process_count: int,
) -> grain.DatasetIterator:
    """Turn global batches of window numbers into this process's rows of Batches; each is read by one thread."""
    if batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} cannot be shared by {process_count} processes: "
            f"make it a multiple of {process_count}"
        )
    cv2.setNumThreads(1)  # the read threads are the parallelism
    rows = batch_size // process_count
    first = rows * process_index

    def read(numbers: np.ndarray) -> Batch:
        images: Any = np.empty((rows, *settings.stored_size, 3), np.uint8)  # NumPy, where a Batch declares JAX's arrays
        examples = [
            _example(windows, int(numbers[index]), index, decoded, settings, image, nothing(prepared.boxes))
            for index, image in enumerate(images, start=first)
        ]
        return Batch(images=images, **jax.tree.map(lambda *leaves: np.stack(leaves), *examples))

    options = grain.ReadOptions(num_threads=settings.read_threads, prefetch_buffer_size=2 * settings.read_threads)
    return iter(batches.map(read).to_iter_dataset(options))


def kept_pictures(windows: Windows, settings: ConfigDict, batch_size: int, group: int) -> int:
    """Return how many decoded pictures to keep so that none is decoded twice.

    These are the pictures of all batches in work, plus two groups of `group` pictures, whose windows are mixed
    (training) or that are decoded at the same time (evaluation).
    """
    if settings.window_overlap is None:
        return 0
    windows_each = len(windows.owners) / len(np.unique(windows.owners))
    batches = 3 * settings.read_threads  # being read, or waiting in Grain's buffer of twice the threads
    return 2 * group + math.ceil(batches * batch_size / windows_each)


def remember(prepared: Prepared, kept: int, threads: int, ahead: int = 0) -> Reader:
    """Return a `Reader` that remembers the last `kept` pictures and begins to decode the next `ahead`."""

    def read(position: int) -> tuple[dict[str, Any], np.ndarray]:
        record = prepared.source[position]
        return record, read_picture(record, prepared.grey_range)

    if not kept:
        return read
    lock, pool = threading.Lock(), ThreadPoolExecutor(threads)
    begin = functools.lru_cache(kept)(functools.partial(pool.submit, read))

    def recall(position: int) -> tuple[dict[str, Any], np.ndarray]:
        with lock:  # lru_cache alone would let two threads begin the same picture
            found = begin(position)
            for later in range(position + 1, min(position + 1 + ahead, len(prepared))):
                begin(later)
        return found.result()

    return recall


def _example(
    windows: Windows,
    number: int,
    index: int,
    decoded: Reader,
    settings: ConfigDict,
    image: UInt8[np.ndarray, "height width 3"],
    filler: Objects,
) -> dict[str, Any]:
    """Write the window `number` into `image`; return the other fields of a Batch without its batch axis.

    Beyond the last window the image is blank and invalid, with the annotations `filler`.
    """
    valid = number < len(windows.owners)
    if valid:
        owner = int(windows.owners[number])
        record, picture = decoded(owner)
        image_id = record["image_id"]
        if settings.window_overlap is None:
            check_size(picture, settings.stored_size, record["file_name"].decode())
        size, objects = _window(picture, objects_of(record), windows.origins[number], settings, image)
    else:
        image[:] = 0
        image_id, size, objects = 0, settings.stored_size, filler
    ground_truth, dropped = _ground_truth(objects, settings.max_objects)
    extent = np.array(size, np.float32)
    return {
        "sizes": extent,
        "scales": scales_of(extent, settings),
        "ground_truth": ground_truth,
        "image_ids": np.int32(image_id),
        "index": np.int32(index),
        "dropped": np.int32(dropped),
        "valid": np.bool_(valid),
    }


def _window(
    picture: np.ndarray, objects: Objects, origin: np.ndarray, settings: ConfigDict, image: np.ndarray
) -> tuple[tuple[int, int], Objects]:
    """Write the window at `origin` into `image`, extended by its edge; return its own size and annotations."""
    _, size = cut_window(picture, origin, tuple(settings.stored_size), out=image)
    if settings.window_overlap is None:
        return size, objects
    seen = objects_in_window(objects, origin, size)
    if settings.paint_regions:
        paint_regions(image, objects, seen, origin)
        seen = without_regions(seen)
    return size, seen


def check_size(picture: np.ndarray, stored_size: tuple[int, int], name: str) -> None:
    """Refuse a picture that is not cut and does not fit into `stored_size` (height, width)."""
    if any(np.greater(picture.shape[:2], stored_size)):
        raise UserError(
            f"image {name} is {picture.shape[0]} x {picture.shape[1]} pixels, larger than dataset.stored_size = "
            f"{stored_size[0]} x {stored_size[1]}: raise dataset.stored_size, or set dataset.window_overlap"
        )


def _ground_truth(objects: Objects, max_objects: int) -> tuple[GroundTruth, int]:
    """Pad the entries of at least one pixel, objects before ignored ones; return also how many objects did not fit."""
    boxes, labels, ignore, _ = objects
    labels = np.maximum(labels, 0)  # -1 would index from the end; `ignore` masks the label of a region
    sound = np.flatnonzero(fill_a_pixel(boxes))
    order = sound[np.argsort(ignore[sound], kind="stable")]
    dropped = max(int(np.sum(~ignore[order])) - max_objects, 0)
    order = order[:max_objects]

    def pad(values: np.ndarray) -> Any:
        padded = np.zeros((max_objects, *values.shape[1:]), values.dtype)
        padded[: len(order)] = values[order]
        return padded

    truth = GroundTruth(
        boxes=pad(kinds.enclose(boxes)),
        labels=pad(labels),
        valid=pad(np.ones_like(ignore)),
        ignore=pad(ignore),
        oriented=None if objects.polygons is None else pad(boxes),
    )
    return truth, dropped
