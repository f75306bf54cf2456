"""What streaming saves: working memory and time of the matcher and of the adaptive convolution, both ways.

    python -m benchmarks.streaming [--repeats=N] [--output=JSON]

At once is the same computation without the scan, and must give the same numbers. Memory is what XLA sets aside for
temporary results in the compiled program, on the CPU.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import naive, tables, timing
from cfinet_jax.boxes import anchors
from cfinet_jax.ops import matching
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


def with_gradients(convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Those to features and kernel."""
    return jax.grad(lambda *arguments: jnp.square(convolve(*arguments)).mean(), argnums=(0, 1))


def measure(function: Callable[..., Any], arguments: tuple, repeats: int) -> tuple[Any, float, float]:
    """Result, temporary memory in MiB and median seconds."""
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = timing.median(lambda: jax.block_until_ready(compiled(*arguments)), repeats)
    analysis: Any = compiled.memory_analysis()
    return compiled(*arguments), analysis.temp_size_in_bytes / 2**20, seconds


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

    match, at_once = (partial(f, min_forced=MIN_FORCED) for f in (matching.best_match, naive.best_match))
    return [
        (
            f"matcher, {sum(map(len, grids)):,} anchors x {OBJECTS} objects",
            match,
            at_once,
            (jnp.concatenate(grids), truth),
        ),
        (f"{name}, forward", deformable_conv, naive.deformable_conv, convolution),
        (
            f"{name}, with gradients",
            with_gradients(deformable_conv),
            with_gradients(naive.deformable_conv),
            convolution,
        ),
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
