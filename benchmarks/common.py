"""Parts that all benchmarks share: flags, configurations by name, medians of times, and tables as Markdown and JSON."""

import argparse
import datetime
import json
import os
import runpy
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfinet_jax.runtime.settings import git_revision, machine, versions

Row = dict[str, str | float | int]


def parser(name: str, description: str, repeats: int | None = None) -> argparse.ArgumentParser:
    """Return a parser with `--output` and, if a number of repeats is given, `--repeats`."""
    result = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description.partition("\n")[0])
    result.add_argument("--output", help="JSON file for the result")
    if repeats is not None:
        result.add_argument("--repeats", type=int, default=repeats, help="timed rounds; the median counts")
    return result


def load_config(name: str) -> ConfigDict:
    """Return the config of `FILE` or `FILE:VARIANT`."""
    file, _, variant = name.partition(":")
    return runpy.run_path(file)["get_config"](variant)


def medians(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each program; the first of all rounds warms up.

    The programs run in turn, so that other work on the machine slows all of them down alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + repeats):
        for name, program in programs.items():
            started = time.perf_counter()
            program()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def report(rows: list[Row], output: str | None) -> None:
    """Print rows of equal keys as Markdown, with machine, date and command, and write them to `output` if given."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {', '.join(sorted(set(machine()['devices'])))}, {machine()['platform']}",
        "revision": git_revision(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }
    marks = ["---" if isinstance(value, str) else "--:" for value in rows[0].values()]
    cells = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    print("\n".join(f"| {' | '.join(line)} |" for line in [list(rows[0]), marks, *cells]))
    print("".join(f"\n{name}: {fact}" for name, fact in facts.items()))
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps({**facts, "versions": versions(), "rows": rows}, indent=1))
