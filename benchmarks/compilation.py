"""Wait before the first training step: time to compile it, and to start with an empty and with a filled cache.

    python -m benchmarks.compilation [--config=FILE[:VARIANT]] [--batch=1] [--repeats=N] [--output=JSON]

Each measurement is a separate process. The step is traced, lowered and compiled without a cache. Then the program,
`python -m cfinet_jax.main`, starts on generated scenes with made-up weights for the backbone, first with an empty cache
and then with the one that it filled; it ends when the first step has been dispatched.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks import common, drawn
from cfinet_jax import pretrained
from cfinet_jax.build import build
from cfinet_jax.restore import state_shapes
from cfinet_jax.runtime import mesh
from cfinet_jax.studies import compile
from cfinet_jax.training import make_step
from tests import tiny

BARS = {"trace, lower and compile": 45, "warm start": 20}  # seconds, for the full size on two cores
PROGRAM = """
import os, time
from cfinet_jax import main, training

def dispatched(*_):
    print("dispatched at", time.time(), flush=True)
    os._exit(0)

training.Monitor.follow = dispatched
main.main()
"""


def stages(name: str, batch: int) -> dict[str, float]:
    """Return the seconds to trace, lower and compile a training step, in a process that has not compiled anything."""
    jax.config.update("jax_enable_compilation_cache", False)
    config, over = common.load_config(name), mesh.make_mesh()
    config.dataset.batch_size = batch
    detector, sgd = build(config, drawn.CLASSES)
    shapes = compile.step_shapes(config, detector, over)
    moments = [time.perf_counter()]
    step: Any = make_step(config, detector, sgd, over)
    for stage in (lambda step: step.trace(*shapes), lambda step: step.lower(), lambda step: step.compile()):
        step = stage(step)
        moments.append(time.perf_counter())
    return dict(zip(("trace", "lower", "compile"), np.diff(moments).tolist(), strict=True))


def write_weights(name: str, path: Path) -> None:
    """Write a file with weights for all of the backbone."""
    config = common.load_config(name)
    detector, _ = build(config, drawn.CLASSES)
    state = state_shapes(config, detector, mesh.make_mesh())
    shapes = pretrained.named({"params": state.params, "batch_stats": state.batch_stats})
    np.savez(path, **{name: np.ones(x.shape, x.dtype) for name, x in shapes.items() if "/backbone/" in name})


def starts(name: str, batch: int, folder: Path) -> Iterator[float]:
    """Yield the seconds from starting the program to its first step; the first time with an empty cache."""
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


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    result = common.parser("compilation", __doc__, repeats=3)
    result.add_argument("--config", default="configs/sodad.py", help="FILE or FILE:VARIANT")
    result.add_argument("--batch", type=int, default=1, help="images per step")
    return result


def main() -> None:
    """Measure and report."""
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
    rows: list[common.Row] = []
    for what, taken in seconds.items():
        median, bar = statistics.median(taken), BARS.get(what)
        row: common.Row = {"what": what, "s": median, "s of the first": taken[0]}
        rows.append(row | {"bar, s": bar or "n/a", "time / bar": median / bar if bar else "n/a"})
    common.report(rows, options.output)


if __name__ == "__main__":
    main()
