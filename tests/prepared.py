"""Small data sets for tests of preparation, and the command that prepares them."""

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
from ml_collections import ConfigDict

from cfinet_jax.input import dataset
from cfinet_jax.preparation import __main__ as prepare

ROOT = Path(__file__).parents[1]
KILLED = """
import os, pkgutil, signal, sys
from unittest import mock
from cfinet_jax.preparation import __main__ as prepare

name, calls = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
function, done = pkgutil.resolve_name(name), []
def die_after_some(*arguments):
    if len(done) == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(arguments)
    return function(*arguments)
one_thread = mock.patch("cfinet_jax.preparation.checked_pictures.MOST_THREADS", 1)
with mock.patch(name, die_after_some), one_thread:
    prepare.main()
"""


def draw(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Write a picture of noise of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1])  # `imwrite` crashes on a path that is not UTF-8


def coco(images: dict[str, tuple[int, int]], boxes: Iterable[dict], classes: Iterable[str] = ("car",)) -> dict:
    """Return the content of a COCO file: sizes of images by file name, with ids from 1, as have the classes."""
    described = [
        {"id": n, "file_name": name, "height": height, "width": width}
        for n, (name, (height, width)) in enumerate(images.items(), 1)
    ]
    annotations = [{"id": n, "image_id": 1, "category_id": 1} | box for n, box in enumerate(boxes, 1)]
    categories = [{"id": n, "name": name} for n, name in enumerate(classes, 1)]
    return {"images": described, "annotations": annotations, "categories": categories}


def write(path: Path, content: dict) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def call(kind: str, source: Path, *others: str, to: Path | None = None) -> tuple[int, str, str]:
    """Prepare a source into `to`, or a folder `prepared` beside it; return status, output and errors."""
    return command(kind, f"--source={source}", f"--data_dir={to or source.parent / 'prepared'}", *others)


def command(*arguments: str) -> tuple[int, str, str]:
    """Run `data/prepare.py` in this process; return its status, output and errors."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["prepare.py", *arguments]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        status = prepare.main()
    return status, output.getvalue(), errors.getvalue()


def kill(function: str, calls: int, *arguments: str) -> None:
    """Run `data/prepare.py` in a process that is killed when it has called a function so many times."""
    done = subprocess.run([sys.executable, "-c", KILLED, function, str(calls), *arguments], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def settings(name: str, data_dir: Path, source: Path | None = None) -> ConfigDict:
    """Return what opening a data set needs of the section `dataset`."""
    given = {"name": name, "data_dir": str(data_dir), "source": source and str(source), "annotations": None}
    return ConfigDict(given)


def open_split(name: str, data_dir: Path, split: str) -> dataset.Prepared:
    """Open a split of a prepared data set."""
    return dataset.open_dataset(settings(name, data_dir), split)


def accounts(data_dir: Path) -> dict[str, dict]:
    """Return the accounts of the only data set in a folder, by split; none if there is no data set."""
    file = next(data_dir.glob("*/*/account.json"), None)
    return json.loads(file.read_text()) if file else {}
