"""Speed and memory of preparing windows, compared with decoding pictures and encoding windows and nothing else.

    python -m benchmarks.preparation [--images=N] [--small=N] [--repeats=N] [--output=JSON]

The pictures are drawn, 4000 x 3000 pixels large, with as many objects and regions as SODA-D has. Both sides decode the
same JPEG files and encode the same windows in as many threads. Preparing is all that `data/prepare.py sodad --windows`
does: it also reads annotations, finds windows and their boxes, paints, and writes windows and records. The growth of
memory is measured with many small pictures, each time in another process. Linux only.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from benchmarks import common, drawn, job
from cfinet_jax.input.dataset import open_dataset
from cfinet_jax.input.windows import training_windows
from cfinet_jax.preparation import builders
from cfinet_jax.preparation.sodad_windows import JPEG_QUALITY, OVERLAP, WINDOW

SMALL = (400, 400)


def origins(coco: dict[str, Any]) -> list[np.ndarray]:
    """Return where the windows of every picture begin."""
    boxes = np.array([entry["bbox"] for entry in coco["annotations"]]).reshape(-1, drawn.LEARNT + drawn.IGNORED, 4)
    boxes[..., 2:] += boxes[..., :2]
    size = (drawn.HEIGHT, drawn.WIDTH)
    return [training_windows(size, of[: drawn.LEARNT], of[drawn.LEARNT :], WINDOW, OVERLAP) for of in boxes]


def bare(source: Path, windows: list[np.ndarray]) -> None:
    """Decode every picture and encode its windows."""

    def decode_and_encode(number: int) -> None:
        picture = cv2.imdecode(np.fromfile(source / "Images" / f"{number}.jpg", np.uint8), cv2.IMREAD_COLOR)
        for row, column in windows[number]:
            window = picture[row : row + WINDOW[0], column : column + WINDOW[1]]
            cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])

    with ThreadPool() as pool:
        pool.map(decode_and_encode, range(len(windows)), chunksize=1)


def prepare(source: Path) -> None:
    """Prepare windows into the folder `prepared` next to the source."""
    settings = {"source": str(source), "data_dir": source.parent / "prepared"}
    builders.prepare(builders.make_builder(builders.Request("sodad", **settings, windows=True)))


def peak_memory(source: Path) -> float:
    """Prepare the same with `data/prepare.py`; return the peak memory in MiB."""
    shutil.rmtree(source.parent / "prepared", ignore_errors=True)
    command = [sys.executable, "data/prepare.py", "sodad", f"--source={source}", "--windows"]
    status, _, peak = job.run([*command, f"--data_dir={source.parent / 'prepared'}"], job.REPOSITORY)
    assert status == 0
    return peak / 2**20


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    result = common.parser("preparation", __doc__, repeats=3)
    result.add_argument("--images", type=int, default=32, help="pictures to cut")
    result.add_argument("--small", type=int, default=1000, help="small pictures to measure memory with, and twice that")
    return result


def main() -> None:
    """Measure times, then memory, and report."""
    arguments = parser().parse_args()
    images, small = arguments.images, arguments.small
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "large", "SODA-D")
        windows = origins(drawn.soda_d(source, images))
        sides = {"prepared": partial(prepare, source), "bare": partial(bare, source, windows)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(1 + arguments.repeats):  # the first round warms up
            for side, function in sides.items():
                shutil.rmtree(source.parent / "prepared", ignore_errors=True)
                os.sync()  # otherwise one side would wait for what the other one wrote
                started = time.perf_counter()
                function()
                times[side].append(time.perf_counter() - started)
        peak = peak_memory(source)
        settings = ConfigDict({"name": "sodad", "data_dir": f"{name}/large/prepared", "source": None})
        cut = [len(record["image"]) for record in open_dataset(settings, "train_windows").source]
        assert len(cut) == sum(map(len, windows))
        peaks = []
        for count in (small, 2 * small):
            drawn.soda_d(Path(name, str(count), "SODA-D"), count, SMALL)
            peaks.append(peak_memory(Path(name, str(count), "SODA-D")))
    median = {side: statistics.median(values[1:]) for side, values in times.items()}
    row: common.Row = {
        "computation": f"{images} pictures of {drawn.HEIGHT} x {drawn.WIDTH}, {len(cut)} windows",
        "threads": os.cpu_count() or 1,
        "windows/s prepared": len(cut) / median["prepared"],
        "windows/s bare": len(cut) / median["bare"],
        "speed, prepared / bare": median["bare"] / median["prepared"],
        "KiB per window": sum(cut) / len(cut) / 1024,
        "peak MiB": peak,
        f"peak MiB, {small} and {2 * small} small pictures": " and ".join(f"{each:.0f}" for each in peaks),
        "more MiB per 1,000 pictures": (peaks[1] - peaks[0]) / small * 1000,
    }
    common.report([row], arguments.output)


if __name__ == "__main__":
    main()
