"""Time of scoring compared with pycocotools, with equal numbers, and time and memory of scoring large sets.

    python -m benchmarks.scoring [--images=N] [--detections=N] [--classes=N] [--large_images=N] [--large_detections=N]
        [--oriented] [--output=JSON]

The protocol is that of SODA-D, which pycocotools gets as the released code gives it: one evaluation of five ranges and
three limits. Of pycocotools only matching and sums are timed, of ours everything from lists of dictionaries to metrics.
The columns "from files" time all of both, from two JSON files to metrics. With `--oriented` the protocol is that of
SODA-A, on 100 to 800 pictures of 350 objects. Every row is measured in another process.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from etils import epath

from benchmarks import common
from cfinet_jax.metrics.curves import curves
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.results import Columns, write_coco
from cfinet_jax.metrics.score import score
from tests import coco_reference

PROTOCOL = PROTOCOLS["soda_d"]
SIDE, OBJECTS = 2000, 30  # pixels of a picture; boxes in it, one in ten of them ignored
CROWD, GROWTH = 350, (100, 200, 400, 800)  # boxes in a picture of SODA-A; how many pictures
NEAR, SPREAD = 0.5, 0.1  # share of the detections that are near an object; by how much of its size they miss it


def draw(images: int, each: int, classes: int, oriented: bool = False) -> tuple[dict, Columns]:
    """Return ground truth, and `each` detections per picture, of which a share is near its boxes."""
    rng, objects = np.random.default_rng(0), CROWD if oriented else OBJECTS
    shape = (images, objects)
    sides = np.sort(rng.uniform(6, 45, (*shape, 2)))[..., ::-1]  # the longer first, as an oriented box wants it
    boxes = np.concatenate([rng.uniform(0, SIDE, (*shape, 2)), sides], 2)
    if oriented:
        boxes = np.concatenate([boxes, rng.uniform(-np.pi / 2, np.pi / 2, (*shape, 1))], 2)
    labels = rng.integers(1, classes + 1, shape)
    ignored = (rng.random(shape) < 0.1) & (not oriented)
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box[:4], "area": box[2] * box[3], "ignore": int(ignore)}
        | ({"rbox": box} if oriented else {})
        for image, of_image in enumerate(zip(labels.tolist(), boxes.tolist(), ignored.tolist(), strict=True))
        for label, box, ignore in zip(*of_image, strict=True)
    ]
    categories = [{"id": key, "name": f"class{key}"} for key in range(1, classes + 1)]
    ground_truth = {"images": [{"id": n} for n in range(images)], "categories": categories, "annotations": annotations}

    image_ids = np.repeat(np.arange(images), each)
    chosen = rng.integers(0, objects, len(image_ids))
    near = np.arange(len(image_ids)) % each < NEAR * each
    found = boxes[image_ids, chosen]
    found[:, :2] += rng.normal(0, SPREAD, (len(found), 2)) * found[:, 2:4]
    found[:, 2:4] *= rng.normal(1, SPREAD, (len(found), 2)).clip(0.5)
    found[:, 4:] += rng.normal(0, SPREAD, found[:, 4:].shape)
    found[~near, :2] = rng.uniform(0, SIDE, (np.sum(~near), 2))
    return ground_truth, Columns(image_ids, labels[image_ids, chosen], found, rng.random(len(found)))


def compare(images: int, each: int, classes: int) -> common.Row:
    """Score with both, from the same lists and then from the same files. Fails if a number differs."""
    ground_truth, found = draw(images, each, classes)
    listed = zip(*(column.tolist() for column in found), strict=True)
    detections = [{"image_id": i, "category_id": c, "bbox": box, "score": s} for i, c, box, s in listed]
    ours, _ = timed(lambda: score(ground_truth, detections, PROTOCOL))
    evaluation = coco_reference.Evaluation(ground_truth, detections, PROTOCOL)
    theirs, expected = timed(lambda: coco_reference.curves(evaluation))
    for mine, reference in zip(curves(ground_truth, detections, PROTOCOL), expected, strict=False):
        np.testing.assert_array_equal(mine, reference)
    with tempfile.TemporaryDirectory() as folder:
        paths = [epath.Path(folder) / name for name in ("truth.json", "found.json")]
        paths[0].write_text(json.dumps(ground_truth))
        write_coco(found, paths[1])
        files = f"--annotations={paths[0]}", f"--detections={paths[1]}"
        command = [sys.executable, "-m", "cfinet_jax.metrics", f"--protocol={PROTOCOL.name}", *files]
        ours_from_files, _ = timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
        theirs_from_files, _ = timed(lambda: coco_reference.curves(
            coco_reference.Evaluation(*(json.loads(path.read_text()) for path in paths), PROTOCOL)
        ))  # fmt: skip
    return {
        "s pycocotools": theirs, "s here": ours, "pycocotools / here": theirs / ours,
        "s pycocotools from files": theirs_from_files, "s here from files": ours_from_files,
    }  # fmt: skip


def score_large(images: int, each: int, classes: int) -> common.Row:
    """Score from arrays."""
    ground_truth, found = draw(images, each, classes)
    blank = dict.fromkeys(("s pycocotools", "s here", "pycocotools / here"), "")
    seconds, _ = timed(lambda: score(ground_truth, found, PROTOCOL))
    return blank | {"s here": seconds, "s pycocotools from files": "", "s here from files": ""}


def score_oriented(images: int, each: int, classes: int) -> common.Row:
    """Score oriented boxes from arrays."""
    ground_truth, found = draw(images, each, classes, oriented=True)
    inputs = peak_memory()
    seconds, _ = timed(lambda: score(ground_truth, found, PROTOCOLS["soda_a"]))
    return {"s": seconds, "ms per picture": 1000 * seconds / images, "MiB of inputs": inputs}


def timed(function: Callable) -> tuple[float, object]:
    """Return the seconds that a function takes, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def peak_memory() -> int:
    """Return the peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def with_memory(measure: Callable[[int, int, int], common.Row], images: int, each: int, classes: int) -> common.Row:
    """Measure; add the peak memory of this process, which includes the inputs."""
    row = measure(images, each, classes)
    return {"images": images, "detections each": each, "classes": classes, **row, "peak MiB": peak_memory()}


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    result = common.parser("scoring", __doc__)
    result.add_argument("--images", type=int, default=1000, help="pictures of the comparison")
    result.add_argument("--detections", type=int, default=300, help="in each of them, all classes together")
    result.add_argument("--classes", type=int, default=10)
    result.add_argument("--large_images", type=int, default=6000, help="pictures of the large set")
    result.add_argument("--large_detections", type=int, default=1000, help="in each of them")
    result.add_argument("--oriented", action="store_true", help="score oriented boxes, with large_detections each")
    return result


def main() -> None:
    """Measure and report."""
    arguments = parser().parse_args()
    each, classes = arguments.large_detections, arguments.classes
    upright = [
        (compare, arguments.images, arguments.detections, classes),
        (score_large, arguments.large_images, each, classes),
        (score_large, arguments.large_images, each, 1),
    ]
    oriented = [(score_oriented, images, each, classes) for images in GROWTH]
    rows = []
    for measurement in oriented if arguments.oriented else upright:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            rows.append(pool.submit(with_memory, *measurement).result())
    common.report(rows, arguments.output)


if __name__ == "__main__":
    main()
