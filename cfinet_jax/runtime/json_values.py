"""Values from JSON files of other tools, where numbers may be text and flags have any type."""

import json
import reprlib
from collections.abc import Callable
from typing import Any


def parse(text: str | bytes, translate: Callable[[dict[str, Any]], Any] = lambda entry: entry) -> Any:
    """Parse JSON; `translate` replaces every object, the inner ones first.

    Raises:
      ValueError: it is not JSON, or an object gives a key twice, of which Python would silently take the last.
      RecursionError: it nests too deeply.
    """

    def convert(pairs: list[tuple[str, Any]]) -> Any:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' is given twice")
        return translate(entry)

    return json.loads(text, object_pairs_hook=convert)


def number(value: Any) -> Any:
    """Convert text to the number it holds, also in a list, and whole floats to integers; return others unchanged."""
    if isinstance(value, list):
        return [number(each) if isinstance(each, str) else each for each in value]
    if isinstance(value, str):
        try:
            value = json.loads(value.strip().lower())
        except (ValueError, RecursionError):
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: Any) -> str:
    """Format a value for a message, in at most 80 characters."""
    return reprlib.repr(value)[:80]


def is_flag(value: Any) -> bool:
    """Return whether a value can mean true or false: 0, 1, a bool, or None for a missing one."""
    return value is None or (type(value) in (int, bool) and value in (0, 1))
