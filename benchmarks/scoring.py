"""Scoring against pycocotools: time, with the same numbers, and the memory of a large set from arrays.

    python -m benchmarks.scoring [--images=N] [--detections=N] [--classes=N] [--large_images=N]
        [--large_detections=N] [--oriented] [--output=JSON]

By the protocol of SODA-D, which pycocotools is given as the released code gives it: one evaluation of five ranges and
three limits. Only its matching and its sums are timed; of ours everything is, from lists of dictionaries to metrics.
The columns "from files" time everything of both, from two JSON files on.
With `--oriented` it is the protocol of SODA-A instead, on sets from 100 to 800 pictures of 350 objects.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from etils import epath

from benchmarks import tables
from cfinet_jax.metrics.curves import curves
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.results import Columns, write_coco
from cfinet_jax.metrics.score import score
from tests import coco_reference

PROTOCOL = PROTOCOLS["soda_d"]
SIDE, OBJECTS = 2000, 30  # pixels of a picture; boxes in it, one in ten of them ignored
CROWD, GROWTH = 350, (100, 200, 400, 800)  # boxes in a picture of SODA-A; how many pictures
NEAR, SPREAD = 0.5, 0.1  # share of the detections that are near an object; by how much of its size they miss it


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.partition("\n")[0])
    result.add_argument("--images", type=int, default=1000, help="pictures of the comparison")
    result.add_argument("--detections", type=int, default=300, help="in each of them, all classes together")
    result.add_argument("--classes", type=int, default=10)
    result.add_argument("--large_images", type=int, default=6000, help="pictures of the large set")
    result.add_argument("--large_detections", type=int, default=1000, help="in each of them")
    result.add_argument("--oriented", action="store_true", help="score oriented boxes, with large_detections each")
    result.add_argument("--output", help="JSON file for the result")
    return result


def case(images: int, each: int, classes: int) -> tuple[dict, Columns]:
    """Ground truth, and detections of which some are near its boxes."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, SIDE, (images, OBJECTS, 2)), rng.uniform(6, 45, (images, OBJECTS, 2))], 2)
    labels = rng.integers(1, classes + 1, (images, OBJECTS))
    ignored = rng.random((images, OBJECTS)) < 0.1
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "ignore": int(ignore)}
        for image, of_image in enumerate(zip(labels.tolist(), boxes.tolist(), ignored.tolist(), strict=True))
        for label, box, ignore in zip(*of_image, strict=True)
    ]
    categories = [{"id": key, "name": f"class{key}"} for key in range(1, classes + 1)]
    ground_truth = {"images": [{"id": n} for n in range(images)], "categories": categories, "annotations": annotations}

    image_ids = np.repeat(np.arange(images), each)
    chosen = rng.integers(0, OBJECTS, len(image_ids))
    near = np.arange(len(image_ids)) % each < NEAR * each
    found = boxes[image_ids, chosen]
    found[:, :2] += rng.normal(0, SPREAD, (len(found), 2)) * found[:, 2:]
    found[:, 2:] *= rng.normal(1, SPREAD, (len(found), 2)).clip(0.5)
    found[~near, :2] = rng.uniform(0, SIDE, (np.sum(~near), 2))
    return ground_truth, Columns(image_ids, labels[image_ids, chosen], found, rng.random(len(found)))


def compare(images: int, each: int, classes: int) -> dict[str, str | float | int]:
    """Both ways, from the same lists."""
    ground_truth, found = case(images, each, classes)
    listed = zip(*(column.tolist() for column in found), strict=True)
    detections = [{"image_id": i, "category_id": c, "bbox": box, "score": s} for i, c, box, s in listed]
    started = time.perf_counter()
    score(ground_truth, detections, PROTOCOL)
    ours = time.perf_counter() - started
    evaluation = coco_reference.Evaluation(ground_truth, detections, PROTOCOL)
    started = time.perf_counter()
    expected = coco_reference.curves(evaluation)
    theirs = time.perf_counter() - started
    for mine, reference in zip(curves(ground_truth, detections, PROTOCOL), expected, strict=False):
        np.testing.assert_array_equal(mine, reference)
    return {"s pycocotools": theirs, "s here": ours, "pycocotools / here": theirs / ours} | compare_files(
        ground_truth, found
    )


