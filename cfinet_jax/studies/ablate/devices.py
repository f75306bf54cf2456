"""Study on several devices: one process for each, which takes the next run that nobody else is running."""

import os
import subprocess
import sys
import time

import jax
from etils import epath

from cfinet_jax.errors import Interrupted, UserError
from cfinet_jax.runtime.interruption import RESUME, requests
from cfinet_jax.runtime.paths import in_bucket
from cfinet_jax.runtime.progress import Progress
from cfinet_jax.studies.ablate.runs import Run

HELPER = "CFINET_JAX_HELPER"  # environment variable that marks the processes started here
LOOK = 2.0  # seconds between two looks at the processes
PATIENCE = 600.0  # seconds that they have to save their state
SAVED = (0, 75)  # exit statuses of a process that lost nothing: done, or stopped in an orderly way


def is_helper() -> bool:
    """Return whether this process was started by `run_on`."""
    return HELPER in os.environ


def leave_to_helpers(given: str, workdir: epath.Path) -> list[str]:
    """Return the devices of `--devices`, and keep JAX in this process from taking them for itself.

    Raises:
      UserError: if one is no device, or the processes could not know which runs the others are running.
    """
    devices = given.split(",")
    for device in devices:
        if not device.isdigit():
            raise UserError(f"--devices has {device!r}: use numbers, such as 0,1,2,3.")
        seeing(device)
    if in_bucket(workdir):
        raise UserError(
            "--devices needs a --workdir on a disk: buckets have no locks, without which processes cannot share runs."
        )
    jax.config.update("jax_platforms", "cpu")
    return devices


def seeing(device: str) -> dict[str, str]:
    """Return the environment of a process that sees only one GPU or TPU chip of those that this process may see."""
    alone = {name: visible(name, device) for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")}
    bounds = dict.fromkeys(("TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS"), "1,1,1")
    return os.environ | alone | bounds | {HELPER: device}


def visible(name: str, device: str) -> str:
    """Return the physical number of a device, given the variable `name` that limits the devices of this process."""
    listed = os.environ.get(name)
    if not listed:  # unset, or empty, which hides all of them
        return device if listed is None else listed
    known = listed.split(",")
    if int(device) >= len(known):
        raise UserError(f"--devices has {device}, but {name}={listed} has {len(known)} devices: count from 0.")
    return known[int(device)]


def run_on(devices: list[str], runs: list[Run], workdir: epath.Path) -> None:
    """Run this command once for every device and wait; their output goes to `devices/` in the workdir.

    Raises:
      Interrupted: after SIGTERM or SIGINT, which the processes get too, when all of them have ended.
    """
    folder = workdir / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress("Study", len(runs), done(runs), unit="runs")
    started: dict[str, subprocess.Popen] = {}
    with requests() as request:
        try:
            request.unsaved = True  # signals wait, so that no process is started that nobody knows of
            for device in devices:
                started[device] = start(device, folder)
            request.unsaved = False
            if request.signal:
                raise request.interrupted()
            while any(process.poll() is None for process in started.values()):
                time.sleep(LOOK)
                if done(runs) > progress.done:
                    progress.advance(done(runs) - progress.done)
        except BaseException as error:
            bad = stop(started)
            if isinstance(error, Interrupted) and bad:
                raise Interrupted(
                    f"Stopped by {request.signal}, but some work may be lost: {' and '.join(bad)}. "
                    f"See {folder}. {RESUME}"
                ) from error
            raise
    progress.close()
    check(started, folder)


def start(device: str, folder: epath.Path) -> subprocess.Popen:
    """Start this command on one device, in another session: Ctrl-C reaches only this process, which passes it on."""
    command = [sys.executable, "-m", "cfinet_jax.main", *sys.argv[1:]]
    with (folder / f"{device}.log").open("w") as log:
        return subprocess.Popen(
            command, env=seeing(device), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def stop(started: dict[str, subprocess.Popen]) -> list[str]:
    """Ask the processes to save and end, kill those that do not; return a message on each that may have lost work."""
    for process in started.values():
        process.terminate()
    for process in started.values():
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return [
        f"the process of device {device} ended with status {process.returncode}"
        for device, process in started.items()
        if process.returncode not in SAVED
    ]


def check(ended: dict[str, subprocess.Popen], folder: epath.Path) -> None:
    """Print which processes failed as a whole; the failure of a run is recorded with the run instead."""
    for device, process in ended.items():
        if process.returncode:
            last = (folder / f"{device}.log").read_text().splitlines()[-1:]
            print(
                f"The process of device {device} ended with status {process.returncode}: {' '.join(last)}", flush=True
            )


def done(runs: list[Run]) -> int:
    """Return the number of finished runs."""
    return sum(run.finished for run in runs)
