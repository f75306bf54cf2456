"""Decode every picture of a data set once, in threads, to see whether it is whole and has the size that is stated."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import decode_bgr, deep_values, extremes, orientation_of
from cfinet_jax.preparation.journal import Journal, state_of
from cfinet_jax.preparation.places import FOUND, Places
from cfinet_jax.runtime import files
from cfinet_jax.runtime.progress import track

MOST_THREADS = 16  # each holds a decoded picture or two
BROKEN = "image broken or cut short, skipped"
# Work on a decoded picture (uint8, B G R) that is done while it is in memory; the journal stores the result.
Task = Callable[[np.ndarray], Any]


def map_images(function: Callable[[Any], Any], images: Sequence[Any], what: str) -> Iterator[Any]:
    """Yield the result of the function for every image, in order, while showing progress.

    Threads suffice: OpenCV and NumPy release Python's lock while they decode, encode and copy.
    """
    pool = ThreadPool(min(os.cpu_count() or 1, MOST_THREADS))
    try:
        for _, result in zip(track(images, what), pool.imap(function, images), strict=True):
            yield result
    finally:  # drop what waits and join the rest: a thread still inside OpenCV would abort Python's exit
        pool.terminate()
        pool.join()


def check_image(image: dict[str, Any], places: Places, journal: Journal, tasks: Mapping[int, Task]) -> str | None:
    """Find the image of a record and check it; return why it cannot be used, `FOUND` or None.

    The path of the record is updated. A task in `tasks` (by image id) runs on the picture if it is sound.
    """
    path, odd = places.find(epath.Path(image["path"]))
    if odd not in (None, FOUND):
        return odd
    image["path"] = str(path)
    return image_problem(image, journal, tasks.get(image["image_id"])) or odd


def image_problem(image: dict[str, Any], journal: Journal, task: Task | None = None) -> str | None:
    """Return why the image of a record cannot be used, or None.

    A picture that the journal knows is decoded only if its task has not been done yet.
    """
    path, stated = epath.Path(image["path"]), (image["height"], image["width"])
    try:
        image["path"].encode()
        state = state_of(path)
        done = task is None or isinstance(journal.made.get(state), list)
        known = state in journal.sizes and (done or journal.sizes[state] != stated)
        encoded = b"" if known else files.read_bytes(path)
    except UnicodeEncodeError:  # records store paths as UTF-8
        return "image whose name is not UTF-8, skipped"
    except PermissionError:
        return "image closed to this user, skipped"
    except (OSError, ValueError):  # ValueError: no file can have this name
        return BROKEN
    if not known:
        journal.note(state, *measure(encoded, stated, task), trait_of(encoded))
    size = journal.sizes[state]
    if size is None:
        return BROKEN
    if size == stated[::-1] != stated:
        return "image with height and width swapped (turned by its EXIF orientation?), skipped"
    return None if size == stated else "image of another size than stated, skipped"


def measure(encoded: bytes, stated: tuple[int, int], task: Task | None) -> tuple[tuple[int, int] | None, Any]:
    """Decode a picture; return its (height, width), None if it is broken, and what the journal stores besides.

    That is the result of the task, or the extreme grey values of a picture of more than 8 bits.
    """
    try:
        deep = deep_values(encoded, "")
        picture = decode_bgr(encoded, "") if deep is None else deep
    except UserError:
        return None, None
    size = picture.shape[:2]
    if task and size == stated:
        if deep is not None:
            raise UserError(
                "pictures of more than 8 bits cannot be cut into windows, which have 8: leave out --windows"
            )
        return size, task(picture)
    return size, None if deep is None else {"greys": extremes(deep)}


def trait_of(encoded: bytes) -> tuple[str, int]:
    """Return the hash of an image file and its EXIF orientation, 1 if it has none."""
    return hashlib.blake2b(encoded, digest_size=16).hexdigest(), orientation_of(encoded)
