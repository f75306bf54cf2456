"""`--devices`: what the processes see and how they end, with a shell script in place of the program."""

import os
import sys
import time
from collections.abc import Iterator

import jax
import pytest
from etils import epath

from cfinet_jax.errors import Interrupted, UserError
from cfinet_jax.studies import ablate
from cfinet_jax.studies.ablate import devices
from tests import tiny

WAIT = "while :; do sleep 0.05; done"


@pytest.fixture
def run_on(tmp_path, monkeypatch):
    """Run a script on two devices; the first of them also runs `first`."""
    monkeypatch.setattr(devices, "LOOK", 0.05)
    monkeypatch.setattr(devices, "PATIENCE", 1.0)
    monkeypatch.setattr(sys, "argv", ["main"])

    def call(script: str, first: str = "") -> None:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\nif [ $CFINET_JAX_HELPER = 0 ]; then\n:; {first}\nfi\n{WAIT}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        devices.run_on(["0", "1"], [], epath.Path(tmp_path))

    return call


def test_ctrl_c_does_not_reach_the_processes(run_on, tmp_path):
    """They run in other sessions: a second signal, after the one that is passed on, would end them unsaved."""
    run_on("ps -o sid= -p $$; exit 0")
    sessions = {int((tmp_path / "devices" / f"{device}.log").read_text()) for device in (0, 1)}
    assert len(sessions) == 2 and os.getsid(0) not in sessions


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("trap 'exit 75' TERM", "SIGINT, with everything saved"),
        ("trap 'exit 1' TERM", "may be lost: the process of device 0 ended with status 1 and the process of device 1"),
        ("trap '' TERM", "may be lost: the process of device 0 ended with status -9 and the process of device 1"),
    ],
    ids=["saved", "broken", "hangs"],
)
def test_a_signal_is_passed_on_and_its_result_reported(run_on, script, message):
    together = "touch $0.$CFINET_JAX_HELPER; until [ -e $0.0 -a -e $0.1 ]; do sleep 0.02; done"
    started = time.monotonic()
    with pytest.raises(Interrupted, match=message):
        run_on(f"{script}; {together}", "kill -INT $PPID")
    assert time.monotonic() - started < 30


def test_if_a_process_cannot_start_the_others_end(run_on, monkeypatch):
    start, started = devices.start, []

    def only_one(device: str, folder: epath.Path):
        if started:
            raise OSError("no more processes")
        started.append(start(device, folder))
        return started[0]

    monkeypatch.setattr(devices, "start", only_one)
    with pytest.raises(OSError, match="no more processes"):
        run_on("")
    assert started[0].returncode is not None


@pytest.mark.parametrize(
    ("inherited", "device", "seen"),
    [(None, "2", "2"), ("4,5,6", "2", "6"), ("GPU-a,GPU-b", "0", "GPU-a"), ("", "1", "")],
)
def test_devices_are_counted_among_the_visible_ones(monkeypatch, inherited, device, seen):
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
        monkeypatch.delenv(name, raising=False)
        if inherited is not None:
            monkeypatch.setenv(name, inherited)
        assert devices.seeing(device)[name] == seen


def test_a_device_that_is_not_visible_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UserError, match="--devices has 2, but CUDA_VISIBLE_DEVICES=4,5 has 2 devices"):
        devices.leave_to_helpers("0,2", epath.Path(tmp_path))


@pytest.fixture
def any_platform() -> Iterator[None]:
    """JAX may use any platform, as it may if JAX_PLATFORMS is not set."""
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", before)


def test_accelerators_are_left_to_the_helpers(any_platform, monkeypatch, tmp_path):
    """Before anything could initialise JAX, which takes all that it finds."""

    def discover_sizes(*_) -> None:
        asked.append(jax.config.jax_platforms)
        raise UserError("Enough.")

    asked = []
    monkeypatch.setattr(ablate, "discover_sizes", discover_sizes)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for helper, platforms in ((None, "cpu"), ("0", None)):
        jax.config.update("jax_platforms", None)
        if helper is not None:
            monkeypatch.setenv(devices.HELPER, helper)
        with pytest.raises(UserError, match="Enough"):
            ablate.ablate(tiny.tiny_config(), epath.Path(tmp_path), "table5", 1, "0")
        assert asked.pop() == platforms
