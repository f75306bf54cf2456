"""Compare what was read of SODA-D or SODA-A with what is known of the whole data set."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from cfinet_jax.input.pictures import find_pictures
from cfinet_jax.input.windows import window_origins
from cfinet_jax.metrics.protocols import SIZES, sizes_of
from cfinet_jax.preparation.coco_annotations import ANY_CLASS, Split, summary
from cfinet_jax.preparation.sodad_windows import OVERLAP, WINDOW, origins_in

BAR = 50  # characters of a bar that stands for all objects


def report(
    name: str, splits: Mapping[str, Split], published: Mapping[str, int], listed: Mapping[epath.Path, set[str]]
) -> str:
    """Describe the splits of a data set, and pictures that no annotation file lists.

    Args:
      name: of the data set.
      splits: splits of whole images.
      published: numbers of the whole data set: "images", "objects" and perhaps "windows of SPLIT".
      listed: paths of the images that the annotation files name, by the folder that is searched for others.
    """
    lines, found = [], Counter()
    for split, content in splits.items():
        counts = count_objects(content)
        images, objects = len(content.records), int(counts.sum())
        regions = content.account["annotations_kept"] - objects
        line = f"{split}: {images:,} images, {objects:,} objects, {regions:,} regions"
        if any(key.startswith("windows") for key in published):
            windows = count_windows(split, content)
            line += f", {windows:,} windows of {WINDOW[0]} x {WINDOW[1]}"
            found[f"windows of {split}"] = windows
        found.update(images=images, objects=objects)
        by_size = counts.sum(axis=0)
        names = [*content.categories.values(), "all"]
        lines += [line, *table(names, np.vstack([counts, by_size])), "", *histogram(by_size), ""]
    for key, known in published.items():
        remark = "as known" if found[key] == known else f"where the whole of {name} has {known:,}"
        lines.append(f"{key}: {found[key]:,}, {remark}")
    return "\n".join([*lines, f"Pictures in the folders: {summary(strays(listed))}"])


def strays(listed: Mapping[epath.Path, set[str]]) -> dict[str, list[str]]:
    """Return the pictures in the folders that no annotation file names, as a problem."""
    known = set().union(*listed.values())
    names = {str(picture): picture.name for folder in listed for picture in find_pictures(folder)}
    found = [name for path, name in names.items() if path not in known]
    return {"image in no annotation file, skipped": found} if found else {}


def count_objects(content: Split) -> np.ndarray:
    """Count objects by class and by the size that their annotation states, `[classes, sizes]`."""
    counts = np.zeros((len(content.categories), len(SIZES)), int)
    for image in content.records:
        labels = np.array(image["objects"]["label"], int)
        is_object = labels != ANY_CLASS
        np.add.at(counts, (labels[is_object], sizes_of(np.array(image["objects"]["area"])[is_object])), 1)
    return counts


def count_windows(split: str, content: Split) -> int:
    """Count the windows that SODA's tool makes of a split: it skips images without annotations."""
    if split == "train":
        return sum(len(origins_in(image)) for image in content.records)
    sizes = ((image["height"], image["width"]) for image in content.records if image["objects"]["label"])
    return sum(len(window_origins(size, WINDOW, OVERLAP)) for size in sizes)


def table(names: Sequence[str], counts: np.ndarray) -> list[str]:
    """Format counts `[names, sizes]`: one line per name, one column per size and one for all."""
    width = max(map(len, names))
    rows = ((name, *(f"{count:,}" for count in (*row, row.sum()))) for name, row in zip(names, counts, strict=True))
    return [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in row) for name, *row in (("", *SIZES, "all"), *rows)]


def histogram(counts: np.ndarray) -> list[str]:
    """Draw a bar per size, after Fig. 3 of the paper."""
    shares = counts / max(counts.sum(), 1)
    return [f"{size:<7}{share:5.0%} {'#' * round(BAR * share)}" for size, share in zip(SIZES, shares, strict=True)]
