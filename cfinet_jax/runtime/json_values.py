"""Values from JSON files of other tools, where numbers may be text and flags have any type."""

import json
import reprlib
from typing import Any


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
