"""Read folders in DOTA's layout: one label file per image, with the corners, class and difficulty of each object.

A line is `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`; a class may consist of several words. The header lines with the
source and the resolution of the image are skipped.
"""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import ENDINGS
from cfinet_jax.metrics.units import MIN_BOXES
from cfinet_jax.preparation.coco_annotations import Split, check_split, read_splits
from cfinet_jax.preparation.coco_layout import SPLITS
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.label_files import Label, by_label_file, by_line, coco_of, number, read_lines
from cfinet_jax.runtime.paths import matching

HEADERS = ("imagesource:", "gsd:")
COORDINATES = 8


class Line(NamedTuple):
    """The content of a line."""

    polygon: list[float]
    name: str
    difficult: bool


def read_dota(source: epath.Path, journal: Journal) -> dict[str, Split]:
    """Read the splits in `source`, each a folder with `images` and `labelTxt`; classes are sorted by name.

    Raises:
      UserError: there is no split, no class, or no usable image.
    """
    found = {split: sorted(matching(source / split / "labelTxt", "*.txt")) for split in SPLITS}
    found = {split: labels for split, labels in found.items() if labels}
    if not found:
        raise UserError(
            f"{source} holds no SPLIT/labelTxt/NAME.txt (SPLIT is {', '.join(SPLITS)}): "
            "give --source the folder that contains the splits"
        )
    names = dict(enumerate(class_names(itertools.chain(*found.values())), start=1))
    ids = {name: key for key, name in names.items()}

    def read_label(text: str, height: int, width: int) -> Label | None:
        line = parse(text)
        return line and {"category_id": ids.get(line.name), "poly": line.polygon, "ignore": line.difficult}

    def read(split: str, labels: list[epath.Path]) -> Split:
        folder = source / split
        pictures = (path for path in matching(folder / "images", "*") if path.suffix.lower() in ENDINGS)
        by_label = by_label_file(pictures, lambda path: folder / "labelTxt" / f"{path.stem}.txt")
        unlabelled = sorted(path.stem for path in by_label.keys() - set(labels))
        if unlabelled:
            print(f"{split}: {len(unlabelled)} pictures without a label file are left out, such as {unlabelled[0]}")
        pairs = [(by_label.get(path, folder / "images" / f"{path.stem}.png"), path) for path in labels]
        coco = coco_of(pairs, names, folder / "images", by_line(read_label))
        return check_split(split, coco, folder / "labelTxt", folder / "images", journal, labels, boxes="oriented")

    return read_splits(found, read)


def class_names(labels: Iterable[epath.Path]) -> list[str]:
    """Return every class that a sound line of the label files names, sorted; refuse lines that begin with the class."""
    lines = (parse(text) for path in labels for _, text in read_lines(path))
    found = {(line.name, line.polygon[0]) for line in lines if line and len(line.polygon) == COORDINATES and line.name}
    names = {name for name, _ in found}
    numeric = [name for name in names if math.isfinite(number(name))]
    # In lines that begin with the class a coordinate is read as the name: there are fewer first numbers than names.
    if len({first for _, first in found}) < len(numeric) >= max(MIN_BOXES, len(names) / 2):
        raise UserError(f"labelTxt names {len(numeric)} classes such as {numeric[0]}: give the class after the corners")
    return sorted(names)


def parse(text: str) -> Line | None:
    """Split a line into its parts; return None for a header."""
    if text.strip().lower().startswith(HEADERS):
        return None
    words = text.split()
    polygon = [*itertools.takewhile(math.isfinite, map(number, words[:COORDINATES]))]
    name = words[len(polygon) :]  # one or more words, perhaps followed by the difficulty
    difficult = len(name) > 1 and math.isfinite(number(name[-1])) and number(name.pop()) != 0
    return Line(polygon, " ".join(name), difficult)
