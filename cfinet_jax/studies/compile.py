"""`--mode=compile`: cost of a training and a prediction step on a TPU topology, without data, weights or a TPU."""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from ml_collections import ConfigDict

from cfinet_jax.build import build, check_batches, check_values
from cfinet_jax.errors import UserError
from cfinet_jax.evaluate import make_detect
from cfinet_jax.input.sizes import OPEN, input_shape
from cfinet_jax.models.detector import Detector
from cfinet_jax.restore import state_shapes
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.markdown import mebibytes, with_head
from cfinet_jax.structures import Batch
from cfinet_jax.studies.collectives import Collective, collectives
from cfinet_jax.train_step import TrainState, empty_batch
from cfinet_jax.training import make_step

# Environment variables that libtpu would read on a machine with a TPU.
MACHINE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


class Cost(NamedTuple):
    """Cost of one step on one device."""

    memory: Any  # XLA's CompiledMemoryStats
    flops: float
    accessed: float  # bytes
    seconds: float  # to compile
    collectives: list[Collective]


def compile(config: ConfigDict, topology: str | None, classes: int) -> None:
    """Print the cost of a training and a prediction step on a topology, such as v5e:16x16; None: on this machine.

    Raises:
      UserError: if the topology is unknown, the batch cannot be spread over it, or a step does not fit into memory.
    """
    for key in OPEN:
        if config.dataset[key] is None:
            raise UserError(
                f"dataset.{key} is left to the data set, which is not read here: set it, for example "
                '--config.dataset.stored_size="(640, 640)" --config.dataset.max_objects=64.'
            )
    check_values(config)
    input_shape(config.dataset)  # refuses a missing size
    # With a program from the cache, the time to compile would be wrong.
    jax.config.update("jax_enable_compilation_cache", False)
    over = mesh.make_mesh(None if topology is None else devices_of(topology))
    check_batches(config, over.size)
    print(f"{over.size} x {over.devices.flat[0].device_kind}, {classes} classes; compiling takes minutes.", flush=True)
    for name, step in lower(config, classes, over).items():
        print(f"\n{table(name, cost(name, step))}", end="", flush=True)


def devices_of(topology: str) -> Sequence[Any]:
    """Return the devices of a TPU topology, described by libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology needs the compiler of TPUs: pip install libtpu.")
    os.environ.update(MACHINE)
    jax.config.update("jax_platforms", "cpu")  # libtpu only compiles; JAX must not look for a TPU
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Unknown --topology={topology} ({reason}). Use v5e:2x2 or v5e:16x16, for example.") from error


def lower(config: ConfigDict, classes: int, over: Any) -> dict[str, Any]:
    """Lower both steps over a mesh, from shapes alone; return them by name."""
    detector, sgd = build(config, classes)
    state, batch, key = step_shapes(config, detector, over)
    training, prediction = make_step(config, detector, sgd, over), make_detect(detector, config.dataset, over)
    return {
        "training": training.lower(state, batch, key),
        "prediction": prediction.lower(state.evaluated, shipped_shapes(config.dataset, "eval_batch_size", over)),
    }


def step_shapes(config: ConfigDict, detector: Detector, over: Any) -> tuple[TrainState, Batch, Any]:
    """Return the shapes of what a training step takes: state, batch and key, spread over a mesh."""
    key = mesh.shapes(jax.eval_shape(lambda: jax.random.key(0)), over, mesh.EVERYWHERE)
    return state_shapes(config, detector, over), shipped_shapes(config.dataset, "batch_size", over), key


def shipped_shapes(settings: Any, size: str, over: Any) -> Batch:
    """Return the shapes of a batch as the host ships it, spread over a mesh."""
    is_oriented = settings.boxes == "oriented"
    batch = jax.eval_shape(lambda: empty_batch(settings[size], settings.stored_size, settings.max_objects, is_oriented))
    pixels = jax.ShapeDtypeStruct(batch.images.shape, jnp.uint8)
    return mesh.shapes(dataclasses.replace(batch, images=pixels), over, mesh.BY_IMAGE)


def cost(name: str, step: Any) -> Cost:
    """Compile a lowered step and return its cost."""
    started = time.perf_counter()
    try:
        compiled = step.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The {name} step does not fit into memory ({reason}): use fewer images or more devices."
        ) from error
    seconds = time.perf_counter() - started
    numbers, sent = compiled.cost_analysis(), collectives(compiled.as_text())
    return Cost(compiled.memory_analysis(), numbers["flops"], numbers["bytes accessed"], seconds, sent)


def table(name: str, cost: Cost) -> str:
    """Return a table with a row per number; collectives in loops have rows of their own."""
    memory = cost.memory
    sizes = {
        "arguments, MiB": memory.argument_size_in_bytes,
        "output in memory of its own, MiB": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries, MiB": memory.temp_size_in_bytes,
    }
    rows = [[part, mebibytes(size)] for part, size in sizes.items()]
    rows += [
        ["**in all, MiB**", mebibytes(sum(sizes.values()))],
        ["10^12 floating-point operations", f"{cost.flops / 1e12:,.3f}"],
        ["memory accessed, MiB", mebibytes(cost.accessed)],
    ]
    for kind, in_loop in sorted({(each.kind, each.in_loop) for each in cost.collectives}):
        sent = [each.size for each in cost.collectives if (each.kind, each.in_loop) == (kind, in_loop)]
        where = "in every round of a loop" if in_loop else "outside of loops"
        rows.append([f"{len(sent)} x {kind} {where}, MiB", mebibytes(sum(sent))])
    rows.append(["seconds to compile", f"{cost.seconds:,.0f}"])
    return with_head([f"{name} step", "on one device"], rows)
