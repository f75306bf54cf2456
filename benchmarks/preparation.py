"""What preparing windows costs beside the decoding and encoding that nobody can avoid, in time and in memory.

    python -m benchmarks.preparation [--images=N] [--small=N] [--repeats=N] [--output=JSON]

Drawn pictures of 4000 x 3000 pixels with objects and regions as many as SODA-D has. Both sides decode the same JPEG
files and encode the same windows in as many threads. Preparing is the whole of `data/prepare.py sodad --windows` with
its modules loaded: it also reads annotations, finds windows and their boxes, paints, and writes windows and records.
How memory grows is measured with many small pictures, in processes of their own.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from benchmarks import tables
from cfinet_jax.input.dataset import open_dataset
from cfinet_jax.input.windows import training_windows
from cfinet_jax.preparation import builders
from cfinet_jax.preparation.sodad_windows import JPEG_QUALITY, OVERLAP, WINDOW

HEIGHT, WIDTH = 3000, 4000
SMALL = (400, 400)
OBJECTS, REGIONS = 11, 4  # per picture
SPREAD = (1200, 1600)  # they stand together: about six windows a picture, as SODA-D's, with 58,023 to train on


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.preparation", description=__doc__.partition("\n")[0])
    result.add_argument("--images", type=int, default=32, help="pictures to cut")
    result.add_argument("--small", type=int, default=1000, help="small pictures to measure memory with, and twice that")
    result.add_argument("--repeats", type=int, default=3, help="timed runs of each side; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def draw(source: Path, count: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    """SODA-D's folders with a split `train` of pictures with objects anywhere; what stands in its JSON file."""
    (height, width), rng, annotations = size, np.random.default_rng(0), []
    for folder in ("Images", "Annotations"):
        (source / folder).mkdir(parents=True)
    for number in range(count):
        coarse = rng.integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(source / "Images" / f"{number}.jpg"), picture)
        spread = np.minimum(SPREAD, size)[::-1]
        corner = rng.uniform(0, np.subtract((width, height), spread))
        for category, extent in [(1, 20)] * OBJECTS + [(2, 150)] * REGIONS:
            box = [*(corner + rng.uniform(0, spread - extent)).tolist(), extent, extent]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
            annotations.append(entry | {"area": extent**2, "ignore": int(category == 2)})
    images = [{"id": n, "file_name": f"{n}.jpg", "height": height, "width": width} for n in range(count)]
    categories = [{"id": 1, "name": "object"}, {"id": 2, "name": "ignore"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (source / "Annotations" / "train.json").write_text(json.dumps(coco))
    return coco


def origins(coco: dict[str, Any]) -> list[np.ndarray]:
    """Where the windows of every picture begin."""
    per_picture = OBJECTS + REGIONS
    boxes = np.array([entry["bbox"] for entry in coco["annotations"]]).reshape(-1, per_picture, 4)
    boxes[..., 2:] += boxes[..., :2]
    return [training_windows((HEIGHT, WIDTH), of[:OBJECTS], of[OBJECTS:], WINDOW, OVERLAP) for of in boxes]


def bare(source: Path, windows: list[np.ndarray]) -> None:
    """Decodes every picture and encodes its windows."""

    def decode_and_encode(number: int) -> None:
        picture = cv2.imdecode(np.fromfile(source / "Images" / f"{number}.jpg", np.uint8), cv2.IMREAD_COLOR)
        for row, column in windows[number]:
            window = picture[row : row + WINDOW[0], column : column + WINDOW[1]]
            cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])

    with ThreadPool() as pool:
        pool.map(decode_and_encode, range(len(windows)), chunksize=1)


def prepared(source: Path) -> None:
    """The same by `data/prepare.py`, beside the source."""
    settings = {"source": str(source), "data_dir": source.parent / "prepared"}
    builders.prepare(builders.make_builder(builders.Request("sodad", **settings, windows=True)))


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak_memory(source: Path) -> float:
    """MiB that this process has held at most, when it has prepared."""
    prepared(source)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024  # `resource` would count what the parent held, too


def measure_memory(source: Path) -> float:
    """The peak memory of preparing, in a process of its own."""
    shutil.rmtree(source.parent / "prepared", ignore_errors=True)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(peak_memory, source).result()


def main() -> None:
    """Measures the two in turns, then the memory, and reports."""
    arguments = parser().parse_args()
    images, small = arguments.images, arguments.small
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "large", "SODA-D")
        windows = origins(draw(source, images))
        sides = {"prepared": partial(prepared, source), "bare": partial(bare, source, windows)}
        times = {side: [] for side in sides}
        for _ in range(1 + arguments.repeats):
            for side, function in sides.items():
                shutil.rmtree(source.parent / "prepared", ignore_errors=True)
                os.sync()  # or one side would wait for the disk with what the other wrote
                times[side].append(seconds(function))
        peak = measure_memory(source)
        settings = ConfigDict({"name": "sodad", "data_dir": f"{name}/large/prepared", "source": None})
        cut = [len(record["image"]) for record in open_dataset(settings, "train_windows").source]
        assert len(cut) == sum(map(len, windows))
        peaks = []
        for count in (small, 2 * small):
            draw(Path(name, str(count), "SODA-D"), count, SMALL)
            peaks.append(measure_memory(Path(name, str(count), "SODA-D")))
    median = {side: statistics.median(values[1:]) for side, values in times.items()}  # the first is to warm up
    row = {
        "computation": f"{images} pictures of {HEIGHT} x {WIDTH}, {len(cut)} windows",
        "threads": os.cpu_count() or 1,
        "windows/s prepared": len(cut) / median["prepared"],
        "windows/s bare": len(cut) / median["bare"],
        "speed, prepared / bare": median["bare"] / median["prepared"],
        "KiB per window": sum(cut) / len(cut) / 1024,
        "peak MiB": peak,
        f"peak MiB, {small} and {2 * small} small pictures": " and ".join(f"{each:.0f}" for each in peaks),
        "more MiB per 1,000 pictures": (peaks[1] - peaks[0]) / small * 1000,
    }
    tables.report([row], arguments.output)


if __name__ == "__main__":
    main()
