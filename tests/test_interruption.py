"""However a training ends, its checkpoints are kept, and the same command resumes from them bit by bit."""

import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from cfinet_jax import checkpoint, train_step, training
from cfinet_jax.build import create_run
from cfinet_jax.errors import Interrupted, exit_status
from cfinet_jax.runtime.interruption import requests
from cfinet_jax.runtime.lock import locked
from cfinet_jax.runtime.log import RunLog
from tests import tiny

ROOT = Path(__file__).parents[1]
STEPS = 6
AUGMENTED = tuple(f"--config.{key}={value}" for key, value in tiny.AUGMENTED.items())
LONGER = (f"--config.training.images={8 * STEPS}", "--config.evaluation.every_images=1000000", *AUGMENTED)
LONGER += ("--config.training.average_decay=0.9",)


@pytest.fixture(scope="module")
def template(tiny_scenes) -> Any:
    """Return the template to restore a checkpoint of `tests.tiny` into."""
    config = tiny.tiny_config()
    config.dataset.data_dir = str(tiny_scenes)
    return create_run(config).state


@pytest.fixture(scope="module", autouse=True)
def nothing_but_steps(template) -> Iterator[None]:
    """Let runs start from a copy of one state, share the compiled step, and skip evaluations."""
    compiled, compile_step = [], training.compile_step

    def compile_once(*arguments) -> Any:
        if not compiled:
            compiled.append(compile_step(*arguments))
        return compiled[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step, "create_state", lambda *_, **__: jax.tree.map(jnp.copy, template))
        patch.setattr(training, "compile_step", compile_once)
        patch.setattr(training, "evaluate_state", lambda *_: training.evaluate.Scored({}, None, None))
        patch.setattr(training.evaluate, "write_results", lambda *_: None)
        patch.setattr(training, "table", str)
        yield


def go(tiny_scenes, workdir: Path, *more: str) -> tuple[int, str, str]:
    """Train to the end, if nothing happens."""
    return tiny.call_main(*tiny.arguments(tiny_scenes, os.path.relpath(workdir)), *LONGER, *more)


def end_of(workdir: Path, template: Any) -> tuple[list[np.ndarray], str]:
    """Return everything in the newest checkpoint, and the log."""
    with checkpoint.open_checkpoints(epath.Path(workdir), create=False) as checkpoints:
        restored = checkpoint.restore(checkpoints, template)
    assert restored is not None
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)], (workdir / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tiny_scenes, template, tmp_path_factory) -> tuple[list[np.ndarray], str]:
    """Return the end of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    assert go(tiny_scenes, workdir)[::2] == (0, "")
    return end_of(workdir, template)


def check_resumed(tiny_scenes, workdir: Path, template: Any, whole: tuple[list[np.ndarray], str]) -> None:
    """Check that the same command resumes, and ends like the uninterrupted run."""
    status, output, errors = go(tiny_scenes, workdir)
    assert (status, errors) == (0, "") and "steps 0 to" not in output
    found, log = end_of(workdir, template)
    for leaf, expected in zip(found, whole[0], strict=True):
        np.testing.assert_array_equal(leaf, expected)
    assert log == whole[1]


def test_a_signal_stops_after_the_step_being_taken_which_is_saved(tiny_scenes, template, whole, tmp_path, monkeypatch):
    follow = training.Monitor.follow

    def follow_and_signal(monitor, *arguments) -> None:
        follow(monitor, *arguments)
        if monitor.step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training.Monitor, "follow", follow_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    status, _, errors = go(tiny_scenes, tmp_path, "--config.training.checkpoint_every_images=1000000")
    assert status == 75 and signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM after step 3, which is saved. Rerun the same command" in errors and len(errors.splitlines()) == 1
    monkeypatch.undo()
    check_resumed(tiny_scenes, tmp_path, template, whole)


@pytest.mark.slow
def test_a_run_killed_while_it_saves_keeps_its_checkpoints(tiny_scenes, template, whole, tmp_path):
    program = "from cfinet_jax import main; main.main()"
    longer = (*AUGMENTED, "--config.training.images=80000")
    command = [sys.executable, "-c", program, *tiny.arguments(tiny_scenes, tmp_path), *longer]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    folder, ended = tmp_path / "checkpoints", time.monotonic() + 400
    while process.poll() is None and time.monotonic() < ended:
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        if any(name.isdigit() for name in names) and any("tmp" in name for name in names):
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert max(int(path.name) for path in folder.iterdir() if path.name.isdigit()) < STEPS
    check_resumed(tiny_scenes, tmp_path, template, whole)
    assert all(path.name.isdigit() for path in folder.iterdir())


@pytest.mark.parametrize("at", ["checkpoint", "log"])
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(at, tiny_scenes, template, whole, tmp_path, monkeypatch):
    kind = (ocp.CheckpointManager, "save") if at == "checkpoint" else (RunLog, "write")
    works, calls = getattr(*kind), []

    def fill_up(*arguments, **options) -> Any:
        calls.append(arguments)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return works(*arguments, **options)

    monkeypatch.setattr(*kind, fill_up)
    status, _, errors = go(tiny_scenes, tmp_path)
    assert status == 2 and len(errors.splitlines()) == 1
    assert "No space left on device" in errors and "make room" in errors and "same command" in errors
    assert at == "log" or "resume from checkpoint 3" in errors
    monkeypatch.undo()
    check_resumed(tiny_scenes, tmp_path, template, whole)


def test_a_busy_workdir_is_refused(tiny_scenes, tmp_path):
    workdir = epath.Path(tmp_path)
    with locked(workdir):
        status, _, errors = go(tiny_scenes, tmp_path)
        assert status == 2 and len(errors.splitlines()) == 1
        assert tmp_path.name in errors and f"process {os.getpid()}" in errors
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with locked(workdir):
        pass


def test_a_signal_ends_at_once_if_nothing_is_unsaved():
    def wait() -> None:
        with requests() as request:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("went on")
        assert request.signal

    assert exit_status(wait) == 75


def test_an_interruption_passes_through_libraries_that_ignore_exceptions():
    """JAX ignores them while it reads its cache of compiled programs."""
    with pytest.raises(Interrupted), requests() as request, contextlib.suppress(Exception):
        request.take(signal.SIGTERM, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_where_python_ignores_exceptions(number):
    """JAX has a callback of the garbage collector, in which Ctrl-C was lost."""

    def callback(phase: str, _: dict) -> None:
        if phase == "start" and not sent:
            sent.append(number)
            signal.raise_signal(number)
            time.sleep(0)

    class Closing:
        def __del__(self) -> None:
            signal.raise_signal(number)
            time.sleep(0)

    for provoke in (gc.collect, lambda: Closing() and None):
        sent: list[int] = []
        gc.callbacks.append(callback)
        try:
            with pytest.raises(Interrupted), requests():
                provoke()
                time.sleep(5)
                pytest.fail("went on")
        finally:
            gc.callbacks.remove(callback)


def test_the_second_signal_kills(monkeypatch):
    sent = []
    with requests() as request:
        request.unsaved = True
        signal.raise_signal(signal.SIGINT)
        assert request.signal == "SIGINT"
        monkeypatch.setattr(signal, "raise_signal", sent.append)
        request.take(signal.SIGINT, None)
        assert sent == [signal.SIGINT] and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    with pytest.raises(Interrupted), requests() as request:
        request.take(signal.SIGTERM, None)
