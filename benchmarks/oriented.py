"""Oriented boxes: IoU of every pair against a loop over shapely's polygons, and NMS within classes that share boxes.

    python -m benchmarks.oriented [--boxes=N] [--proposals=N] [--repeats=N] [--output=JSON]

The IoU of the same pairs is computed twice, and must be the same. The bars: 20 times as fast as the loop, and NMS in a
second. Ten boxes lie at every object.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import tables, timing
from cfinet_jax.boxes import oriented
from cfinet_jax.ops import nms
from tests.oriented import polygons

SIDE, CLASSES, NEAR = 1200, 9, 10  # network pixels of a picture; boxes at one object
LIMITS = {"min_score": 0.05, "max_overlap": 0.1, "max_detections": 2000}  # of rotated Faster R-CNN on SODA-A
FASTER, SECONDS = 20, 1.0  # the bars: so many times as fast as the loop; seconds of NMS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.oriented", description=__doc__.partition("\n")[0])
    result.add_argument("--boxes", type=int, default=1000, help="compared with as many others")
    result.add_argument("--proposals", type=int, default=2000, help="boxes of the NMS, in nine classes")
    result.add_argument("--repeats", type=int, default=5, help="timed runs of each program; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def draw(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of 6 to 45 pixels at objects anywhere in a picture."""
    objects = rng.uniform(0, SIDE, (-(-count // NEAR), 2))
    centres = np.repeat(objects, NEAR, 0)[:count] + rng.normal(0, 3, (count, 2))
    sides = np.sort(rng.uniform(6, 45, (count, 2)))[:, ::-1]
    angles = rng.uniform(-np.pi / 2, np.pi / 2, (count, 1))
    return np.concatenate([centres, sides, angles], 1).astype(np.float32)


def loop(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every pair, one pair after the other; polygons are made before the loop."""
    first, second = polygons(a), polygons(b)
    result = np.empty((len(a), len(b)))
    for i, x in enumerate(first):
        for j, y in enumerate(second):
            shared = x.intersection(y).area
            result[i, j] = shared / (x.area + y.area - shared)
    return result


def main() -> None:
    """Measures and reports."""
    arguments = parser().parse_args()
    jax.config.update("jax_platforms", "cpu")
    rng = np.random.default_rng(0)
    a, b = draw(rng, arguments.boxes), draw(rng, arguments.boxes)
    b[::2] = a[::2]
    b[::2, :2] += rng.normal(0, 3, b[::2, :2].shape)  # half of them near one of the others
    iou = jax.jit(oriented.iou)
    np.testing.assert_allclose(iou(a, b), loop(a, b), atol=1e-4)

    boxes = jnp.asarray(draw(rng, arguments.proposals))
    scores = jnp.asarray(rng.random((len(boxes), CLASSES)), jnp.float32)
    suppress = jax.jit(partial(nms.class_wise_shared, **LIMITS, similarity=oriented.iou))
    programs = {
        "IoU": lambda: jax.block_until_ready(iou(a, b)),
        "NMS": lambda: jax.block_until_ready(suppress(boxes, scores, jnp.ones(len(boxes), bool))),
    }
    seconds = timing.medians(programs, arguments.repeats)
    of_loop = timing.median(lambda: loop(a, b), 1)
    rows = [
        {
            "computation": name,
            "s here": seconds[key],
            "processor s here": processor_seconds(programs[key], arguments.repeats),
            "s shapely": shapelys,
            "bar, s": bar,
            "time / bar": seconds[key] / bar,
        }
        for key, name, shapelys, bar in (
            ("IoU", f"IoU, {len(a):,} x {len(b):,} boxes", of_loop, of_loop / FASTER),
            ("NMS", f"NMS, {len(boxes):,} boxes x {CLASSES} classes", "n/a", SECONDS),
        )
    ]
    tables.report(rows, arguments.output)


def processor_seconds(program: Callable[[], Any], repeats: int) -> float:
    """What a program takes of all cores together, however busy the machine is with others."""
    started = time.process_time()
    for _ in range(repeats):
        program()
    return (time.process_time() - started) / repeats


if __name__ == "__main__":
    main()
