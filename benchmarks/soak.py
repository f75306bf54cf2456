"""Check that a training interrupted at random ends like an undisturbed one, and that a long one does not leak memory.

    python -m benchmarks.soak [--ends=N] [--growth=STEPS] [--seed=N] [--output=JSON]

The tiny experiment of the tests is trained twice: once undisturbed, and once ended at random moments by SIGKILL,
SIGTERM and a full disk in turn, and restarted each time. Both must write the same last checkpoint and the same log, bit
for bit, and no interruption may cost more steps than lie between two checkpoints. Then the resident memory of one long
training may grow by at most 1 MB in 1,000 steps; it saves every 1,000 steps, since each save keeps 0.1 MB in
tensorstore for good. The disk is a small tmpfs, which only root on Linux may mount; elsewhere there are only signals.
"""

import collections
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from etils import epath

from benchmarks import common
from cfinet_jax import checkpoint, training
from cfinet_jax.build import create_run
from tests import tiny

EVERY = 3  # steps between checkpoints
STEPS_EACH = 6  # at most, from a start to the next end
DISK = 24  # MiB
MOST_GROWTH = 1.0  # MB per 1,000 steps
PROGRAM = "from cfinet_jax import main; main.main()"


def start(data_dir: Path, workdir: Path, steps: int, errors: Any = None) -> subprocess.Popen:
    """Start a training in another process, which writes its errors to the file `errors`."""
    images = tiny.tiny_config().dataset.batch_size
    changes = {"images": images * steps, "checkpoint_every_images": images * EVERY}
    command = [sys.executable, "-c", PROGRAM, *tiny.arguments(data_dir, workdir)]
    command += [f"--config.training.{key}={value}" for key, value in changes.items()]
    command += ["--config.evaluation.every_images=1000000"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=Path(__file__).parents[1])


def logged(workdir: Path) -> int:
    """Return the last step in the log."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        return json.loads([line for line in lines if line.endswith("\n")][-1])["step"]
    return 0


def saved(workdir: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max((int(path.name) for path in workdir.glob("checkpoints/[0-9]*") if path.name.isdigit()), default=0)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk at the folder; yield False where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path, left: int) -> None:
    """Let a file grow until only `left` bytes of its disk are free."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(2**16)):
            pass
    os.truncate(path, max(path.stat().st_size - left, 0))


def end(process: subprocess.Popen, kind: str, disk: Path, chance: random.Random) -> int:
    """End a training in one of three ways and return its exit status."""
    if kind == "full disk":
        filler, left = disk / "filler", chance.randrange(2**20)  # less than a checkpoint
        while process.poll() is None:  # keep filling, since the training deletes old checkpoints
            fill(filler, left)
            time.sleep(0.5)
        filler.unlink(missing_ok=True)
        return process.returncode
    process.send_signal(signal.SIGKILL if kind == "SIGKILL" else signal.SIGTERM)
    return process.wait(timeout=300)


def expected(kind: str, status: int, errors: str) -> bool:
    """Return whether a training ended as it should. While Python starts, SIGTERM still ends it at once."""
    if kind == "SIGKILL":
        return status == -signal.SIGKILL
    if kind == "SIGTERM":
        return status == -signal.SIGTERM or (status == 75 and len(errors.splitlines()) == 1)
    return status == 2 and len(errors.splitlines()) == 1


def wait(process: subprocess.Popen, workdir: Path, chance: random.Random) -> None:
    """Wait until a random moment: soon after the start, or some steps later."""
    until, deadline = logged(workdir) + chance.randint(0, STEPS_EACH), time.monotonic() + 300
    if chance.random() < 0.2:
        deadline = time.monotonic() + chance.uniform(0, 15)
    while process.poll() is None and time.monotonic() < deadline and logged(workdir) < until:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.4))


