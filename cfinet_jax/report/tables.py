"""What a report says in tables and lists, in Markdown."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from cfinet_jax.metrics.errors import MISSED, OUTCOMES, TRUE
from cfinet_jax.metrics.protocols import ANY_AREA, PROTOCOLS, Protocol
from cfinet_jax.run_log import flatten

MIN_BOXES = 50  # of a size or class, for its numbers to mean something
MARKUP = re.compile(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is harmless


def escape(text: str) -> str:
    """What others wrote, such as a class name, on one line of Markdown and without effect on it."""
    plain = html.escape(" ".join(text.split()), quote=False).replace("~", "&#126;")
    return MARKUP.sub(r"\\\g<0>", plain)


def table(metrics: dict, min_boxes: int = MIN_BOXES) -> str:
    """The metrics that `metrics.score` returns, in percent.

    A size or class with fewer than `min_boxes` boxes says `n/a`; the headline always speaks.
    """
    protocol = PROTOCOLS[metrics["protocol"]]
    limit = protocol.limits[-1]
    lines = [f"{protocol}.", "", "| size (area in px) | AP | AP50 | AP75 | AR | boxes |", "|---|--:|--:|--:|--:|--:|"]
    headline = [percent(metrics[key]) for key in ("AP", "AP50", "AP75", f"AR{limit}")]
    lines.append(row(f"**{_range_name(protocol, protocol.headline)}**", *headline, metrics["boxes"][protocol.headline]))
    for size in protocol.sizes:
        boxes = metrics["boxes"][size]
        ap, ap50, ar = (percent(metrics[f"{key}_{size}"], boxes, min_boxes) for key in ("AP", "AP50", "AR"))
        lines.append(row(_range_name(protocol, size), ap, ap50, "", ar, boxes))
    lines += ["", f"| class ({protocol.headline}) | AP | AP50 | boxes |", "|---|--:|--:|--:|"]
    for name, values in metrics["per_class"].items():
        ap, ap50 = (percent(values[key], values["boxes"], min_boxes) for key in ("AP", "AP50"))
        lines.append(row(escape(name), ap, ap50, values["boxes"]))
    return "\n".join(lines) + "\n"


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


def percent(value: float | None, boxes: int = 0, min_boxes: int = 0) -> str:
    """With one digit; `n/a` where there is no value or too few boxes."""
    return "n/a" if value is None or boxes < min_boxes else f"{100 * value:.1f}"


def with_head(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose first column holds names, the others numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"{row(*line)}\n" for line in lines)


def row(*cells: Any) -> str:
    """Of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def _range_name(protocol: Protocol, size: str) -> str:
    low, high = protocol.ranges[size]
    if (low, high) == ANY_AREA:
        return size
    return f"{size} (> {low:g})" if high == ANY_AREA[1] else f"{size} ({low:g}-{high:g})"
