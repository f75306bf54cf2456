"""The wait before the first training step: what it takes to compile it, and to start with a filled cache.

    python -m benchmarks.compilation [--config=FILE[:VARIANT]] [--batch=1] [--repeats=N] [--output=JSON]

Each measurement is a process of its own. The step is traced, lowered and compiled without a cache. Then the program,
`python -m cfinet_jax.main`, is started on generated scenes with weights made up for the backbone, first with an empty
cache and then with the one it has left; it ends when the first step has been dispatched.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks import drawn, experiments, tables
from cfinet_jax import pretrained
from cfinet_jax.build import build
from cfinet_jax.restore import state_shapes
from cfinet_jax.runtime import mesh
from cfinet_jax.studies import compile
from cfinet_jax.training import make_step
from tests import tiny

BARS = {"trace, lower and compile": 45, "warm start": 20}  # seconds of the full size on two cores
PROGRAM = """
import os, time
from cfinet_jax import main, training

def dispatched(*_):
    print("dispatched at", time.time(), flush=True)
    os._exit(0)

training.Monitor.follow = dispatched
main.main()
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.compilation", description=__doc__.partition("\n")[0])
    result.add_argument("--config", default="configs/sodad.py", help="the experiment: FILE or FILE:VARIANT")
    result.add_argument("--batch", type=int, default=1, help="images a step")
    result.add_argument("--repeats", type=int, default=3, help="processes of each kind; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def stages(name: str, batch: int) -> dict[str, float]:
    """Seconds to trace, lower and compile a training step, in a process that has not compiled anything."""
    jax.config.update("jax_enable_compilation_cache", False)
    config, over = experiments.load(name), mesh.make_mesh()
    config.dataset.batch_size = batch
    detector, sgd = build(config, drawn.CLASSES)
    state = state_shapes(config, detector, over)
    key = mesh.shapes(jax.eval_shape(lambda: jax.random.key(0)), over, mesh.EVERYWHERE)
    shipped: Any = compile.shipped_shapes(config.dataset, "batch_size", over)
    moments = [time.perf_counter()]
    step: Any = make_step(config, detector, sgd, over)
    for stage in (lambda step: step.trace(state, shipped, key), lambda step: step.lower(), lambda step: step.compile()):
        step = stage(step)
        moments.append(time.perf_counter())
    return dict(zip(("trace", "lower", "compile"), np.diff(moments).tolist(), strict=True))


def write_weights(name: str, path: Path) -> None:
    """A file with all of the backbone."""
    config = experiments.load(name)
    detector, _ = build(config, drawn.CLASSES)
    state = state_shapes(config, detector, mesh.make_mesh())
    shapes = pretrained.named({"params": state.params, "batch_stats": state.batch_stats})
    np.savez(path, **{name: np.ones(x.shape, x.dtype) for name, x in shapes.items() if "/backbone/" in name})


def starts(name: str, batch: int, folder: Path) -> Iterator[float]:
    """Seconds from starting the program to its first step; the first time with an empty cache."""
    write_weights(name, folder / "weights.npz")
    command = [sys.executable, "-c", PROGRAM, f"--config={name}", f"--config.training.pretrained={folder}/weights.npz"]
    dataset = {"name": "scenes", "data_dir": tiny.prepare_scenes(epath.Path(folder, "prepared")), "eval_split": "test"}
    command += [f"--config.dataset.{key}={value}" for key, value in (dataset | {"batch_size": batch}).items()]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    while True:
        with tempfile.TemporaryDirectory(dir=folder) as workdir:
            started = time.time()
            process = subprocess.run(
                [*command, f"--workdir={workdir}"], env=environment, stdout=subprocess.PIPE, text=True
            )
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
        yield float(process.stdout.split()[-1]) - started


def main() -> None:
    """Measures and reports."""
    options = parser().parse_args()
    seconds: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(stages, options.config, options.batch).result()
        for stage, taken in (found | {"trace, lower and compile": sum(found.values())}).items():
            seconds.setdefault(stage, []).append(taken)
    with tempfile.TemporaryDirectory() as folder:
        measured = starts(options.config, options.batch, Path(folder))
        seconds["cold start"] = [next(measured)]
        seconds["warm start"] = [next(measured) for _ in range(options.repeats)]
    rows: list[dict[str, Any]] = []
    for what, taken in seconds.items():
        median, bar = statistics.median(taken), BARS.get(what)
        row: dict[str, Any] = {"what": what, "s": median, "s of the first": taken[0]}
        rows.append(row | {"bar, s": bar or "n/a", "time / bar": median / bar if bar else "n/a"})
    tables.report(rows, options.output)


if __name__ == "__main__":
    main()
