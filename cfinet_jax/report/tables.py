"""What a report says in tables and lists."""

import json
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from cfinet_jax.metrics.error_types import MISSED, OUTCOMES, TRUE
from cfinet_jax.runtime.markdown import escape, with_head
from cfinet_jax.runtime.settings import flatten


def outcome_table(counts: Int[np.ndarray, "classes outcomes"], classes: Sequence[str]) -> str:
    """The outcomes of `metrics.errors`, a row for each class and one for all; objects are those found and missed."""
    rows = []
    for name, outcomes in [("**all**", counts.sum(axis=0)), *zip(map(escape, classes), counts, strict=True)]:
        objects, detections = outcomes[TRUE] + outcomes[MISSED], outcomes[:MISSED].sum()
        rows.append([name, objects, outcomes[MISSED], detections, *outcomes[:MISSED]])
    return with_head(["class", "objects", "missed", "detections", *OUTCOMES[:MISSED]], rows)


def settings(path: epath.Path, config: ConfigDict) -> str:
    """What `settings.json` at `path` says of a run, and where the config of its evaluation differs.

    Where the file is missing or damaged it says so and lists that config alone.
    """
    now = flatten(json.loads(config.to_json()))
    try:
        facts = json.loads(path.read_text())
        values, machine = flatten(facts["config"]), facts["machine"]
        lists = {
            "revision": facts["revision"],
            "machine": f"{machine['platform']}; {len(machine['devices'])} x {machine['devices'][0]}",
            "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        }
        head = "\n".join(f"- {name}: {escape(str(value))}" for name, value in lists.items())
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        head = f"{path.name} is missing or damaged: only the settings of this evaluation are known."
        values = now
    lines = []
    for key, value in sorted(values.items()):
        lines.append(f"{key} = {json.dumps(value)}")
        if now.get(key, value) != value:
            lines[-1] += f"    (this evaluation: {json.dumps(now[key])})"
    return f"{head}\n\n```text\n" + "\n".join(lines) + "\n```\n"
