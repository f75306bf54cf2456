"""Train a detector: prepare data, detector and state; take steps, saving and evaluating on the way; finish."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import checkpoint, evaluate
from cfinet_jax.build import Run, create_run, discover, first_state
from cfinet_jax.errors import UserError
from cfinet_jax.input.batches import train_batches, windows_of
from cfinet_jax.input.sizes import training_preparation
from cfinet_jax.metrics.score_table import table
from cfinet_jax.models.detector import Detector
from cfinet_jax.runtime import mesh, processes
from cfinet_jax.runtime.interruption import Request, requests
from cfinet_jax.runtime.lock import locked
from cfinet_jax.runtime.log import RunLog
from cfinet_jax.runtime.paths import user_path
from cfinet_jax.runtime.progress import Progress
from cfinet_jax.runtime.settings import write_settings
from cfinet_jax.structures import Batch
from cfinet_jax.train_step import TrainState, train_step, with_average


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a training uses and closes at its end; only the state changes from step to step."""

    config: ConfigDict
    workdir: epath.Path
    run: Run
    request: Request
    batches: Any  # an iterator of Grain
    checkpoints: Any  # of Orbax
    log: RunLog
    detect: evaluate.Detect


def train(config: ConfigDict, workdir: epath.PathLike) -> dict:
    """Train to `training.images`, from the newest checkpoint in the workdir if there is one.

    Args:
      config: the experiment, as a file of `configs` returns it.
      workdir: folder for checkpoints, logs, results and the report.

    Returns:
      The metrics of the final evaluation.

    Raises:
      UserError: the config, the data or the workdir cannot be used; the message says what to change.
      Interrupted: SIGTERM or SIGINT came; everything is saved, and the same call resumes.
    """
    with contextlib.ExitStack() as opened:
        job, state = prepare(config, user_path(workdir), opened)
        state = take_steps(job, state)
        return finish(job, state)


def prepare(config: ConfigDict, workdir: epath.Path, opened: contextlib.ExitStack) -> tuple[Job, TrainState]:
    """Open data, workdir, checkpoints and log, and restore or create the state; `opened` closes all of it."""
    # Data, detector and a random state.
    config = discover(config, workdir)
    run = create_run(config)
    size = config.dataset.batch_size
    windows = windows_of(run.training, config.dataset, training=True)
    here, count = jax.process_index(), jax.process_count()
    batches = train_batches(run.training, windows, config.dataset, config.seed, size, here, count)
    opened.callback(batches.close)  # threads that still read would fail, with a traceback, while Python exits
    detect = evaluate.make_detect(run.detector, config, run.mesh)

    # The workdir, for this run alone; a signal is from now on answered by saving.
    request = opened.enter_context(requests())

    def claim() -> None:
        checkpoint.check_workdir(workdir)
        opened.enter_context(locked(workdir))
        evaluate.check_replaceable(workdir, evaluate.evaluated(run.evaluation, config))
        write_settings(config, workdir, run.training.classes, run.training.category_ids)

    processes.by_the_first(claim)

    # The newest checkpoint, if there is one.
    checkpoints = opened.enter_context(checkpoint.open_checkpoints(workdir, config.training.keep_checkpoints))
    restored = checkpoint.restore(checkpoints, run.state, batches.set_state)
    averaged = config.training.average_decay is not None
    state = first_state(config, run) if restored is None else with_average(restored[0], averaged)
    log = opened.enter_context(contextlib.closing(RunLog(workdir, int(state.step))))
    images = f"{len(run.training):,} training and {len(run.evaluation):,} evaluation images"
    cut = "" if config.dataset.window_overlap is None else f"{len(windows.owners):,} windows to train on; "
    steps = f"steps {int(state.step):,} to {last_step(config):,} of {size} images."
    print(f"{images}, {len(run.training.classes)} classes; {cut}{steps}", flush=True)
    return Job(config, workdir, run, request, batches, checkpoints, log, detect), state


def take_steps(job: Job, state: TrainState) -> TrainState:
    """Train to the last step; log, save and evaluate on the way. Raises `Interrupted` after a signal."""
    config, run, size = job.config, job.run, job.config.dataset.batch_size
    first, last, step = int(state.step), last_step(config), None
    key = mesh.replicate(jax.random.fold_in(jax.random.key(config.seed), 1), run.mesh)
    if evaluation_due(first, config) and first not in job.log.evaluated:  # the run broke off in this evaluation
        evaluate_state(job, state)
    monitor = Monitor(config, job.log, first)
    for number in range(first + 1, last + 1):
        # One step; the host reads its metrics while the next one runs.
        job.request.unsaved = True
        batch = next(job.batches)
        placed = mesh.place_batch(batch, run.mesh)
        if step is None:
            step = make_step(config, run.detector, run.optimizer, run.mesh)
            step = compile_step(step, state, placed, key)
            monitor.progress.restart_clock()
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, placed, key)
        monitor.follow(batch, metrics)

        # Save, also before an evaluation, which takes long, and if a signal has come: then stop.
        stop = job.request.agreed(run.mesh)
        evaluating = evaluation_due(number, config)
        if stop or evaluating or number == last or due(number, size, config.training.checkpoint_every_images):
            monitor.catch_up()
            job.log.flush()
            checkpoint.save(job.checkpoints, state, job.batches.get_state())
            job.request.raise_if_asked(run.mesh, number)
        if evaluating:
            evaluate_state(job, state)
            monitor.progress.restart_clock()
    monitor.close()
    return state