def disturb(data_dir: Path, disk: Path, kinds: list[str], ends: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """Interrupt a training several times, then let it finish; return a row about each interruption."""
    chance, workdir, rows = random.Random(seed), disk / "run", []
    for kind in itertools.islice(itertools.cycle(kinds), ends):
        with tempfile.TemporaryFile("w+") as errors:
            process = start(data_dir, workdir, steps, errors)
            wait(process, workdir, chance)
            status = end(process, kind, disk, chance)
            errors.seek(0)
            said = errors.read()
        lost = max(logged(workdir) - saved(workdir), 0)
        good = expected(kind, status, said) and lost <= EVERY
        rows.append({"kind": kind, "status": status, "saved": saved(workdir), "lost": lost, "good": good})
        print(*(f"{key} {value}" for key, value in rows[-1].items()), "" if good else said, sep="  ", flush=True)
    assert start(data_dir, workdir, steps).wait() == 0
    return rows


def results_of(workdir: Path, data_dir: Path) -> tuple[list[np.ndarray], str]:
    """Return all arrays in the last checkpoint of a run, and its log."""
    config = tiny.tiny_config()
    config.dataset.data_dir = str(data_dir)
    with checkpoint.open_checkpoints(epath.Path(workdir), create=False) as checkpoints:
        restored = checkpoint.restore(checkpoints, create_run(config).state)
    assert restored is not None
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)], (workdir / "metrics.jsonl").read_text()


def growth(data_dir: Path, workdir: Path, steps: int) -> float:
    """Return the growth of resident memory in the second half of a training, in MB per 1,000 steps."""
    config, page = tiny.tiny_config(), os.sysconf("SC_PAGE_SIZE")
    size = config.dataset.batch_size
    config.dataset.data_dir = str(data_dir)
    config.training.update(images=size * steps, checkpoint_every_images=size * 1000)
    config.evaluation.every_images = size * steps
    resident, follow = [], training.Monitor.follow

    def watch(monitor: training.Monitor, *arguments: Any) -> None:
        follow(monitor, *arguments)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6)

    watched = mock.patch.object(training.Monitor, "follow", watch)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), watched:
        training.train(config, workdir)
    half = len(resident) // 2
    slope, _ = np.polyfit(np.arange(half), resident[-half:], 1)
    print(f"resident memory after 0, 1/4, 1/2, 3/4 and all steps, MB: {[round(x) for x in resident[:: steps // 4]]}, "
          f"{resident[-1]:.0f}")  # fmt: skip
    return 1000 * slope


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    result = common.parser("soak", __doc__)
    result.add_argument("--ends", type=int, default=20, help="how often the training is interrupted")
    result.add_argument("--growth", type=int, default=5000, help="steps of the long training; 0 leaves it out")
    result.add_argument("--seed", type=int, default=0, help="of the random moments")
    return result


def main() -> int:
    """Interrupt, compare, measure and report; return 1 if anything is not as it should be."""
    arguments = parser().parse_args()
    steps = arguments.ends * STEPS_EACH + EVERY
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_dir = Path(tiny.prepare_scenes(epath.Path(folder, "prepared")))
        assert start(data_dir, folder / "quiet", steps).wait() == 0
        with small_disk(folder / "disk") as limited:
            kinds = ["SIGKILL", "SIGTERM", *(["full disk"] if limited else [])]
            ends = disturb(data_dir, folder / "disk", kinds, arguments.ends, steps, arguments.seed)
            found, quiet = (results_of(each, data_dir) for each in (folder / "disk" / "run", folder / "quiet"))
        same = found[1] == quiet[1] and all(map(np.array_equal, found[0], quiet[0]))
        grown = growth(data_dir, folder / "long", arguments.growth) if arguments.growth else None
    rows: list[common.Row] = [
        {"what": f"ended by {kind}", "result": count}
        for kind, count in collections.Counter(r["kind"] for r in ends).items()
    ]
    rows += [
        {"what": "ended in another way than documented", "result": sum(not row["good"] for row in ends)},
        {"what": "most steps lost at once", "result": max(row["lost"] for row in ends)},
        {
            "what": f"{len(quiet[0])} arrays and the log as in a quiet run of {steps} steps",
            "result": "yes" if same else "NO",
        },
    ]
    if grown is not None:
        rows.append({"what": f"growth in {arguments.growth} steps, MB per 1,000", "result": round(grown, 2)})
    common.report(rows, arguments.output)
    return int(not same or not all(row["good"] for row in ends) or (grown or 0) > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
