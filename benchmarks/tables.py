"""What every benchmark does with its rows: a Markdown table on the screen, JSON in a file if one is asked for."""

import datetime
import json
import os
import shlex
import sys
from pathlib import Path

from cfinet_jax.runtime.settings import git_revision, machine, versions


def report(rows: list[dict[str, str | float | int]], output: str | None) -> None:
    """Prints rows of equal keys with machine, date and command; `output` names the JSON file."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {', '.join(sorted(set(machine()['devices'])))}, {machine()['platform']}",
        "revision": git_revision(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }
    print(markdown(rows))
    print("".join(f"\n{name}: {fact}" for name, fact in facts.items()))
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps({**facts, "versions": versions(), "rows": rows}, indent=1))


def markdown(rows: list[dict[str, str | float | int]]) -> str:
    """Words to the left, numbers to the right, three digits."""
    columns = list(rows[0])
    marks = ["---" if isinstance(rows[0][column], str) else "--:" for column in columns]
    cells = [
        [f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in columns] for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, marks, *cells])
