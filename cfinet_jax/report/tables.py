"""Tables and lists of a report."""

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
    """Return a table of outcomes (`metrics.error_types`) with a row for each class and one for all."""
    rows = []
    for name, outcomes in [("**all**", counts.sum(axis=0)), *zip(map(escape, classes), counts, strict=True)]:
        objects, detections = outcomes[TRUE] + outcomes[MISSED], outcomes[:MISSED].sum()
        rows.append([name, objects, outcomes[MISSED], detections, *outcomes[:MISSED]])
    return with_head(["class", "objects", "missed", "detections", *OUTCOMES[:MISSED]], rows)


def settings(path: epath.Path, config: ConfigDict) -> str:
    """List the settings and the machine in `settings.json` at `path`, and where the config of the evaluation differs.

    If the file is missing or damaged, the list says so and has the config of the evaluation only.
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
        head = f"{path.name} is missing or damaged: these are the settings of this evaluation."
        values = now
    lines = []
    for key, value in sorted(values.items()):
        lines.append(f"{key} = {json.dumps(value)}")
        if now.get(key, value) != value:
            lines[-1] += f"    (this evaluation: {json.dumps(now[key])})"
    return f"{head}\n\n```text\n" + "\n".join(lines) + "\n```\n"
