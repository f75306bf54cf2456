"""Read ground truth and detections from JSON files of any origin; refuse in one line what cannot be scored."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from cfinet_jax.boxes import oriented
from cfinet_jax.errors import UserError
from cfinet_jax.metrics.protocols import FLAGS, class_key
from cfinet_jax.metrics.units import suspect_units, tell_areas
from cfinet_jax.runtime.files import read_bytes
from cfinet_jax.runtime.json_values import is_flag, number, parse

LARGEST = 1e18  # larger numbers, like NaN, are invalid


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _is_length(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0


def _is_oriented(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 5 and all(map(_is_number, value)) and abs(value[4]) <= oriented.TURN
    )


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("id", "image_id", "category_id"), (_is_id, "a whole number")),
    "score": (_is_number, "a finite number"),
    **dict.fromkeys(("area", "width", "height"), (_is_length, "a finite number, not negative")),
    **dict.fromkeys(FLAGS, (is_flag, "0 or 1")),
    "bbox": (_is_box, "four finite numbers, x y width height, and no side negative"),
    "rbox": (_is_oriented, "five finite numbers, cx cy w h angle in radians"),
    "name": (lambda value: isinstance(value, str), "a text"),
}
NEEDED = {"images": {"id"}, "categories": {"id", "name"}, "annotations": {"image_id", "category_id", "bbox"}}
OPTIONAL = {"images": {"width", "height"}, "annotations": {"area", *FLAGS}}
DETECTION = {"image_id", "category_id", "bbox", "score"}


def read_ground_truth(path: epath.PathLike, boxes: str = "horizontal") -> dict:
    """Read a COCO JSON file; with "oriented" boxes every annotation needs `rbox` in addition to `bbox`.

    Raises:
      UserError: the file cannot be read, is not COCO, repeats an id or a class, or has boxes in another format.
    """
    content = _read_json(path)
    for part, needed in NEEDED.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path} is not COCO ground truth: it has no list '{part}'")
        oriented = {"rbox"} if part == "annotations" and boxes == "oriented" else set()
        _check_fields(f"{path}, '{part}'", content[part], needed | oriented, OPTIONAL.get(part, set()))
    for part, key in (("images", "id"), ("categories", "id"), ("categories", "name")):
        values = [class_key(entry[key]) if key == "name" else entry[key] for entry in content[part]]
        if len(set(values)) < len(values):
            repeated, _ = Counter(values).most_common(1)[0]
            raise UserError(f"{path} gives the {key} {repeated!r} to more than one of '{part}': make them unique")
    _check_units(path, content["annotations"], content)
    tell_areas(path, [entry for entry in content["annotations"] if "area" in entry])
    return content


def read_detections(path: epath.PathLike, ground_truth: dict, boxes: str = "horizontal") -> list[dict]:
    """Read a JSON file in COCO's results format for the images of a ground truth; "oriented" boxes have five numbers.

    Raises:
      UserError: the file cannot be read, is something else, or has boxes in another format.
    """
    content = _read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} is not a list of detections: each needs {', '.join(sorted(DETECTION))}")
    if boxes == "oriented":
        _check_fields(str(path), content, DETECTION, set(), FIELDS | {"bbox": FIELDS["rbox"]})
    else:
        _check_fields(str(path), content, DETECTION, set())
        _check_units(path, content, ground_truth)
    return content


def _read_json(path: epath.PathLike) -> Any:
    try:
        return parse(read_bytes(epath.Path(path)))
    except (OSError, ImportError) as error:  # the package that reads gs:// may be missing
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _check_fields(where: str, entries: list, needed: set[str], optional: set[str], fields: dict = FIELDS) -> None:
    """Check that every entry has the needed fields, all of the right type; convert numbers that are written as text."""
    kinds = {key: fields[key] for key in sorted(needed | optional)}
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not needed <= entry.keys():
            raise UserError(f"{where}: entry {place} needs {', '.join(sorted(needed))}")
        for key in optional:
            if entry.get(key, 0) is None:
                del entry[key]
        for key, (fits, kind) in kinds.items():
            if key in entry and not fits(entry[key]):
                given, entry[key] = entry[key], number(entry[key])
                if not fits(entry[key]):
                    raise UserError(f"{where}: {key} of entry {place} must be {kind}, not {str(given)[:80]!r}")


def _check_units(path: epath.PathLike, entries: list[dict], ground_truth: dict) -> None:
    """Refuse boxes that are not x y w h in pixels: their scores would be meaningless."""
    described = (image for image in ground_truth["images"] if OPTIONAL["images"] <= image.keys())
    sizes = {image["id"]: (image["width"], image["height"]) for image in described}
    known = [(entry["bbox"], sizes[entry["image_id"]]) for entry in entries if entry["image_id"] in sizes]
    suspicion = suspect_units(*map(np.array, zip(*known, strict=True))) if known else None
    if suspicion:
        raise UserError(f"{path} seems to have {suspicion}: convert the boxes to COCO's x y width height in pixels")
