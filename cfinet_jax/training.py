"""The run as a story: data, detector, state; then steps, checkpoints and evaluations; then the results."""

import contextlib
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
from cfinet_jax.errors import Interrupted, UserError
from cfinet_jax.input.batches import train_batches, windows_of
from cfinet_jax.input.sizes import preparation
from cfinet_jax.metrics.score_table import table
from cfinet_jax.models.detector import Detector
from cfinet_jax.runtime import mesh, processes
from cfinet_jax.runtime.interruption import GO_ON, requests
from cfinet_jax.runtime.lock import locked
from cfinet_jax.runtime.log import RunLog
from cfinet_jax.runtime.paths import user_path
from cfinet_jax.runtime.progress import Progress
from cfinet_jax.runtime.settings import write_settings
from cfinet_jax.structures import Batch
from cfinet_jax.train_step import TrainState, train_step

ON_NONFINITE = ("stop", "skip")


def train(config: ConfigDict, workdir: epath.PathLike) -> dict:
    """Trains to `training.images`, from the newest checkpoint if there is one; returns the final metrics.

    The workdir then holds checkpoints, logs and the report. Raises `UserError` for what the user can mend, and
    `Interrupted` after SIGTERM or SIGINT, with everything saved.
    """
    workdir = user_path(workdir)
    if config.training.on_nonfinite not in ON_NONFINITE:
        raise UserError(f"training.on_nonfinite is {config.training.on_nonfinite!r}: choose one of {ON_NONFINITE}.")
    config = discover(config, workdir)
    run = create_run(config)
    size = config.dataset.batch_size
    steps = -(-config.training.images // size)
    windows = windows_of(run.training, config.dataset, training=True)
    here, count = jax.process_index(), jax.process_count()
    batches = train_batches(run.training, windows, config.dataset, config.seed, size, here, count)
    detect = evaluate.make_detect(run.detector, config.dataset, run.mesh)
    key = mesh.replicate(jax.random.fold_in(jax.random.key(config.seed), 1), run.mesh)

    with contextlib.ExitStack() as opened:  # an open log would write to TensorBoard while Python ends
        request = opened.enter_context(requests())

        def claim() -> None:
            checkpoint.check_workdir(workdir)
            opened.enter_context(locked(workdir))
            write_settings(config, workdir, run.training.classes, run.training.category_ids)

        processes.by_the_first(claim)
        with checkpoint.open_checkpoints(workdir, config.training.keep_checkpoints) as checkpoints:
            if (restored := checkpoint.restore(checkpoints, run.state)) is None:
                state = first_state(config, run)
            else:
                state, position = restored
                batches.set_state(position)
            first = int(state.step)
            log = opened.enter_context(contextlib.closing(RunLog(workdir, first)))
            cut = "" if config.dataset.window_overlap is None else f"{len(windows.owners):,} windows to train on; "
            print(f"{extent(run)}; {cut}steps {first:,} to {steps:,} of {size} images.", flush=True)
            if evaluation_due(first, config) and first not in log.evaluated:  # where the run broke off
                evaluate_state(config, run, state, detect, log)
            monitor = Monitor(config, log, first)
            step, asked = None, False
            for number in range(first + 1, steps + 1):
                request.unsaved = True
                batch = next(batches)
                placed = mesh.place_batch(batch, run.mesh)
                if step is None:
                    step = make_step(config, run.detector, run.optimizer, run.mesh)
                    step = compile_step(step, state, placed, key)
                    monitor.progress.restart_clock()
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, placed, key)
                monitor.follow(batch, metrics)
                before, asked = asked, mesh.any_process(request.signal is not None, run.mesh)
                # A single process knows at once; several read the shared answer one step later, to wait for nobody.
                stop = bool(asked if request.alone else before)
                evaluating = evaluation_due(number, config)
                saving = due(number, size, config.training.checkpoint_every_images)
                if saving or evaluating or stop or number == steps:
                    monitor.catch_up()
                    log.flush()
                    checkpoint.save(checkpoints, state, batches.get_state())
                    request.unsaved = False
                    if mesh.any_process(request.signal is not None, run.mesh):
                        who = request.signal or "another process"
                        raise Interrupted(f"Stopped by {who} after step {number:,}, which is saved. {GO_ON}")
                if evaluating:
                    evaluate_state(config, run, state, detect, log)
                    monitor.progress.restart_clock()
            monitor.close()
        scored = evaluate_state(config, run, state, detect, log)
        processes.by_the_first(lambda: evaluate.write_results(workdir, scored, run.evaluation, config))
    print(table(scored.metrics))
    return scored.metrics


