"""Speed of reading batches, compared with decoding the same pictures and nothing else.

    python -m benchmarks.loader [--images=N] [--repeats=N] [--output=JSON]

The pictures are drawn: large ones, cut into windows as they are read, to train and to evaluate, and small ones that are
read whole. Both sides decode the same JPEG files in as many threads, each once per epoch. One epoch of training passes
before the first that is timed, so that reading ahead counts for neither side.
"""

import itertools
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
from ml_collections import ConfigDict

from benchmarks import common, drawn
from cfinet_jax.input import batches
from cfinet_jax.input.dataset import Prepared, open_dataset
from cfinet_jax.preparation import builders
from configs import sodad

SMALL = (512, 640)
SMALL_PER_LARGE = 30  # pictures: together they have about as many pixels


def draw(folder: Path, images: int, size: tuple[int, int]) -> tuple[Prepared, ConfigDict]:
    """Draw and prepare pictures; return the prepared split and settings to read it with."""
    drawn.soda_d(folder / "SODA-D", images, size)
    arguments = {"source": str(folder / "SODA-D"), "data_dir": folder}
    builders.prepare(builders.make_builder(builders.Request("sodad", **arguments)))
    settings = sodad.get_config().dataset
    settings.data_dir = str(folder)
    return open_dataset(settings, "train"), settings


def train(prepared: Prepared, settings: ConfigDict) -> Iterator[int]:
    """Read an epoch of training at a time; yield its number of windows."""
    windows = batches.windows_of(prepared, settings, training=True)
    count = len(windows.owners) // settings.batch_size
    endless = batches.train_batches(prepared, windows, settings, 0, settings.batch_size)
    while True:
        yield sum(len(batch.valid) for batch in itertools.islice(endless, count))


def evaluate(prepared: Prepared, settings: ConfigDict) -> Iterator[int]:
    """Read a split for evaluation, again and again; yield its number of windows."""
    windows = batches.windows_of(prepared, settings, training=False)
    while True:
        finite = batches.eval_batches(prepared, windows, settings, settings.eval_batch_size)
        yield sum(int(batch.valid.sum()) for batch in finite)


def bare(prepared: Prepared, threads: int) -> None:
    """Decode every picture."""
    paths = [record["path"].decode() for record in prepared.source]
    with ThreadPool(threads) as pool:
        pool.map(lambda path: cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape, paths, chunksize=1)


def compare(name: str, epochs: Iterator[int], prepared: Prepared, settings: ConfigDict, repeats: int) -> common.Row:
    """Time both sides, and count how often the loader decodes a picture in an epoch."""
    with mock.patch.object(batches, "read_picture", mock.Mock(wraps=batches.read_picture)) as decoding:
        windows = next(epochs)
        ours = len(prepared) / common.medians({"": partial(next, epochs)}, repeats)[""]
        decoded = decoding.call_count / len(prepared) / (2 + repeats)
    theirs = len(prepared) / common.medians({"": partial(bare, prepared, settings.read_threads)}, repeats)[""]
    return {
        "computation": f"{name}: {len(prepared)} pictures, {windows} windows",
        "threads": settings.read_threads,
        "pictures/s read": ours,
        "pictures/s bare": theirs,
        "speed, read / bare": ours / theirs,
        "decoded per epoch": decoded,
    }


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    result = common.parser("loader", __doc__, repeats=3)
    result.add_argument("--images", type=int, default=64, help=f"large ones; {SMALL_PER_LARGE} times as many small")
    return result


def main() -> None:
    """Measure and report."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        large, settings = draw(Path(name, "large"), arguments.images, (drawn.HEIGHT, drawn.WIDTH))
        small, _ = draw(Path(name, "small"), SMALL_PER_LARGE * arguments.images, SMALL)
        whole = ConfigDict({**settings, "stored_size": SMALL, "window_overlap": None})
        rows = [
            compare("training on windows", train(large, settings), large, settings, arguments.repeats),
            compare("evaluation on windows", evaluate(large, settings), large, settings, arguments.repeats),
            compare("training on small pictures", train(small, whole), small, whole, arguments.repeats),
        ]
    common.report(rows, arguments.output)


if __name__ == "__main__":
    main()
