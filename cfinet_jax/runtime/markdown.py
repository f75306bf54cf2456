"""Tables in Markdown, and text that has no effect on them."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

MARKUP = re.compile(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is harmless


def escape(text: str) -> str:
    """Escape untrusted text (such as a class name) for use in one line of Markdown."""
    plain = html.escape(" ".join(text.split()), quote=False).replace("~", "&#126;")
    plain = plain.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")  # no links either
    return MARKUP.sub(r"\\\g<0>", plain)


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
