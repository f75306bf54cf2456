"""SODA-D's whole way on pictures made of others: raw folders, preparation, a short training, evaluation, report.

    python -m benchmarks.soda_d --folder=FOLDER --split train=JSON,IMAGES --split val=... --split test=... [--kills=N]
        [--windows] [--output=JSON] [-- --config.key=value ...]

Writes FOLDER/SODA-D in the folders and the format of the original: pictures of 4000 x 3000 pixels, each composed of
frames of a COCO data set side by side. Prepares it, killed as often as asked for on the way; then trains and evaluates
with configs/sodad.py, of which only what follows -- is changed.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from benchmarks import tables
from cfinet_jax.input.dataset import open_dataset
from cfinet_jax.input.windows import CUT_OFF, boxes_in_window, cut_window
from cfinet_jax.preparation.coco_files import load_coco
from tests.soda import CATEGORIES, IGNORE, describe

REPOSITORY = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 3000, 4000
CELL = (512, 640)  # height and width of a frame's place
PLACES = list(itertools.product(range(0, HEIGHT, CELL[0]), range(0, WIDTH, CELL[1])))  # their corners
PICTURES = {"train": 28, "val": 2, "test": 12}
NUMBERS = {category["name"]: category["id"] for category in CATEGORIES}
CLASSES = {  # of the frames, by their names in small letters, and SODA-D's
    "person": "people",
    "pedestrian": "people",
    "bicycle": "bicycle",
    "cyclist": "rider",
    "motor": "motor",
    **dict.fromkeys(("car", "van", "truck", "bus", "minibus", "othervehicle"), "vehicle"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.soda_d", description=__doc__.partition("\n")[0])
    result.add_argument("--folder", type=Path, required=True, help="for everything that is made; new or empty")
    result.add_argument("--split", action="append", required=True, metavar="SPLIT=JSON,IMAGES", help="of the frames")
    result.add_argument("--kills", type=int, default=0, help="how often preparation is killed")
    result.add_argument("--windows", action="store_true", help="cut the training windows beforehand and train on them")
    result.add_argument("--output", help="JSON file for the result")
    result.add_argument("overrides", nargs="*", help="after --: settings of the training, paths and counts of steps")
    return result


def frames_of(path: Path, folder: Path) -> list[tuple[Path, list[tuple]]]:
    """Every image of a COCO file: its path, and its objects (category of SODA-D, x, y, width, height)."""
    coco = load_coco(epath.Path(path))
    names = {category["id"]: category["name"].lower() for category in coco["categories"]}
    numbers = {key: IGNORE if name == "ignore" else NUMBERS[CLASSES[name]] for key, name in names.items()}
    entries: dict[int, list[tuple]] = {image["id"]: [] for image in coco["images"]}
    for each in coco["annotations"]:
        number = IGNORE if each.get("ignore") or each.get("iscrowd") else numbers[each["category_id"]]
        entries[each["image_id"]].append((number, *each["bbox"]))
    return [(folder / image["file_name"], entries[image["id"]]) for image in coco["images"]]


def compose(frames: list[tuple[Path, list[tuple]]]) -> tuple[np.ndarray, list[tuple]]:
    """A picture of a frame for every place, cut to it, and its entries as those of `tests.soda`.

    Of an object that is mostly cut off, what is left is a region to ignore.
    """
    picture, entries = np.empty((HEIGHT, WIDTH, 3), np.uint8), []
    for (top, left), (path, objects) in zip(PLACES, frames, strict=True):
        place = picture[top : top + CELL[0], left : left + CELL[1]]
        frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
        place[:], (height, width) = cut_window(frame, np.zeros(2, int), place.shape[:2])
        corners = np.array([each[1:] for each in objects], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes, shares = boxes_in_window(corners, np.zeros(2, int), (height, width))
        for (number, *_), (x1, y1, x2, y2), share in zip(objects, boxes.tolist(), shares.tolist(), strict=True):
            if share > 0:
                number = IGNORE if share <= CUT_OFF else number
                entries.append((number, left + x1, top + y1, x2 - x1, y2 - y1))
    return picture, entries


def make(folder: Path, splits: dict[str, list[tuple[Path, list[tuple]]]]) -> None:
    """Writes SODA-D as it is downloaded."""
    (folder / "Images").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    random = np.random.default_rng(0)
    for split, frames in splits.items():
        order = itertools.cycle(random.permutation(len(frames)))
        content = {}
        for number in range(PICTURES[split]):
            picture, entries = compose([frames[next(order)] for _ in PLACES])
            name = f"{split}_{number:05}.jpg"
            cv2.imwrite(str(folder / "Images" / name), picture)
            content[name] = ((HEIGHT, WIDTH), entries)
        (folder / "Annotations" / f"{split}.json").write_text(json.dumps(describe(content)))


def run(command: list[str], patience: float | None = None) -> float:
    """Seconds that a command took; it is killed where it takes longer than its patience, if any is given."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, start_new_session=True)
    try:
        status = process.wait(patience)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        status = process.wait()
    if status != (0 if patience is None else -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return time.perf_counter() - started


def digest_of(data: Path, splits: Iterable[str]) -> str:
    """Of all that a data set's records say, in order; their bytes differ from one preparation to the next."""
    settings = ConfigDict({"name": "sodad", "data_dir": str(data), "source": None})
    digest = hashlib.sha256()
    for split in splits:
        for record in open_dataset(settings, split).source:
            for _, value in sorted((record | record.pop("objects")).items()):
                digest.update(value if isinstance(value, bytes) else np.asarray(value).tobytes())
    return digest.hexdigest()


def main() -> None:
    """Makes, prepares, trains, reports."""
    arguments = parser().parse_args()
    folder = arguments.folder.resolve()
    source, data, workdir = folder / "SODA-D", folder / "prepared", folder / "run"
    splits = {}
    for entry in arguments.split:
        split, _, paths = entry.partition("=")
        path, _, images = paths.partition(",")
        splits.setdefault(split, []).extend(frames_of(Path(path), Path(images)))
    if not source.exists():
        make(source, splits)
    rows = []

    def timed(what: str, command: list[str], patience: float | None = None) -> float:
        rows.append({"step": what, "seconds": run(command, patience)})
        return rows[-1]["seconds"]

    prepare = ["data/prepare.py", "sodad", f"--source={source}", *(["--windows"] if arguments.windows else [])]
    whole = timed("prepare", [*prepare, f"--data_dir={data}"])
    if arguments.kills:
        prepared = [*splits, *(["train_windows"] if arguments.windows else [])]
        first = digest_of(data, prepared)
        shutil.rmtree(data)
        for number in range(1, arguments.kills + 1):
            timed(f"prepare, killed ({number})", [*prepare, f"--data_dir={data}"], whole / (arguments.kills + 1))
        timed("prepare, to the end", [*prepare, f"--data_dir={data}"])
        assert first == digest_of(data, prepared)
    main = ["-m", "cfinet_jax.main", "--config=configs/sodad.py", f"--workdir={workdir}"]
    main += [f"--config.dataset.data_dir={data}", *arguments.overrides]
    main += ["--config.dataset.train_split=train_windows"] if arguments.windows else []
    timed("train, evaluate, report", main)
    metrics = (workdir / "metrics.json").read_text()
    timed("evaluate, report", [*main, "--mode=evaluate"])
    assert (workdir / "metrics.json").read_text() == metrics
    tables.report(rows, arguments.output)


if __name__ == "__main__":
    main()
