"""What a step costs on other hardware: both steps compiled for a TPU topology, without data, weights or a TPU."""

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
from cfinet_jax.restore import state_shapes
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.markdown import with_head
from cfinet_jax.structures import Batch
from cfinet_jax.studies.collectives import Collective, collectives
from cfinet_jax.train_step import empty_batch
from cfinet_jax.training import make_step

# What libtpu would ask a TPU's machine for.
ELSEWHERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


class Cost(NamedTuple):
    """Of one step; bytes and operations are those of one device."""

    memory: Any  # XLA's CompiledMemoryStats
    operations: float
    accessed: float
    seconds: float  # to compile
    collectives: list[Collective]


def compile(config: ConfigDict, topology: str | None, classes: int) -> None:
    """Prints what a training step and a prediction step cost on a topology, such as v5e:16x16; None: on this machine.

    Raises:
      UserError: the topology is unknown, the batch does not spread over it, or a step does not fit into its memory.
    """
    for key in OPEN:
        if config.dataset[key] is None:
            raise UserError(
                f"dataset.{key} is left to the data set, which is not read: give it, for example "
                '--config.dataset.stored_size="(640, 640)" --config.dataset.max_objects=64.'
            )
    check_values(config)
    input_shape(config.dataset)  # there is one
    # A program found in the cache would say nothing of the time to compile it.
    jax.config.update("jax_enable_compilation_cache", False)
    over = mesh.make_mesh(None if topology is None else devices_of(topology))
    check_batches(config, over.size)
    print(f"{over.size} x {over.devices.flat[0].device_kind}, {classes} classes; compiling takes minutes.", flush=True)
    for name, step in lower(config, classes, over).items():
        print(f"\n{table(name, cost(name, step))}", end="", flush=True)


def devices_of(topology: str) -> Sequence[Any]:
    """The devices of a TPU topology, described by libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology wants the compiler of TPUs: pip install libtpu.")
    os.environ.update(ELSEWHERE)
    jax.config.update("jax_platforms", "cpu")  # libtpu compiles; no TPU is looked for
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--topology={topology} is none ({reason}): give one such as v5e:2x2 or v5e:16x16.") from error


def lower(config: ConfigDict, classes: int, over: Any) -> dict[str, Any]:
    """Both steps ready to be compiled over a mesh, by name; made of shapes alone."""
    detector, sgd = build(config, classes)
    state = state_shapes(config, detector, over)
    key = mesh.shapes(jax.eval_shape(lambda: jax.random.key(0)), over, mesh.EVERYWHERE)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    training, prediction = make_step(config, detector, sgd, over), make_detect(detector, config.dataset, over)
    return {
        "training": training.lower(state, shipped_shapes(config.dataset, "batch_size", over), key),
        "prediction": prediction.lower(variables, shipped_shapes(config.dataset, "eval_batch_size", over)),
    }


def shipped_shapes(settings: Any, size: str, over: Any) -> Batch:
    """A batch as the host ships it, as shapes spread over a mesh."""
    is_oriented = settings.boxes == "oriented"
    batch = jax.eval_shape(lambda: empty_batch(settings[size], settings.stored_size, settings.max_objects, is_oriented))
    pixels = jax.ShapeDtypeStruct(batch.images.shape, jnp.uint8)
    return mesh.shapes(dataclasses.replace(batch, images=pixels), over, mesh.BY_IMAGE)


def cost(name: str, step: Any) -> Cost:
    """Compiles a step that is ready for it."""
    started = time.perf_counter()
    try:
        compiled = step.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"The {name} step does not fit ({reason}): take fewer images or more devices.") from error
    seconds = time.perf_counter() - started
    numbers = compiled.cost_analysis()
    found = collectives(compiled.as_text())
    return Cost(compiled.memory_analysis(), numbers["flops"], numbers["bytes accessed"], seconds, found)


def table(name: str, cost: Cost) -> str:
    """A row per number; collectives by kind, apart if a loop repeats them."""
    memory = cost.memory
    sizes = {
        "arguments, MiB": memory.argument_size_in_bytes,
        "output beside them, MiB": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries, MiB": memory.temp_size_in_bytes,
    }
    rows = [[part, mebibytes(size)] for part, size in sizes.items()]
    rows += [
        ["**together, MiB**", mebibytes(sum(sizes.values()))],
        ["10^12 floating-point operations", f"{cost.operations / 1e12:,.3f}"],
        ["memory accessed, MiB", mebibytes(cost.accessed)],
    ]
    for kind, in_loop in sorted({(each.kind, each.in_loop) for each in cost.collectives}):
        sent = [each.size for each in cost.collectives if (each.kind, each.in_loop) == (kind, in_loop)]
        where = "in every round of a loop" if in_loop else "in no loop"
        rows.append([f"{len(sent)} x {kind} {where}, MiB", mebibytes(sum(sent))])
    rows.append(["seconds to compile", f"{cost.seconds:,.0f}"])
    return with_head([f"{name} step", "on one device"], rows)


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.2f}"
