"""Work on many pictures at once."""

from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

from cfinet_jax.progress import track


def map_images(function: Callable[[Any], Any], images: Sequence[Any], what: str) -> Iterator[Any]:
    """The result of the function for every image, in order, with progress shown.

    Threads do it, one per core: OpenCV decodes and encodes, and NumPy copies, outside of Python's lock.
    """
    with ThreadPool() as pool:  # drops what is waiting when the work breaks off
        for _, result in zip(track(images, what), pool.imap(function, images), strict=True):
            yield result
