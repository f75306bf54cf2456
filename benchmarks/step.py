"""Train step and inference of CFINet and Faster R-CNN with ResNet-50, and torchvision's Faster R-CNN with like work.

    python -m benchmarks.step [--size=512] [--batch=1] [--precision=float32] [--repeats=N] [--output=JSON]

The pictures are noise with 20 objects of 8 to 40 pixels, the parameters random, CFINet as in
`configs/sodad.py:released`. A yardstick is one float32 product of 2048 x 2048 matrices, timed in the same run. MFU is
the model's FLOP (`cfinet_jax/studies/profile/flops.py`) over the time of a step and the device's peak. torchvision's
rows appear where torch and torchvision are installed.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import common, drawn, peer
from cfinet_jax import evaluate, training
from cfinet_jax.build import build
from cfinet_jax.input.sizes import input_shape
from cfinet_jax.runtime import mesh
from cfinet_jax.structures import ExemplarMemory
from cfinet_jax.studies.profile import flops
from cfinet_jax.studies.profile.peaks import peak_of
from cfinet_jax.train_step import TrainState, create_state
from configs import sodad

FULL, THIN = 256, 16  # slots of a class in the exemplar memory
SYSTEMS = {
    "CFINet, memory full": ("released", FULL),
    f"CFINet, {THIN} slots": ("released", THIN),
    "Faster R-CNN": ("faster_rcnn", FULL),
}
PEER = "torchvision's Faster R-CNN"
BARRED = (512, 1, "float32")  # size, batch and precision for which there are bars
BARS = {  # most yardsticks on two cores
    "CFINet, memory full: train step": 52,
    f"CFINet, {THIN} slots: train step": 47,
    "CFINet, memory full: inference": 12,
}


class Program(NamedTuple):
    """A program to time."""

    run: Callable[[], Any]
    flops: float = 0.0  # of the model, in a training step
    mebibytes: float = 0.0  # set aside for arguments and temporaries


def filled(state: TrainState) -> TrainState:
    """Return the state with every slot of its memory taken."""
    if state.memory is None:
        return state
    size = jnp.full_like(state.memory.size, state.memory.features.shape[1])
    features = jax.random.uniform(jax.random.key(0), state.memory.features.shape)
    return dataclasses.replace(state, memory=ExemplarMemory(features, state.memory.cursor, size))


def ours(variant: str, slots: int, options: argparse.Namespace) -> dict[str, Program]:
    """Compile a train step and inference for one device."""
    config, side = sodad.get_config(variant), (options.size, options.size)
    config.dataset.update(stored_size=side, image_size=None, batch_size=options.batch, eval_batch_size=options.batch)
    config.detector.imitation.slots = slots
    config.detector.precision = options.precision
    over = mesh.make_mesh(jax.devices()[:1])
    detector, sgd = build(config, drawn.CLASSES)
    key = mesh.replicate(jax.random.key(0), over)
    state = filled(create_state(key, detector, sgd, input_shape(config.dataset), config.dataset.max_objects))
    state, batch = mesh.replicate(state, over), mesh.place_batch(drawn.batch(config.dataset), over)
    step = training.make_step(config, detector, sgd, over)
    model_flops = flops.of_model(jax.make_jaxpr(step)(state, batch, key).jaxpr)
    step = step.lower(state, batch, key).compile()
    variables = jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats})
    detect = evaluate.make_detect(detector, config, over).lower(variables, batch).compile()
    kept = [state]

    def train() -> None:
        kept[0], metrics = step(kept[0], batch, key)
        jax.block_until_ready(metrics)

    return {
        "train step": Program(train, model_flops, set_aside(step)),
        "inference": Program(lambda: jax.block_until_ready(detect(variables, batch)), 0.0, set_aside(detect)),
    }


def set_aside(compiled: Any) -> float:
    """Return the memory of a compiled program, in MiB."""
    memory = compiled.memory_analysis()
    return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20


def theirs(options: argparse.Namespace) -> dict[str, Program]:
    """Compile torchvision's detector in its fastest form; return nothing where it is not installed."""
    found = {}
    for what, make in {"train step": peer.training, "inference": peer.detection}.items():
        fastest = peer.fastest(lambda form, make=make: make(form, options.size, options.batch, options.precision))
        print(f"{PEER}, {what}: {fastest.form if fastest else 'not installed'}.", flush=True)
        if fastest:
            found[what] = Program(fastest.run)
    return found


def yardstick() -> Callable[[], Any]:
    """Return one float32 product of 2048 x 2048 matrices."""
    matrix = jnp.ones((2048, 2048))
    product = jax.jit(jnp.dot)
    return lambda: product(matrix, matrix).block_until_ready()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = common.parser("step", __doc__, repeats=7)
    result.add_argument("--size", type=int, default=512, help="pixels of a side of the network's input")
    result.add_argument("--batch", type=int, default=1, help="images")
    result.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    return result


def main() -> None:
    """Measure and report."""
    options = parser().parse_args()
    programs = {"yardstick": Program(yardstick())}
    for name, (variant, slots) in SYSTEMS.items():
        programs |= {f"{name}: {what}": program for what, program in ours(variant, slots, options).items()}
    programs |= {f"{PEER}: {what}": program for what, program in theirs(options).items()}
    seconds = common.medians({name: program.run for name, program in programs.items()}, options.repeats)
    peak = peak_of(jax.devices()[0].device_kind).flops
    bars = BARS if (options.size, options.batch, options.precision) == BARRED else {}
    rows = []
    for name, program in programs.items():
        beside = seconds.get(f"{PEER}: {name.rpartition(': ')[2]}")
        row: common.Row = {"what": name, "s": seconds[name], "yardsticks": seconds[name] / seconds["yardstick"]}
        row["bar, yardsticks"] = bars.get(name, "")
        row["torchvision's time / its"] = beside / seconds[name] if beside else "n/a"
        row["MFU"] = program.flops / seconds[name] / peak if program.flops else ""
        rows.append(row | {"MiB set aside": round(program.mebibytes) or ""})
    common.report(rows, options.output)


if __name__ == "__main__":
    main()
