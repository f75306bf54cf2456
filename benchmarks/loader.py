"""What reading batches costs beside the decoding that nobody can avoid.

    python -m benchmarks.loader [--images=N] [--repeats=N] [--output=JSON]

Drawn pictures: large ones, cut into windows as they are read, to train and to evaluate, and small ones that are read
whole. Both sides decode the same JPEG files in as many threads, each once an epoch. An epoch of training is timed after
one that is not, so that what is read ahead counts neither way.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from ml_collections import ConfigDict

from benchmarks import preparation, tables, timing
from cfinet_jax.input import batches
from cfinet_jax.input.dataset import Prepared, open_dataset
from cfinet_jax.preparation import builders
from configs import sodad

SMALL = (512, 640)
SMALL_PER_LARGE = 30  # pictures: together they have about as many pixels


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.partition("\n")[0])
    result.add_argument("--images", type=int, default=64, help=f"large ones; {SMALL_PER_LARGE} times as many small")
    result.add_argument("--repeats", type=int, default=3, help="timed epochs of each side; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def draw(folder: Path, images: int, size: tuple[int, int]) -> tuple[Prepared, ConfigDict]:
    """Pictures as a prepared split, and settings to read them with."""
    preparation.draw(folder / "SODA-D", images, size)
    arguments = {"source": str(folder / "SODA-D"), "data_dir": folder}
    builders.prepare(builders.make_builder(builders.Request("sodad", **arguments)))
    settings = sodad.get_config().dataset
    settings.data_dir = str(folder)
    return open_dataset(settings, "train"), settings


def train(prepared: Prepared, settings: ConfigDict) -> Iterator[int]:
    """The windows of epochs of training."""
    windows = batches.windows_of(prepared, settings, training=True)
    count = len(windows.owners) // settings.batch_size
    endless = batches.train_batches(prepared, windows, settings, 0, settings.batch_size)
    while True:
        yield sum(len(batch.valid) for batch in itertools.islice(endless, count))


def evaluate(prepared: Prepared, settings: ConfigDict) -> Iterator[int]:
    """The windows of evaluations."""
    windows = batches.windows_of(prepared, settings, training=False)
    while True:
        finite = batches.eval_batches(prepared, windows, settings, settings.eval_batch_size)
        yield sum(int(batch.valid.sum()) for batch in finite)


def bare(prepared: Prepared, threads: int) -> None:
    """Decodes every picture."""
    paths = [record["path"].decode() for record in prepared.source]
    with ThreadPool(threads) as pool:
        pool.map(lambda path: cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape, paths, chunksize=1)


def compare(name: str, epochs: Iterator[int], prepared: Prepared, settings: ConfigDict, repeats: int) -> dict[str, Any]:
    """Both sides, and how often the loader decodes a picture in an epoch."""
    with mock.patch.object(batches, "read_picture", mock.Mock(wraps=batches.read_picture)) as decoding:
        windows = next(epochs)
        ours = len(prepared) / timing.median(partial(next, epochs), repeats)
        decoded = decoding.call_count / len(prepared) / (2 + repeats)
    theirs = len(prepared) / timing.median(partial(bare, prepared, settings.read_threads), repeats)
    return {
        "computation": f"{name}: {len(prepared)} pictures, {windows} windows",
        "threads": settings.read_threads,
        "pictures/s read": ours,
        "pictures/s bare": theirs,
        "speed, read / bare": ours / theirs,
        "decoded in an epoch": decoded,
    }


def main() -> None:
    """Measures the loaders, and reports."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        large, settings = draw(Path(name, "large"), arguments.images, (preparation.HEIGHT, preparation.WIDTH))
        small, _ = draw(Path(name, "small"), SMALL_PER_LARGE * arguments.images, SMALL)
        whole = ConfigDict({**settings, "stored_size": SMALL, "window_overlap": None})
        rows = [
            compare("training on windows", train(large, settings), large, settings, arguments.repeats),
            compare("evaluation on windows", evaluate(large, settings), large, settings, arguments.repeats),
            compare("training on small pictures", train(small, whole), small, whole, arguments.repeats),
        ]
    tables.report(rows, arguments.output)


if __name__ == "__main__":
    main()
