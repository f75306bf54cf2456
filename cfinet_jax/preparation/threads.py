"""Work on many pictures at once."""

import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

from cfinet_jax.runtime.progress import track

MOST = 16  # a thread holds a decoded picture or two


def map_images(function: Callable[[Any], Any], images: Sequence[Any], what: str) -> Iterator[Any]:
    """The result of the function for every image, in order, with progress shown.

    Threads do it, one per core up to `MOST`: OpenCV decodes and encodes, and NumPy copies, outside of Python's lock.
    """
    pool = ThreadPool(min(os.cpu_count() or 1, MOST))
    try:
        for _, result in zip(track(images, what), pool.imap(function, images), strict=True):
            yield result
    finally:  # when the work breaks off, what waits is dropped; a thread that OpenCV still holds at exit would abort
        pool.terminate()
        pool.join()
