"""Wall-clock time, peak memory and AP of a command, such as ./run.sh, in a fresh clone of this repository.

    python -m benchmarks.job [--metrics=FILE] [--output=JSON] [-- COMMAND ...]

The clone has no environment, no data and no compiled programs, so that ./run.sh, the default, pays for all of them. It
holds only what is committed. Linux only: memory is the proportional set size that /proc gives for every process.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

from benchmarks import common

REPOSITORY = Path(__file__).resolve().parents[1]
INTERVAL = 0.5  # seconds between two looks at the memory


def memory_of_session(session: int) -> int:
    """Return the bytes held by the processes of a session; pages shared by several of them count once."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while it is read, or belong to another user
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                rollup = (process / "smaps_rollup").read_text().split()
                total += 1024 * int(rollup[rollup.index("Pss:") + 1])
    return total


def run(command: list[str], folder: Path) -> tuple[int, float, int]:
    """Run a command in a folder; return its exit status, seconds and peak memory in bytes."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        while process.poll() is None:
            peak = max(peak, memory_of_session(process.pid))
            time.sleep(INTERVAL)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    return process.returncode, time.perf_counter() - started, peak


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    result = common.parser("job", __doc__)
    result.add_argument("--metrics", default="runs/scenes/metrics.json", help="what the command writes in the clone")
    result.add_argument("command", nargs="*", default=["./run.sh"], help="after --; the default is ./run.sh")
    return result


def main() -> int:
    """Clone, run and report; return the exit status of the command."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        status, seconds, peak = run(arguments.command, clone)
        if status:
            print(f"{shlex.join(arguments.command)} failed with status {status}", file=sys.stderr)
            return status
        metrics = json.loads((clone / arguments.metrics).read_text())
    row: common.Row = {
        "command": shlex.join(arguments.command),
        "wall clock, s": round(seconds),
        "peak memory, MiB": round(peak / 2**20),
        "AP": 100 * metrics["AP"],
        "AP50": 100 * metrics["AP50"],
    }
    common.report([row], arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
