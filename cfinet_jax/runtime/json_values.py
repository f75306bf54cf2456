"""Values from JSON that others wrote: numbers as text, flags of any type, and how messages show them."""

import json
import reprlib
from typing import Any


def number(value: Any) -> Any:
    """Return the number that a text says, also in a list; a whole float as an integer; anything else as it is."""
    if isinstance(value, list):
        return [number(each) if isinstance(each, str) else each for each in value]
    if isinstance(value, str):
        try:
            value = json.loads(value.strip().lower())
        except (ValueError, RecursionError):
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, however large or deep it is."""
    return reprlib.repr(value)[:80]


def is_flag(value: Any) -> bool:
    """Whether a value can be taken for true or false: 0, 1, or none at all."""
    return value is None or (type(value) in (int, bool) and value in (0, 1))