def extent(run: Run) -> str:
    """How much there is to learn from, and how much to be tested with."""
    images = f"{len(run.training):,} training and {len(run.evaluation):,} evaluation images"
    return f"{images}, {len(run.training.classes)} classes"


def evaluation_due(number: int, config: ConfigDict) -> bool:
    """Whether step `number` is followed by an evaluation on the way; the last one has its own."""
    size = config.dataset.batch_size
    on_the_way = 0 < number * size < config.training.images
    return on_the_way and due(number, size, config.evaluation.every_images)


def due(number: int, size: int, every: int) -> bool:
    """Whether step `number` (from 1) of `size` images crosses a multiple of `every` images."""
    return number * size // every > (number - 1) * size // every


def make_step(config: ConfigDict, detector: Detector, optimizer: optax.GradientTransformation, over: Any) -> Any:
    """The jitted (state, batch as shipped, key) -> (state, metrics) over the mesh; it consumes the state."""
    step = partial(
        train_step,
        detector=detector,
        optimizer=optimizer,
        prepare=preparation(config.dataset),
        flip=config.dataset.flip,
        micro_batches=config.training.micro_batches,
    )
    specs = (mesh.EVERYWHERE, mesh.BY_IMAGE, mesh.EVERYWHERE)
    return mesh.parallel(step, over, specs, mesh.EVERYWHERE, donate=(0,))


def compile_step(step: Any, *arguments: Any) -> Callable[..., Any]:
    """The step compiled for these arguments and no others: it can never compile again unnoticed."""
    print("Compiling the training step, about 60 s on two cores, once: later runs find it in the cache.", flush=True)
    started = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    print(f"Compiled in {time.perf_counter() - started:.0f} s.", flush=True)
    return compiled


def evaluate_state(
    config: ConfigDict, run: Run, state: TrainState, detect: evaluate.Detect, log: RunLog
) -> evaluate.Scored:
    """A state on the evaluation split; the metrics are logged."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    results, proposals = evaluate.detect_split(detect, variables, run.evaluation, config, run.mesh)
    scored = evaluate.score_split(results, proposals, run.evaluation, config.evaluation.protocol)
    metrics = scored.metrics
    step = int(state.step)
    images = step * config.dataset.batch_size
    numbers = {k: v for k, v in metrics.items() if v is None or isinstance(v, float)}
    numbers |= {f"proposals/{k}": v for k, v in metrics.get("proposals", {}).items()}
    log.write("eval", step, images, numbers)
    log.flush()
    ap, ap50 = ("n/a" if metrics[name] is None else f"{metrics[name]:.3f}" for name in ("AP", "AP50"))
    print(f"After {images:,} images: AP {ap}, AP50 {ap50}", flush=True)
    return scored


class Monitor:
    """Reads the metrics of a step while the next one runs, reports them, and stops at a loss that is not finite."""

    def __init__(self, config: ConfigDict, log: RunLog, first: int) -> None:
        self.training, self.size, self.log = config.training, config.dataset.batch_size, log
        self.step, self.dropped = first, 0
        total = -(-config.training.images // self.size) * self.size
        self.progress = Progress("Training", total, first * self.size)
        self.pending: tuple[Batch, dict] | None = None

    def follow(self, batch: Batch, metrics: dict) -> None:
        """Takes note of a step that has been started and reads the one before."""
        self.catch_up()
        self.pending = batch, metrics

    def catch_up(self) -> None:
        """Waits for the step that has been started, if any, and reads it."""
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
        """Of a loss that is not finite: stops the run or says that the step was skipped, as the config wants."""
        message = f"The loss of step {self.step} is not finite (image ids {', '.join(map(str, image_ids))})"
        if self.training.on_nonfinite == "stop":
            self.progress.close()
            raise UserError(
                f"{message}: lower optimizer.learning_rate, set optimizer.clip_norm, or "
                "--config.training.on_nonfinite=skip; the last checkpoint is kept."
            )
        print(f"{message}: skipped.", flush=True)

    def close(self) -> None:
        """Ends the progress line; says what was not trained on."""
        self.catch_up()
        self.progress.close()
        if self.dropped:
            print(f"{self.dropped:,} objects beyond dataset.max_objects were not trained on: raise it.", flush=True)
