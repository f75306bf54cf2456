"""Label files, one per image with a line per object, as the content of a COCO file."""

import errno
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import upright_size
from cfinet_jax.runtime import files


def coco_of(
    files: Iterable[tuple[epath.Path, epath.Path]],
    names: Mapping[int, str],
    root: epath.Path,
    read_label: Callable[[str, int, int], dict[str, Any] | None],
) -> dict[str, list[dict[str, Any]]]:
    """The content of a COCO file, from pairs of an image and its label file.

    `names` are the classes by id; `read_label(line, height, width)` gives `category_id`, `bbox` or `poly`, and perhaps
    `ignore` of a line, as COCO has them, None for what it cannot read; nothing at all of a line that is of no object.
    """
    described, annotations = [], []
    for image_id, (image, labels) in enumerate(files, start=1):
        height, width = upright_size(image) or (0, 0)  # the check names a picture that cannot be read, and drops it
        name = str(image.relative_to(root)) if image.is_relative_to(root) else str(image)
        described.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for line, text in read_lines(labels):
            label = read_label(text, height, width)
            if label is not None:
                annotations.append({"image_id": image_id, "id": len(annotations) + 1, "label_line": line} | label)
    categories = [{"id": index, "name": name} for index, name in names.items()]
    return {"images": described, "annotations": annotations, "categories": categories}


def by_label_file(
    pictures: Iterable[epath.Path], label_file: Callable[[epath.Path], epath.Path]
) -> dict[epath.Path, epath.Path]:
    """Return pictures by their label files; refuse two that share one, as a picture and its mask may."""
    found: dict[epath.Path, epath.Path] = {}
    for picture in pictures:
        labels = label_file(picture)
        if found.setdefault(labels, picture) != picture and files.exists(labels):
            raise UserError(f"{found[labels]} and {picture} share the label file {labels}: move one of them elsewhere")
    return found


def read_lines(path: epath.Path) -> list[tuple[int, str]]:
    """The lines of a label file that say something, with their numbers from 1; none where there is no file."""
    try:
        lines = files.read_text(path, "replace").splitlines()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # there is none, or no file can have this name
        lines = []
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise UserError(
                f"label file {path} cannot be read ({error.strerror}): make it readable or remove it"
            ) from error
        lines = []
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def number(word: str) -> float:
    """The number that a word is, or NaN."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def whole(value: float) -> int | None:
    """A number without a fraction as such, or None."""
    return int(value) if value.is_integer() else None