def finish(job: Job, state: TrainState) -> dict:
    """Evaluate the final state, write results and report, and return the metrics."""
    scored = evaluate_state(job, state)
    processes.by_the_first(lambda: evaluate.write_results(job.workdir, scored, job.run.evaluation, job.config))
    print(table(scored.metrics))
    return scored.metrics


def last_step(config: ConfigDict) -> int:
    """Return the number of the step with which `training.images` are reached."""
    return -(-config.training.images // config.dataset.batch_size)


def evaluation_due(number: int, config: ConfigDict) -> bool:
    """Return whether an evaluation follows step `number`; that after the last step is made separately."""
    return 0 < number < last_step(config) and due(number, config.dataset.batch_size, config.evaluation.every_images)


def due(number: int, size: int, every: int) -> bool:
    """Return whether step `number` (from 1) of `size` images reaches a multiple of `every` images."""
    return number * size // every > (number - 1) * size // every


def make_step(config: ConfigDict, detector: Detector, optimizer: optax.GradientTransformation, over: mesh.Mesh) -> Any:
    """Return the jitted (state, batch of the host, key) -> (state, metrics) over the mesh; the state is donated."""
    step = partial(
        train_step,
        detector=detector,
        optimizer=optimizer,
        prepare=training_preparation(config.dataset),
        micro_batches=config.training.micro_batches,
        average_decay=config.training.average_decay,
    )
    specs = (mesh.EVERYWHERE, mesh.BY_IMAGE, mesh.EVERYWHERE)
    return mesh.parallel(step, over, specs, mesh.EVERYWHERE, donate=(0,))


def compile_step(step: Any, *arguments: Any) -> Callable[..., Any]:
    """Compile a step ahead of time for the shapes of these arguments, so that it can never recompile unnoticed."""
    print("Compiling the training step (about 60 s on two cores; later runs find it in the cache).", flush=True)
    started = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    print(f"Compiled in {time.perf_counter() - started:.0f} s.", flush=True)
    return compiled


def evaluate_state(job: Job, state: TrainState) -> evaluate.Scored:
    """Score a state on the evaluation split and log the metrics."""
    results, proposals = evaluate.detect_split(
        job.detect, state.evaluated, job.run.evaluation, job.config, job.run.mesh
    )
    scored = evaluate.score_split(results, proposals, job.run.evaluation, job.config.evaluation.protocol)
    metrics, step = scored.metrics, int(state.step)
    images = step * job.config.dataset.batch_size
    numbers = {k: v for k, v in metrics.items() if v is None or isinstance(v, float)}
    numbers |= {f"proposals/{k}": v for k, v in metrics.get("proposals", {}).items()}
    job.log.write("eval", step, images, numbers)
    job.log.flush()
    ap, ap50 = ("n/a" if metrics[name] is None else f"{metrics[name]:.3f}" for name in ("AP", "AP50"))
    print(f"After {images:,} images: AP {ap}, AP50 {ap50}", flush=True)
    return scored


class Monitor:
    """Reads the metrics of a step while the next one runs, logs them, and reacts to a loss that is not finite."""

    def __init__(self, config: ConfigDict, log: RunLog, first: int) -> None:
        self.training, self.size, self.log = config.training, config.dataset.batch_size, log
        self.step, self.dropped = first, 0
        self.progress = Progress("Training", last_step(config) * self.size, first * self.size)
        self.pending: tuple[Batch, dict] | None = None

    def follow(self, batch: Batch, metrics: dict) -> None:
        """Remember a step that has just been started, and read the previous one."""
        self.catch_up()
        self.pending = batch, metrics

    def catch_up(self) -> None:
        """Wait for the step that was started last, if any, and read its metrics."""
        if self.pending is None:
            return
        (batch, metrics), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.step += 1
        self.dropped += round(values["objects_dropped"] * self.size)
        if not values.pop("finite"):
            self.complain(np.asarray(batch.image_ids).tolist())
        elif due(self.step, self.size, self.training.log_every_images):
            self.log.write("train", self.step, self.step * self.size, values)
        self.progress.advance(self.size, {"loss": values["loss"]})

    def complain(self, image_ids: list[int]) -> None:
        """Stop the run or print that the step was skipped, as `training.on_nonfinite` says."""
        message = f"The loss of step {self.step} is not finite (image ids {', '.join(map(str, image_ids))})"
        if self.training.on_nonfinite == "stop":
            self.progress.close()
            raise UserError(
                f"{message}: lower optimizer.learning_rate, set optimizer.clip_norm, or "
                "--config.training.on_nonfinite=skip, and rerun the command to resume from the last checkpoint."
            )
        print(f"{message}: skipped.", flush=True)

    def close(self) -> None:
        """End the progress line, and print how many objects did not fit into `dataset.max_objects`."""
        self.catch_up()
        self.progress.close()
        if self.dropped:
            print(
                f"{self.dropped:,} objects were dropped because their images hold more than dataset.max_objects: "
                "increase it.",
                flush=True,
            )
