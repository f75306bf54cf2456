"""Two processes are one run: every image once, the losses of one process, and they stop together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cfinet_jax.preparation.scenes.scenes_builder import Builder
from cfinet_jax.runtime import mesh
from cfinet_jax.training import train
from tests import joined

ROOT = Path(__file__).parents[2]


def free_address() -> str:
    """Return an address of this machine with a free port."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return f"localhost:{listener.getsockname()[1]}"


def logged(workdir: Path) -> dict[int, dict[str, float]]:
    """The numbers of every training step in a log, as far as it has been written."""
    log = workdir / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["step"]: record for record in records if record.pop("kind") == "train"}


@pytest.fixture
def optimised(monkeypatch) -> Iterator[None]:
    """Programs as users run them, here and in processes that the test starts; other tests compile faster."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_two_processes_are_one_run(tmp_path):
    data_dir = tmp_path / "prepared"
    Builder(counts={"train": 16, "test": 13}, data_dir=data_dir).download_and_prepare(
        file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"  # the last one counts
    address = free_address()
    started = []
    for index in range(joined.PROCESSES):
        command = [sys.executable, "-m", "tests.joined", address, str(index), str(data_dir), str(tmp_path)]
        with (tmp_path / f"{index}.log").open("w") as log:
            environment = os.environ | {"XLA_FLAGS": flags}
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        while len(logged(tmp_path / "run")) < 2 and all(process.poll() is None for process in started):
            time.sleep(0.1)
        started[1].send_signal(signal.SIGTERM)
        ended = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    logs = [(tmp_path / f"{index}.log").read_text() for index in range(joined.PROCESSES)]
    assert ended == [75, 75], logs
    stopped = int(logs[0].partition("after step ")[2].partition(",")[0].replace(",", ""))
    assert "Stopped by another process after" in logs[0] and "Stopped by SIGTERM after" in logs[1]
    assert "steps 0 to" in logs[0] and "steps 0 to" not in logs[1]

    # Every window once, in order.
    expected = joined.evaluate_windows(data_dir)._asdict()
    assert len(set(expected["image_ids"].tolist())) == 13
    for index in range(joined.PROCESSES):
        with np.load(tmp_path / f"{index}.npz") as found:
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)

    # Eight devices of one process, and from the checkpoint on a single one.
    config = joined.experiment(data_dir, 8 * (stopped + 2))
    train(config, tmp_path / "eight")
    alone = mesh.make_mesh(jax.devices()[:1])
    with mock.patch.object(mesh, "make_mesh", lambda: alone):
        train(config, tmp_path / "run")
    expected, found = logged(tmp_path / "eight"), logged(tmp_path / "run")
    assert found.keys() == expected.keys() == set(range(1, stopped + 3))
    for step, values in expected.items():
        for name, value in values.items():
            np.testing.assert_allclose(found[step][name], value, rtol=2e-3, atol=1e-4, err_msg=f"{step} {name}")