def compare_files(ground_truth: dict, found: Columns) -> dict[str, str | float | int]:
    """Time both from JSON files to metrics; here it is the command, with its start."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [epath.Path(folder) / name for name in ("truth.json", "found.json")]
        paths[0].write_text(json.dumps(ground_truth))
        write_coco(found, paths[1])
        files = f"--annotations={paths[0]}", f"--detections={paths[1]}"
        command = [sys.executable, "-m", "cfinet_jax.metrics", f"--protocol={PROTOCOL.name}", *files]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ours = time.perf_counter() - started
        started = time.perf_counter()
        coco_reference.curves(coco_reference.Evaluation(*(json.loads(path.read_text()) for path in paths), PROTOCOL))
        theirs = time.perf_counter() - started
    return {"s pycocotools from files": theirs, "s here from files": ours}


def score_large(images: int, each: int, classes: int) -> dict[str, str | float | int]:
    """From arrays alone."""
    ground_truth, found = case(images, each, classes)
    started = time.perf_counter()
    score(ground_truth, found, PROTOCOL)
    blank = dict.fromkeys(("s pycocotools from files", "s here from files"), "")
    return {"s pycocotools": "", "s here": time.perf_counter() - started, "pycocotools / here": ""} | blank


def oriented_case(images: int, each: int, classes: int) -> tuple[dict, Columns]:
    """The same with boxes at all angles, `CROWD` in a picture."""
    rng = np.random.default_rng(0)
    low, sides = rng.uniform(0, SIDE, (images, CROWD, 2)), np.sort(rng.uniform(6, 45, (images, CROWD, 2)))[..., ::-1]
    boxes = np.concatenate([low, sides, rng.uniform(-np.pi / 2, np.pi / 2, (images, CROWD, 1))], 2)
    labels = rng.integers(1, classes + 1, (images, CROWD))
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box[:4], "rbox": box}
        for image, of_image in enumerate(zip(labels.tolist(), boxes.tolist(), strict=True))
        for label, box in zip(*of_image, strict=True)
    ]
    categories = [{"id": key, "name": f"class{key}"} for key in range(1, classes + 1)]
    ground_truth = {"images": [{"id": n} for n in range(images)], "categories": categories, "annotations": annotations}

    image_ids = np.repeat(np.arange(images), each)
    chosen = rng.integers(0, CROWD, len(image_ids))
    near = rng.random(len(image_ids)) < NEAR
    found = boxes[image_ids, chosen]
    found[:, :2] += rng.normal(0, SPREAD, (len(found), 2)) * found[:, 2:4]
    found[:, 2:4] *= rng.normal(1, SPREAD, (len(found), 2)).clip(0.5)
    found[:, 4] += rng.normal(0, SPREAD, len(found))
    found[~near, :2] = rng.uniform(0, SIDE, (np.sum(~near), 2))
    return ground_truth, Columns(image_ids, labels[image_ids, chosen], found, rng.random(len(found)))


def score_oriented(images: int, each: int, classes: int) -> dict[str, str | float | int]:
    """From arrays, and what the inputs alone take."""
    ground_truth, found = oriented_case(images, each, classes)
    inputs = peak_memory()
    started = time.perf_counter()
    score(ground_truth, found, PROTOCOLS["soda_a"])
    taken = time.perf_counter() - started
    return {"s": taken, "ms per picture": 1000 * taken / images, "MiB of inputs": inputs}


def peak_memory() -> int:
    """Of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def with_memory(
    measure: Callable[[int, int, int], dict[str, str | float | int]], images: int, each: int, classes: int
) -> dict[str, str | float | int]:
    """What a measurement says, with the peak memory of the process that makes it, its inputs included."""
    row = measure(images, each, classes)
    return {"images": images, "detections each": each, "classes": classes, **row, "peak MiB": peak_memory()}


def main() -> None:
    """Measures, each in a process of its own, and reports."""
    arguments = parser().parse_args()
    each, classes = arguments.large_detections, arguments.classes
    upright = (
        (compare, arguments.images, arguments.detections, classes),
        (score_large, arguments.large_images, each, classes),
        (score_large, arguments.large_images, each, 1),
    )
    oriented = [(score_oriented, images, each, classes) for images in GROWTH]
    rows = []
    for measure, images, each, classes in oriented if arguments.oriented else upright:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            rows.append(pool.submit(with_memory, measure, images, each, classes).result())
    tables.report(rows, arguments.output)


if __name__ == "__main__":
    main()
