"""What streaming saves: working memory and time of the matcher and of the adaptive convolution, both ways.

    python -m benchmarks.streaming [--repeats=N] [--output=JSON]

At once is the same computation without the scan, and must give the same numbers. Memory is what XLA sets aside for
temporary results in the compiled program, on the CPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import tables
from cfinet_jax.boxes import anchors, horizontal
from cfinet_jax.ops import bilinear, matching
from cfinet_jax.ops.deformable import deformable_conv, tap_points
from cfinet_jax.structures import GroundTruth

SIDE, OBJECTS, MIN_FORCED = 1216, 500, 0.3  # network pixels of a SODA-D patch; boxes in it
ROWS, CHANNELS, STRIDE = 304, 64, 4  # its finest map, thinner than the paper's 256 channels


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__.partition("\n")[0])
    result.add_argument("--repeats", type=int, default=3, help="timed runs of each program; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def match_at_once(boxes: jax.Array, truth: GroundTruth) -> matching.Match:
    """`matching.best_match` on the whole matrix."""
    overlaps = jnp.where(truth.is_object, horizontal.iou(boxes, truth.boxes), -1.0)
    of_object = overlaps.max(0)
    is_best = (overlaps == of_object) & (of_object >= MIN_FORCED) & truth.is_object
    last = overlaps.shape[1] - 1 - jnp.argmax(is_best[:, ::-1], 1)
    best = jnp.maximum(overlaps.max(1), 0.0)
    return matching.Match(best, jnp.argmax(overlaps, 1), jnp.where(is_best.any(1), last, -1))


def convolve_at_once(features: jax.Array, kernel: jax.Array, points: jax.Array) -> jax.Array:
    """`deformable_conv` with all nine taps read before the product."""
    rows, columns, channels = features.shape

    def read(points: jax.Array) -> jax.Array:
        cells, weights = bilinear.corners(points, jnp.array([rows, columns]))
        return bilinear.read(features.reshape(-1, channels), cells[..., 0] * columns + cells[..., 1], weights)

    taps = jax.vmap(read)(points)
    return jnp.einsum("tci,tio->co", taps, kernel.reshape(9, channels, -1)).reshape(rows, columns, -1)


def with_gradients(convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Those to features and kernel."""
    return jax.grad(lambda *arguments: jnp.square(convolve(*arguments)).mean(), argnums=(0, 1))


def measure(function: Callable[..., Any], arguments: tuple, repeats: int) -> tuple[Any, float, float]:
    """Result, temporary memory in MiB and median seconds."""
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    analysis: Any = compiled.memory_analysis()
    return result, analysis.temp_size_in_bytes / 2**20, statistics.median(seconds[1:])


def cases() -> list[tuple[str, Callable[..., Any], Callable[..., Any], tuple]]:
    """Name, streamed, at once, arguments."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, SIDE - 48, (OBJECTS, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 48, (OBJECTS, 2))], 1).astype(np.float32)
    truth = GroundTruth(jnp.asarray(boxes), jnp.zeros(OBJECTS, int), jnp.ones(OBJECTS, bool), jnp.zeros(OBJECTS, bool))
    grids = [anchors.anchor_grid((SIDE // stride,) * 2, stride, 2.0, (1.0,)) for stride in (4, 8, 16, 32)]
    moved = jnp.asarray(grids[0] + rng.normal(0, 2, grids[0].shape), jnp.float32)
    features = jnp.asarray(rng.normal(size=(ROWS, ROWS, CHANNELS)), jnp.float32)
    kernel = jnp.asarray(rng.normal(0, 0.1, (3, 3, CHANNELS, CHANNELS)), jnp.float32)
    convolution = (features, kernel, tap_points(moved, STRIDE))
    name = f"adaptive convolution, {ROWS} x {ROWS} x {CHANNELS}"

    match = partial(matching.best_match, min_forced=MIN_FORCED)
    return [
        (
            f"matcher, {sum(map(len, grids)):,} anchors x {OBJECTS} objects",
            match,
            match_at_once,
            (jnp.concatenate(grids), truth),
        ),
        (f"{name}, forward", deformable_conv, convolve_at_once, convolution),
        (f"{name}, with gradients", with_gradients(deformable_conv), with_gradients(convolve_at_once), convolution),
    ]


def main() -> None:
    """Measures and reports."""
    arguments = parser().parse_args()
    jax.config.update("jax_platforms", "cpu")
    rows = []
    for name, streamed, at_once, inputs in cases():
        first, memory, seconds = measure(streamed, inputs, arguments.repeats)
        second, memory_at_once, seconds_at_once = measure(at_once, inputs, arguments.repeats)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), first, second)
        row = {"computation": name, "MiB streamed": round(memory), "MiB at once": round(memory_at_once)}
        row |= {"memory, streamed / at once": memory / memory_at_once, "s streamed": seconds}
        rows.append(row | {"s at once": seconds_at_once, "time, streamed / at once": seconds / seconds_at_once})
    tables.report(rows, arguments.output)


if __name__ == "__main__":
    main()
