"""`--mode=profile`: where the time of a training step goes, as a trace of a few steps and a table of its parts."""

import json
import time
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.build import Run, create_run, discover, first_state
from cfinet_jax.input.batches import train_batches, windows_of
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.studies.profile import flops, table
from cfinet_jax.studies.profile.parts import instructions_of
from cfinet_jax.studies.profile.peaks import peak_of
from cfinet_jax.studies.profile.trace import measure, recorded
from cfinet_jax.training import compile_step, make_step

WARM_UP, STEPS = 3, 5  # steps before the trace, which fill the memory and the loader, and steps in it
CONTAINERS = ("while", "conditional", "call")  # their time is that of the instructions in them


class Traced(NamedTuple):
    """Steps that ran under the profiler."""

    program: str  # the compiled step in XLA's text form
    model_flops: int  # of one device in a step
    times: table.Times


def profile(config: ConfigDict, workdir: epath.PathLike) -> dict[str, Any]:
    """Train for a few steps, write where their time goes into `profile/` of the workdir, and return the numbers.

    The folder gets `profile.md`, `profile.json` and the trace, for TensorBoard, XProf or Perfetto. The steps begin as
    those of a new run, nothing that they learn is kept, and a run in the workdir stays as it is.

    Raises:
      UserError: for what a training would refuse.
    """
    workdir = epath.Path(workdir)
    config = discover(config, workdir)
    folder = workdir / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    run = create_run(config)
    traced = trace_steps(config, run, folder)

    instructions = instructions_of(traced.program)
    containers = {name for name, each in instructions.items() if each.opcode in CONTAINERS}
    module = traced.program.split(maxsplit=2)[1].rstrip(",")  # HloModule NAME, ...
    measured = measure(recorded(folder).planes, module, containers)
    kind, devices = run.mesh.devices.flat[0].device_kind, run.mesh.size
    numbers = table.summary(instructions, measured, traced.model_flops * devices, traced.times, peak_of(kind), STEPS)
    page = table.page(numbers, f"A training step of {config.dataset.batch_size} images on {devices} x {kind}")
    replace_text(folder / "profile.json", json.dumps(numbers, indent=1))
    replace_text(folder / "profile.md", page)
    print(f"\n{page}\nTrace: {folder}", flush=True)
    return numbers


def trace_steps(config: ConfigDict, run: Run, folder: epath.Path) -> Traced:
    """Run the steps, the last of them under the profiler, which writes into the folder."""
    windows = windows_of(run.training, config.dataset, training=True)
    batches = train_batches(run.training, windows, config.dataset, config.seed, config.dataset.batch_size)
    step = make_step(config, run.detector, run.optimizer, run.mesh)
    key = mesh.replicate(jax.random.fold_in(jax.random.key(config.seed), 1), run.mesh)
    state = first_state(config, run)
    arguments = state, mesh.place_batch(next(batches), run.mesh), key
    model_flops = flops.of_model(jax.make_jaxpr(step)(*arguments).jaxpr)
    # A program in the cache may have been compiled from other source, whose names it would have.
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    compiled = compile_step(step, *arguments)

    def run_steps(count: int) -> table.Times:
        nonlocal state
        began, waited, metrics = time.perf_counter(), 0.0, None
        for number in range(count):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                asked = time.perf_counter()
                placed = mesh.place_batch(next(batches), run.mesh)
                waited += time.perf_counter() - asked
                before = metrics
                state, metrics = compiled(state, placed, key)
                jax.block_until_ready(before)  # training, too, reads the metrics of a step while the next one runs
        jax.block_until_ready((state, metrics))
        return table.Times((time.perf_counter() - began) / count, waited / count)

    run_steps(WARM_UP)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        times = run_steps(STEPS)
    return Traced(compiled.as_text(), model_flops, times)
