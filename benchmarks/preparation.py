"""What preparing windows costs beside the decoding and encoding that nobody can avoid.

    python -m benchmarks.preparation [--images=N] [--repeats=N] [--output=JSON]

Drawn pictures of 4000 x 3000 pixels with objects and regions as many as SODA-D has. Both sides decode the same JPEG
files and encode the same windows in as many threads; preparing also finds the windows and their boxes, paints, and
writes the files.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from etils import epath

from benchmarks import tables
from cfinet_jax.slicing import cut_window
from data.coco.annotations import Split, record
from data.sodad.windows import JPEG_QUALITY, WINDOW, cut_windows, origins_in

HEIGHT, WIDTH = 3000, 4000
OBJECTS, REGIONS = 11, 4  # per picture


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.preparation", description=__doc__.partition("\n")[0])
    result.add_argument("--images", type=int, default=32, help="pictures to cut")
    result.add_argument("--repeats", type=int, default=3, help="timed runs of each side; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def draw(folder: epath.Path, count: int) -> Split:
    """A split of pictures with objects anywhere."""
    rng, records = np.random.default_rng(0), []
    for number in range(count):
        coarse = rng.integers(0, 255, (HEIGHT // 5, WIDTH // 5, 3), dtype=np.uint8)
        name = f"{number}.jpg"
        cv2.imwrite(str(folder / name), cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
        corners = rng.uniform(0, (WIDTH - 200, HEIGHT - 200), (OBJECTS + REGIONS, 2))
        sides = np.where(np.arange(len(corners)) < OBJECTS, 20, 150)[:, None]
        labels = [0] * OBJECTS + [-1] * REGIONS
        objects = [
            {"bbox": tuple(box), "label": label, "ignore": label < 0, "iscrowd": False, "area": 400.0, "id": 1}
            for box, label in zip(np.hstack([corners, corners + sides]).tolist(), labels, strict=True)
        ]
        records.append(record({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}, folder, objects))
    (folder / "train.json").write_text("drawn")
    return Split(records, {1: "object"}, {}, (folder / "train.json",))


def bare(train: Split) -> int:
    """Decodes every picture and encodes its windows; their number."""

    def decode_and_encode(image_and_origins: tuple[dict[str, Any], np.ndarray]) -> int:
        image, origins = image_and_origins
        picture = cv2.imdecode(np.fromfile(image["path"], np.uint8), cv2.IMREAD_COLOR)
        for origin in origins:
            window = cut_window(picture, origin, WINDOW)[0]
            cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return len(origins)

    images = [(image, origins_in(image)) for image in train.records]
    with ThreadPool() as pool:
        return sum(pool.imap(decode_and_encode, images))


def prepared(train: Split, folder: epath.Path) -> int:
    """The same by `cut_windows`, into a folder that is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    return len(cut_windows(train, folder).records)


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Measures the two in turns, and reports."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name)
        train = draw(folder, arguments.images)
        sides = {"prepared": lambda: prepared(train, folder / "windows"), "bare": lambda: bare(train)}
        windows = sides["prepared"]()
        assert windows == sides["bare"]()
        times = {side: [] for side in sides}
        for _ in range(arguments.repeats):
            for side, function in sides.items():
                times[side].append(seconds(function))
        size = sum(file.stat().st_size for file in Path(name, "windows").rglob("*.jpg"))
    median = {side: statistics.median(values) for side, values in times.items()}
    row = {
        "computation": f"{arguments.images} pictures of {HEIGHT} x {WIDTH}, {windows} windows",
        "threads": os.cpu_count() or 1,
        "windows/s prepared": windows / median["prepared"],
        "windows/s bare": windows / median["bare"],
        "time, prepared / bare": median["prepared"] / median["bare"],
        "KiB per window": size / windows / 1024,
    }
    tables.report([row], arguments.output)


if __name__ == "__main__":
    main()
