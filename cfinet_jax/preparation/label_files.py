"""Convert label files, one per image, to the content of a COCO file."""

import errno
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import upright_size
from cfinet_jax.runtime import files

Label = dict[str, Any]  # an annotation as COCO has it, without ids: `category_id`, `bbox` or `poly`, perhaps `ignore`


def coco_of(
    pairs: Iterable[tuple[epath.Path, epath.Path]],
    names: Mapping[int, str],
    root: epath.Path,
    read_labels: Callable[[epath.Path, int, int], Iterable[Label]],
) -> dict[str, list[dict[str, Any]]]:
    """Return the content of a COCO file.

    Args:
      pairs: each image with its label file.
      names: the classes by id; `read_labels` may still add some.
      root: images in it are named relative to it.
      read_labels: maps a label file and the height and width of its image to annotations, each with a `label_place`
        that says where in the file it stands.
    """
    described, annotations = [], []
    for image_id, (image, labels) in enumerate(pairs, start=1):
        height, width = upright_size(image) or (0, 0)  # the check names a picture that cannot be read, and drops it
        name = str(image.relative_to(root)) if image.is_relative_to(root) else str(image)
        described.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for label in read_labels(labels, height, width):
            annotations.append(label | {"image_id": image_id, "id": len(annotations) + 1})
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


def by_line(
    read_label: Callable[[str, int, int], Label | None],
) -> Callable[[epath.Path, int, int], Iterable[Label]]:
    """Turn a function (line, height, width) -> annotation or None into one that reads a whole label file."""

    def read(path: epath.Path, height: int, width: int) -> Iterable[Label]:
        for number, line in read_lines(path):
            if (label := read_label(line, height, width)) is not None:
                yield label | {"label_place": f"line {number}"}

    return read


def read_lines(path: epath.Path) -> list[tuple[int, str]]:
    """Return the lines of a label file that are not blank, numbered from 1; a missing file has none."""
    try:
        lines = files.read_text(path, "replace").splitlines()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have this name
        return []
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return []
        raise UserError(
            f"label file {path} cannot be read ({error.strerror}): make it readable or remove it"
        ) from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def number(word: str) -> float:
    """Return the number that a word spells, or NaN."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def whole(value: float) -> int | None:
    """Return a number without a fraction as an integer, any other as None."""
    return int(value) if value.is_integer() else None
