"""What was read of SODA-D, beside what is known of the whole."""

from collections.abc import Mapping, Sequence

import numpy as np

from cfinet_jax.input.windows import window_origins
from cfinet_jax.metrics.protocols import SIZES, sizes_of
from cfinet_jax.preparation.coco_annotations import ANY_CLASS, Split
from cfinet_jax.preparation.sodad_windows import OVERLAP, WINDOW, origins_in

KNOWN = {  # the paper; windows: one of its authors, shaunyuan22/SODA-mmdetection#20
    "images": 24_828,
    "objects": 278_433,
    "windows of train": 58_023,
    "windows of test": 161_579,
}
BAR = 50  # characters of a bar that stands for all objects


def report(splits: Mapping[str, Split]) -> str:
    """Splits of whole images, their objects by class and size, and how the sums compare with `KNOWN`."""
    lines, found = [], {"images": 0, "objects": 0}
    for split, content in splits.items():
        counts, windows = count_objects(content), count_windows(split, content)
        images, objects = len(content.records), counts.sum()
        regions = content.account["annotations_kept"] - objects
        height, width = WINDOW
        lines.append(
            f"{split}: {images:,} images, {objects:,} objects, {regions:,} regions, "
            f"{windows:,} windows of {height} x {width}"
        )
        lines += [*table([*content.categories.values(), "all"], np.append(counts, [counts.sum(axis=0)], axis=0)), ""]
        lines += [*histogram(counts.sum(axis=0)), ""]
        found["images"] += images
        found["objects"] += objects
        found[f"windows of {split}"] = windows
    return "\n".join([*lines, *(compare(name, found.get(name, 0), known, "SODA-D") for name, known in KNOWN.items())])


def count_objects(content: Split) -> np.ndarray:
    """Objects by class and by the size that their annotation states, `[classes, sizes]`."""
    counts = np.zeros((len(content.categories), len(SIZES)), int)
    for image in content.records:
        labels = np.array(image["objects"]["label"], int)
        is_object = labels != ANY_CLASS
        np.add.at(counts, (labels[is_object], sizes_of(np.array(image["objects"]["area"])[is_object])), 1)
    return counts


def count_windows(split: str, content: Split) -> int:
    """Windows that SODA's tool makes of a split: it passes over images without annotations."""
    if split == "train":
        return sum(len(origins_in(image)) for image in content.records)
    sizes = ((image["height"], image["width"]) for image in content.records if image["objects"]["label"])
    return sum(len(window_origins(size, WINDOW, OVERLAP)) for size in sizes)


def table(names: Sequence[str], counts: np.ndarray) -> list[str]:
    """A line per class, a column per size and one for all."""
    width = max(map(len, names))
    rows = ((name, *(f"{count:,}" for count in (*row, row.sum()))) for name, row in zip(names, counts, strict=True))
    return [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in row) for name, *row in (("", *SIZES, "all"), *rows)]


def histogram(counts: np.ndarray) -> list[str]:
    """A bar per size, after Fig. 3 of the paper."""
    shares = counts / max(counts.sum(), 1)
    return [f"{size:<7}{share:5.0%} {'#' * round(BAR * share)}" for size, share in zip(SIZES, shares, strict=True)]


def compare(name: str, found: int, known: int, whole: str) -> str:
    """Whether a number is that of the whole data set."""
    remark = "as known" if found == known else f"where the whole of {whole} has {known:,}"
    return f"{name}: {found:,}, {remark}"
