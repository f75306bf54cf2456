"""One process for each of several devices: they share the runs of a study, each taking the next that nobody is at."""

import os
import subprocess
import sys
import time

from etils import epath

from cfinet_jax.ablate.runs import Run
from cfinet_jax.errors import Interrupted, UserError
from cfinet_jax.interruption import requests
from cfinet_jax.progress import Progress

HELPER = "CFINET_JAX_HELPER"  # set in the environment of the processes started here
LOOK = 2.0  # seconds between two looks at them
PATIENCE = 600.0  # seconds that they have to save what they are at


def is_helper() -> bool:
    """Whether this process was started by `run_on`."""
    return HELPER in os.environ


def seeing(device: str) -> dict[str, str]:
    """The environment of a process that sees one GPU or one TPU chip alone."""
    alone = {"CUDA_VISIBLE_DEVICES": device, "TPU_VISIBLE_CHIPS": device}
    bounds = dict.fromkeys(("TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS"), "1,1,1")
    return os.environ | alone | bounds | {HELPER: device}


def run_on(devices: list[str], runs: list[Run], workdir: epath.Path) -> None:
    """Starts this very command once for every device, and waits; what they say is in `devices/`.

    A signal is passed on to them. Raises `UserError` for what is no device.
    """
    for device in devices:
        if not device.isdigit():
            raise UserError(f"--devices has {device!r}: give numbers, such as 0,1,2,3.")
    folder = workdir / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cfinet_jax.main", *sys.argv[1:]]
    progress = Progress("Study", len(runs), done(runs), unit="runs")
    started = []
    try:
        with requests():
            for device in devices:
                with (folder / f"{device}.log").open("w") as log:
                    process = subprocess.Popen(command, env=seeing(device), stdout=log, stderr=subprocess.STDOUT)
                started.append(process)
            while any(process.poll() is None for process in started):
                time.sleep(LOOK)
                if done(runs) > progress.done:
                    progress.advance(done(runs) - progress.done)
    except Interrupted:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(PATIENCE)
        raise
    progress.close()
    check(dict(zip(devices, started, strict=True)), folder)


def check(ended: dict[str, subprocess.Popen], folder: epath.Path) -> None:
    """Says which processes did not end well: a failed run is written down, this is something else."""
    for device, process in ended.items():
        if process.returncode:
            last = (folder / f"{device}.log").read_text().splitlines()[-1:]
            print(
                f"The process of device {device} ended with status {process.returncode}: {' '.join(last)}", flush=True
            )


def done(runs: list[Run]) -> int:
    """How many are finished."""
    return sum(run.finished for run in runs)
