"""One process for each of several devices: they share the runs of a study, each taking the next that nobody is at."""

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

HELPER = "CFINET_JAX_HELPER"  # set in the environment of the processes started here
LOOK = 2.0  # seconds between two looks at them
PATIENCE = 600.0  # seconds that they have to save what they are at
SAVED = (0, 75)  # statuses of a process with nothing left to save: it was done, or stopped as it should


def is_helper() -> bool:
    """Whether this process was started by `run_on`."""
    return HELPER in os.environ


def leave_to_helpers(given: str, workdir: epath.Path) -> list[str]:
    """The devices of `--devices`; from here on JAX uses none of them in this process, which would take all for itself.

    Raises:
      UserError: some are no devices, or the processes could not tell at which run another one is.
    """
    devices = given.split(",")
    for device in devices:
        if not device.isdigit():
            raise UserError(f"--devices has {device!r}: give numbers, such as 0,1,2,3.")
        seeing(device)
    if in_bucket(workdir):
        raise UserError(
            "--devices wants a --workdir on a disk: a bucket has no locks by which processes share the runs."
        )
    jax.config.update("jax_platforms", "cpu")
    return devices


def seeing(device: str) -> dict[str, str]:
    """The environment of a process that sees one GPU or one TPU chip alone, of those that this one may see."""
    alone = {name: visible(name, device) for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")}
    bounds = dict.fromkeys(("TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS"), "1,1,1")
    return os.environ | alone | bounds | {HELPER: device}


def visible(name: str, device: str) -> str:
    """What a device is called outside, where the variable of that name says which ones this process sees."""
    listed = os.environ.get(name)
    if not listed:  # unset, or empty to hide them all
        return device if listed is None else listed
    known = listed.split(",")
    if int(device) >= len(known):
        raise UserError(f"--devices has {device}, but {name}={listed} shows {len(known)}: count them from 0.")
    return known[int(device)]


def run_on(devices: list[str], runs: list[Run], workdir: epath.Path) -> None:
    """Starts this very command once for every device, and waits; what they say is in `devices/`.

    Raises:
      Interrupted: after SIGTERM or SIGINT, which is passed on to them, when they have ended.
    """
    folder = workdir / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress("Study", len(runs), done(runs), unit="runs")
    started: dict[str, subprocess.Popen] = {}
    with requests() as request:
        try:
            request.unsaved = True  # a signal waits until it is known what has been started
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
    """This command on one device, in a session of its own: Ctrl-C is for this process, which passes it on."""
    command = [sys.executable, "-m", "cfinet_jax.main", *sys.argv[1:]]
    with (folder / f"{device}.log").open("w") as log:
        return subprocess.Popen(
            command, env=seeing(device), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def stop(started: dict[str, subprocess.Popen]) -> list[str]:
    """Asks them to save and end, and ends what does not; says which did not end as they should."""
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
