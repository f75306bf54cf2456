"""Where the time of a training step goes: a trace of a few steps, and a table with a row for every part of them."""

import json
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.build import Run, create_run, discover, first_state
from cfinet_jax.input.batches import train_batches, windows_of
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.studies.profile import flops, table
from cfinet_jax.studies.profile.costs import CONTAINERS, costs
from cfinet_jax.studies.profile.peaks import peak_of
from cfinet_jax.studies.profile.trace import measure, recorded
from cfinet_jax.training import compile_step, make_step

WARM_UP, STEPS = 3, 5  # steps before the trace, which fill the memory and the loader, and steps in it


def profile(config: ConfigDict, workdir: epath.PathLike) -> dict[str, Any]:
    """Trains for a few steps and writes where their time goes into `profile/` of the workdir; returns the numbers.

    There are `profile.md`, `profile.json` and, for TensorBoard, XProf or Perfetto, the trace. Nothing that is learnt is
    kept, and a run in the workdir stays as it is: the steps begin as those of a fresh run.

    Raises:
      UserError: what a training would refuse.
    """
    workdir = epath.Path(workdir)
    config = discover(config, workdir)
    folder = workdir / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    run = create_run(config)
    compiled, model, times = traced(config, run, folder)

    text = compiled.as_text()
    found = costs(text)
    containers = {name for name, cost in found.items() if cost.opcode in CONTAINERS}
    module = text.split(maxsplit=2)[1].rstrip(",")  # HloModule NAME, ...
    measured = measure(recorded(folder).planes, module, containers)
    kind = run.mesh.devices.flat[0].device_kind
    numbers = table.summary(found, measured, model, times, peak_of(kind), STEPS, run.mesh.size)
    size = config.dataset.batch_size
    page = table.page(numbers, f"A training step of {size} images on {run.mesh.size} x {kind}")
    replace_text(folder / "profile.json", json.dumps(numbers, indent=1))
    replace_text(folder / "profile.md", page)
    print(f"\n{page}\nThe trace is in {folder}.", flush=True)
    return numbers


def traced(config: ConfigDict, run: Run, folder: epath.Path) -> tuple[Any, Any, table.Times]:
    """Runs the steps, the last of them under the profiler: the compiled step, its operations by path, times a step."""
    windows = windows_of(run.training, config.dataset, training=True)
    batches = train_batches(run.training, windows, config.dataset, config.seed, config.dataset.batch_size)
    step = make_step(config, run.detector, run.optimizer, run.mesh)
    key = mesh.replicate(jax.random.fold_in(jax.random.key(config.seed), 1), run.mesh)
    state = first_state(config, run)
    arguments = state, mesh.place_batch(next(batches), run.mesh), key
    model = flops.by_path(jax.make_jaxpr(step)(*arguments).jaxpr)
    # A program from the cache may have been compiled from other source, and its names would be of that.
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    compiled = compile_step(step, *arguments)

    def steps(count: int) -> table.Times:
        nonlocal state
        began, waited, metrics = time.perf_counter(), 0.0, None
        for number in range(count):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                asked = time.perf_counter()
                placed = mesh.place_batch(next(batches), run.mesh)
                waited += time.perf_counter() - asked
                before = metrics
                state, metrics = compiled(state, placed, key)
                jax.block_until_ready(before)  # as a training does, which reads them while the next step runs
        jax.block_until_ready((state, metrics))
        return table.Times((time.perf_counter() - began) / count, waited / count)

    steps(WARM_UP)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        times = steps(STEPS)
    return compiled, model, times
