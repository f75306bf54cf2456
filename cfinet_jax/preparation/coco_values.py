"""Read annotation files in JSON, whose numbers and flags may stand as text."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.runtime import files, json_values

NUMBERS = ("id", "image_id", "category_id", "height", "width", "area")
BOXES = ("bbox", "rbox", "poly")
FLAGS = ("ignore", "iscrowd")


def load_json(path: epath.Path, translate: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Any:
    """Parse an annotation file. `translate` turns every JSON object, the inner ones first, into another."""
    try:
        return json.loads(files.read_bytes(path), object_hook=translate)
    except OSError as error:
        raise UserError(f"annotation file {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotation file {path} is not JSON: {error}") from error


def convert(path: epath.Path, entry: dict[str, Any], flags: Sequence[str] = FLAGS) -> None:
    """Turn numbers and flags of an entry that stand as text, or as floats, into what they say.

    Raises:
      UserError: a flag is neither 0 nor 1.
    """
    for key in (*NUMBERS, *BOXES, *flags):
        value = entry.get(key)
        if type(value) in (str, float) or (key in BOXES and value is not None):
            entry[key] = value = json_values.number(value)
        if key in flags and not json_values.is_flag(value):
            raise UserError(f"annotation file {path}: '{key}' is {json_values.shown(value)}, which must be 0 or 1")
