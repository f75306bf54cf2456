"""What a training step costs on more devices: virtual ones of this CPU, timed, and TPU topologies, compiled.

    python -m benchmarks.scaling [--config=FILE[:VARIANT]] [--images=N] [--devices 1 2 4 8] [--topologies ...]
        [--repeats=N] [--output=JSON]

Weak: as many images on every device; strong: as many in all as the most devices have then. Virtual devices share the
cores of one machine, so that at best a step takes as long as one of one device with all the images: the overhead is
the time beside that. Topologies need libtpu (`pip install libtpu`), and no TPU. Each row is a process of its own;
numbers of memory, operations and collectives are those of one device.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

import jax

from benchmarks import drawn, experiments, tables, timing
from cfinet_jax.build import build
from cfinet_jax.input.sizes import input_shape
from cfinet_jax.runtime import mesh
from cfinet_jax.studies import compile
from cfinet_jax.train_step import create_state


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.partition("\n")[0])
    result.add_argument("--config", default="tests/tiny.py", help="the experiment: FILE or FILE:VARIANT")
    result.add_argument("--images", type=int, default=1, help="on a device")
    result.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8], help="numbers of virtual ones")
    result.add_argument("--topologies", nargs="*", default=["v5e:1x1", "v5e:2x2"], help="to compile for")
    result.add_argument("--repeats", type=int, default=5, help="timed steps; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def compiled(config: Any, over: Any) -> tuple[Any, dict[str, Any]]:
    """The training step over a mesh, and what it costs."""
    jax.config.update("jax_enable_compilation_cache", False)  # it would say nothing of the time to compile
    step = compile.lower(config, drawn.CLASSES, over)["training"]
    cost = compile.cost("training", step)
    costs = {
        "temporaries, MiB": cost.memory.temp_size_in_bytes / 2**20,
        "10^9 operations": cost.operations / 1e9,
        "collectives": len(cost.collectives),
        "MiB in them": sum(each.size for each in cost.collectives) / 2**20,
        "s to compile": cost.seconds,
    }
    return step.compile(), costs  # compiled already


def on_virtual_devices(name: str, images: int, repeats: int) -> tuple[float, dict[str, Any]]:
    """Seconds of a step over all devices of this process, and its costs."""
    config, over = experiments.load(name), mesh.make_mesh()
    config.dataset.update(batch_size=images, eval_batch_size=over.size)
    step, costs = compiled(config, over)
    detector, sgd = build(config, drawn.CLASSES)
    key = mesh.replicate(jax.random.key(0), over)
    state = create_state(key, detector, sgd, input_shape(config.dataset), config.dataset.max_objects)
    batch = mesh.place_batch(drawn.batch(config.dataset), over)
    kept = [mesh.replicate(state, over)]

    def train() -> None:
        kept[0], metrics = step(kept[0], batch, key)
        jax.block_until_ready(metrics)

    return timing.median(train, repeats), costs


def on_topology(name: str, images: int, topology: str) -> tuple[int, dict[str, Any]]:
    """How many chips there are, and the costs of a step with so many images on each."""
    config, over = experiments.load(name), mesh.make_mesh(compile.devices_of(topology))
    config.dataset.update(batch_size=images * over.size, eval_batch_size=over.size)
    return over.size, compiled(config, over)[1]


def apart(devices: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function says in a process of its own with so many virtual devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = mock.patch.dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    with environment, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Measures, compiles and reports."""
    options = parser().parse_args()
    rows: list[dict[str, Any]] = []
    for scaling in ("weak", "strong"):
        first = 0.0
        for devices in options.devices:
            images = options.images * (devices if scaling == "weak" else max(options.devices))
            seconds, costs = apart(devices, on_virtual_devices, options.config, images, options.repeats)
            first = first or seconds / images
            row = {"devices": f"{devices} virtual, {scaling}", "images": images, "s a step": seconds}
            rows.append(row | {"images/s": images / seconds, "overhead": seconds / images / first} | costs)
            print(rows[-1], flush=True)
    for topology in options.topologies if importlib.util.find_spec("libtpu") else ():
        chips, costs = apart(1, on_topology, options.config, options.images, topology)
        row = {"devices": topology, "images": options.images * chips, "s a step": "n/a"}
        rows.append(row | {"images/s": "n/a", "overhead": "n/a"} | costs)
    tables.report(rows, options.output)


if __name__ == "__main__":
    main()
