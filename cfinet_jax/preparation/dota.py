"""Reads folders as DOTA has them: a label file per image, with the corners, the class and the difficulty of objects.

A line is `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`, where a class may be several words; lines of the source and the
resolution of an image are passed over.
"""

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import ENDINGS
from cfinet_jax.metrics.units import MIN_BOXES
from cfinet_jax.preparation.coco_annotations import Split, check_split, read_splits
from cfinet_jax.preparation.coco_layout import SPLITS
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.label_files import by_label_file, coco_of, number, read_lines
from cfinet_jax.runtime.paths import matching

HEADERS = ("imagesource:", "gsd:")  # beginnings of lines that are of no object
CORNERS = 8  # numbers


class Label(NamedTuple):
    """What a line says."""

    polygon: list[float]
    name: str
    difficult: bool


def read_dota(source: epath.Path, journal: Journal) -> dict[str, Split]:
    """The splits whose folders are in `source`, each with `images` and `labelTxt`; classes are ordered by their names.

    Raises:
      UserError: there is none, no line names a class, or a split leaves nothing to use.
    """
    found = {split: sorted(matching(source / split / "labelTxt", "*.txt")) for split in SPLITS}
    found = {split: labels for split, labels in found.items() if labels}
    if not found:
        raise UserError(f"{source} holds no SPLIT/labelTxt/NAME.txt (SPLIT is {', '.join(SPLITS)})")
    ids = {name: place for place, name in enumerate(class_names(itertools.chain(*found.values())), start=1)}
    return read_splits(found, lambda split, labels: read_folder(split, source / split, labels, ids, journal))


def class_names(labels: itertools.chain[epath.Path]) -> list[str]:
    """Every class that a sound line of the label files names, by name; lines that begin with the class are refused."""
    lines = (parse(text) for path in labels for _, text in read_lines(path))
    found = {(line.name, line.polygon[0]) for line in lines if line and len(line.polygon) == CORNERS and line.name}
    names = {name for name, _ in found}
    numeric = [name for name in names if math.isfinite(number(name))]
    # Where the class comes first, there are fewer first numbers than last corners.
    if len({first for _, first in found}) < len(numeric) >= max(MIN_BOXES, len(names) / 2):
        raise UserError(f"labelTxt names {len(numeric)} classes such as {numeric[0]}: give the class after the corners")
    return sorted(names)


def read_folder(
    split: str, folder: epath.Path, labels: list[epath.Path], ids: Mapping[str, int], journal: Journal
) -> Split:
    """A split: every label file describes the image of its name in `images`; how many have none is printed."""
    images = folder / "images"
    found = (path for path in matching(images, "*") if path.suffix.lower() in ENDINGS)
    pictures = by_label_file(found, lambda path: folder / "labelTxt" / f"{path.stem}.txt")
    unlabelled = sorted(path.stem for path in pictures.keys() - set(labels))
    if unlabelled:
        print(f"{split}: {len(unlabelled)} pictures without a label file are left out, {unlabelled[0]} the first")
    files = [(pictures.get(path, images / f"{path.stem}.png"), path) for path in labels]
    names = {place: name for name, place in ids.items()}
    coco = coco_of(files, names, images, partial(read_label, ids=ids))
    return check_split(split, coco, folder / "labelTxt", images, journal, labels, boxes="oriented")


def read_label(line: str, height: int, width: int, ids: Mapping[str, int]) -> dict[str, Any] | None:
    """A line as category, corners in pixels, and whether the object is difficult, which is to be ignored then."""
    label = parse(line)
    if label is None:
        return None
    return {"category_id": ids.get(label.name), "poly": label.polygon, "ignore": label.difficult}


def parse(line: str) -> Label | None:
    """What a line says; None for one that is of no object."""
    if line.strip().lower().startswith(HEADERS):
        return None
    words = line.split()
    polygon = [*itertools.takewhile(math.isfinite, map(number, words[:CORNERS]))]
    name = words[len(polygon) :]  # of one word or more, and perhaps the difficulty
    difficult = len(name) > 1 and math.isfinite(number(name[-1])) and number(name.pop()) != 0
    return Label(polygon, " ".join(name), difficult)
