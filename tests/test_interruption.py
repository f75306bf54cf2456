"""Whatever ends a training, what it had saved is kept, and the same command goes on from it bit by bit."""

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
from cfinet_jax.errors import Interrupted, UserError, exit_status
from cfinet_jax.runtime.interruption import requests
from cfinet_jax.runtime.lock import locked
from cfinet_jax.runtime.log import RunLog, replace_text
from tests import tiny

ROOT = Path(__file__).parents[1]
STEPS = 6
LONGER = (f"--config.training.images={8 * STEPS}", "--config.evaluation.every_images=1000000")


@pytest.fixture(scope="module")
def template(tiny_scenes) -> Any:
    """What a checkpoint of `tests.tiny` is restored as."""
    config = tiny.tiny_config()
    config.dataset.data_dir = str(tiny_scenes)
    return create_run(config).state


@pytest.fixture(scope="module", autouse=True)
def nothing_but_steps(template) -> Iterator[None]:
    """Runs begin with a state that has been made and a step that has been compiled, and are not evaluated."""
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
    """A training to the end, if nothing happens to it."""
    return tiny.call_main(*tiny.arguments(tiny_scenes, workdir), *LONGER, *more)


def end_of(workdir: Path, template: Any) -> tuple[list[np.ndarray], str]:
    """Everything in the newest checkpoint, and the log."""
    with checkpoint.open_checkpoints(epath.Path(workdir), create=False) as checkpoints:
        restored = checkpoint.restore(checkpoints, template)
    assert restored is not None
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)], (workdir / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tiny_scenes, template, tmp_path_factory) -> tuple[list[np.ndarray], str]:
    """How a run ends that nothing has happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    assert go(tiny_scenes, workdir)[::2] == (0, "")
    return end_of(workdir, template)


def check_resumed(tiny_scenes, workdir: Path, template: Any, whole: tuple[list[np.ndarray], str]) -> None:
    """The same command goes on, and ends where the run ended that nothing happened to."""
    status, output, errors = go(tiny_scenes, workdir)
    assert (status, errors) == (0, "") and "steps 0 to" not in output
    found, log = end_of(workdir, template)
    for leaf, expected in zip(found, whole[0], strict=True):
        np.testing.assert_array_equal(leaf, expected)
    assert log == whole[1]


def test_a_signal_saves_and_ends(tiny_scenes, template, whole, tmp_path, monkeypatch):
    follow = training.Monitor.follow

    def follow_and_signal(monitor, *arguments) -> None:
        follow(monitor, *arguments)
        if monitor.step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training.Monitor, "follow", follow_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    status, _, errors = go(tiny_scenes, tmp_path, "--config.training.checkpoint_every_images=1000000")
    assert status == 75 and signal.getsignal(signal.SIGTERM) == before
    assert errors.startswith("cfinet_jax: Stopped by SIGTERM after step 3, which is saved. The same command")
    assert len(errors.splitlines()) == 1
    monkeypatch.undo()
    check_resumed(tiny_scenes, tmp_path, template, whole)


@pytest.mark.slow
def test_a_killed_run_loses_nothing_that_was_saved(tiny_scenes, template, whole, tmp_path):
    """It is killed while a checkpoint is being written."""
    program = "from cfinet_jax import main; main.main()"
    command = [sys.executable, "-c", program, *tiny.arguments(tiny_scenes, tmp_path), "--config.training.images=80000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    folder, ended = tmp_path / "checkpoints", time.monotonic() + 120
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
    assert at == "log" or "goes on from checkpoint 3" in errors
    monkeypatch.undo()
    check_resumed(tiny_scenes, tmp_path, template, whole)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "settings.json"
    replace_text(path, "before")

    def cut_off(partial, text: str) -> None:
        partial.write_bytes(text[:2].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", cut_off)
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "after")
    assert path.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_a_busy_workdir_is_refused(tiny_scenes, tmp_path):
    workdir = epath.Path(tmp_path)
    with locked(workdir):
        status, _, errors = go(tiny_scenes, tmp_path)
        assert status == 2 and len(errors.splitlines()) == 1
        assert f"{tmp_path} is in use (process {os.getpid()} on " in errors
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with locked(workdir):
        pass


def test_a_signal_ends_at_once_where_nothing_would_be_lost():
    def wait() -> None:
        with requests() as request:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("went on")
        assert request.signal

    assert exit_status(wait) == 75


@pytest.mark.parametrize("error", [UserError, OSError])
def test_a_closed_bucket_is_one_line_however_many_it_says(capsys, error):
    def forbidden() -> None:
        raise error("Forbidden: gs://bucket/run\nno storage.objects.create access")

    assert exit_status(forbidden) == 2
    assert "Forbidden: gs://bucket/run no storage.objects.create access" in capsys.readouterr().err.rstrip("\n")


def test_a_library_does_not_swallow_it():
    """As JAX did, where it reads its cache of compiled programs: a study went on."""
    with pytest.raises(Interrupted), requests() as request, contextlib.suppress(Exception):
        request.take(signal.SIGTERM, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_where_python_ignores_exceptions(number):
    """As JAX's callback of the garbage collector did with Ctrl-C: the evaluation went on to its end."""

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
