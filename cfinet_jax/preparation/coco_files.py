"""Load annotation files in COCO's JSON format, whose numbers and flags may be written as text."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.runtime import files, json_values

NUMBERS = ("id", "image_id", "category_id", "height", "width", "area")
BOXES = ("bbox", "rbox", "poly")
FLAGS = ("ignore", "iscrowd")
ID_LIMIT = 2**31  # batches hold ids in 32 bits
NEEDED: dict[str, dict[str, Any]] = {  # required keys of the entries of each list, and their types
    "images": {"id": object, "file_name": str, "height": int | float, "width": int | float},
    "annotations": {"image_id": object},
    "categories": {"id": object, "name": str},
}
Translate = Callable[[dict[str, Any]], dict[str, Any]]


def load_json(path: epath.Path, translate: Translate = lambda entry: entry) -> Any:
    """Parse an annotation file; `translate` replaces every JSON object, the inner ones first."""
    try:
        return json_values.parse(files.read_bytes(path), translate)
    except OSError as error:
        raise UserError(f"annotation file {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotation file {path} is not JSON: {error}") from error


def convert(path: epath.Path, entry: dict[str, Any], flags: Sequence[str] = FLAGS) -> None:
    """Replace numbers and flags of an entry that are written as text or as floats by their values.

    Raises:
      UserError: a flag is neither 0 nor 1.
    """
    for key in (*NUMBERS, *BOXES, *flags):
        value = entry.get(key)
        if type(value) in (str, float) or (key in BOXES and value is not None):
            entry[key] = value = json_values.number(value)
        if key in flags and not json_values.is_flag(value):
            raise UserError(f"annotation file {path}: '{key}' is {json_values.shown(value)}, which must be 0 or 1")


def load_coco(
    path: epath.Path, translate: Translate = lambda entry: entry, flags: Sequence[str] = FLAGS
) -> dict[str, Any]:
    """Parse a COCO file, check its structure and convert its numbers and `flags`.

    `translate` renames the keys of a file that deviates from COCO, as in `load_json`.

    Raises:
      UserError: a list, a key or an id is missing, of another type or repeated.
    """
    coco = load_json(path, translate)
    for key, needed in NEEDED.items():
        entries = coco.get(key) if isinstance(coco, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"annotation file {path} is not COCO: it has no list '{key}'")
        for entry in entries:
            if not isinstance(entry, dict) or not needed.keys() <= entry.keys():
                raise UserError(f"annotation file {path} is not COCO: every one of '{key}' needs {sorted(needed)}")
            convert(path, entry, flags)
            for name, kind in needed.items():
                if not isinstance(entry[name], kind):
                    shown = json_values.shown(entry[name])
                    raise UserError(f"annotation file {path} is not COCO: '{name}' in '{key}' cannot be {shown}")
        if key != "annotations":
            check_ids(path, key, [entry["id"] for entry in entries])
    return coco


def check_ids(path: epath.Path, key: str, ids: list[Any]) -> None:
    """Refuse ids that are not whole numbers, too large or repeated."""
    if not all(map(is_id, ids)):
        raise UserError(f"annotation file {path} is not COCO: the ids of '{key}' must be whole numbers below 2^31")
    repeated, times = max(Counter(ids).items(), key=lambda pair: pair[1], default=(None, 0))
    if times > 1:
        raise UserError(f"annotation file {path} gives the id {repeated} to several of '{key}': make ids unique")


def is_id(value: Any) -> bool:
    """Whether a value can be an id; JSON's `true` is not one, though Python counts it among the integers."""
    return type(value) is int and abs(value) < ID_LIMIT
