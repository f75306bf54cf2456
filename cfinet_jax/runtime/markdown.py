"""Markdown: tables, numbers in them, and escaping of untrusted text."""

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
    """Return a fraction as percent with one digit; `n/a` if there is no value or too few boxes."""
    return "n/a" if value is None or boxes < min_boxes else f"{100 * value:.1f}"


def with_head(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table whose first column holds names, and the others numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def mebibytes(count: float) -> str:
    """Return a number of bytes in MiB, with two digits."""
    return f"{count / 2**20:,.2f}"
