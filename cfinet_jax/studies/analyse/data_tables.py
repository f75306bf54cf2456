"""Tables and the picture of an analysis."""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cfinet_jax.input.windows import window_origins
from cfinet_jax.metrics.protocols import LIMITS, SIZES, SODA_SIZES, sizes_of
from cfinet_jax.report.plots import save
from cfinet_jax.runtime.markdown import escape, mebibytes, with_head
from cfinet_jax.studies.analyse.contents import Contents


def split_table(contents: Mapping[str, Contents], settings: ConfigDict, overlap: int) -> str:
    """Return a table with a row per split."""
    height, width = window = settings.stored_size
    shared = min(overlap, height - 1), min(overlap, width - 1)
    each = "image" if settings.window_overlap is None else "window"
    head = ["split", f"{each}s", "objects", "regions", f"objects per {each}, median", "most"]
    head += [f"median {each}", "largest"]
    rows = []
    for name, split in contents.items():
        sizes = np.median(split.pictures, axis=0), np.max(split.pictures, axis=0)
        counts = len(split.pictures), len(split.boxes), sum(split.regions)
        most = f"{np.median(split.objects):g}", max(split.objects)
        rows.append([name, *counts, *most, *(f"{high:g} x {wide:g}" for high, wide in sizes)])
    if settings.window_overlap is None:
        head.append(f"windows of {height} x {width}, most")
        for row, split in zip(rows, contents.values(), strict=True):
            distinct = np.unique(split.pictures, axis=0).tolist()
            row.append(max(len(window_origins((high, wide), window, shared)) for high, wide in distinct))
    return with_head(head, rows)


def size_table(contents: Contents) -> str:
    """Return a table with a row per size of objects: as stored and in the network's input."""
    network = contents.areas * contents.scales[contents.owners] ** 2
    counts = [np.bincount(sizes_of(areas), minlength=len(SIZES)) for areas in (contents.areas, network)]
    names = [f"{name} ({low:g}-{high:g})" for name, (low, high) in SODA_SIZES.items()] + [f"larger (> {LIMITS[-1]:g})"]
    shares = [[f"{count} ({count / count_all.sum():.0%})" for count in count_all] for count_all in counts]
    return with_head(["size", "stored", "network"], zip(names, *shares, strict=True))


def class_table(contents: Contents, classes: Sequence[str]) -> str:
    """Return a table with a row per class: its objects by stored size."""
    counts = np.zeros((len(classes), len(SIZES)), int)
    np.add.at(counts, (contents.labels, sizes_of(contents.areas)), 1)
    rows = ([escape(name), *of_class, of_class.sum()] for name, of_class in zip(classes, counts, strict=True))
    return with_head(["class", *SIZES, "all"], rows)


def scale_table(overlaps: Mapping[float, np.ndarray]) -> str:
    """Return a table with a row per anchor scale."""
    rows = ([f"{scale:g}", f"{iou.mean():.3f}", f"{(iou >= 0.5).mean():.0%}"] for scale, iou in overlaps.items())
    return with_head(["anchor scale", "mean best IoU", "objects with 0.5 or more"], rows)


def rule_table(unmatched: Mapping[str, float]) -> str:
    """Return a table with a row per rule of the coarse stage."""
    rows = ([name, f"{share:.1%}"] for name, share in unmatched.items())
    return with_head(["rule of the coarse stage (`coarse_threshold`)", "objects without an anchor"], rows)


def memory_table(needed: Mapping[str, int], available: int) -> str:
    """Return a table with a row per part, in MiB."""
    rows = [[name, mebibytes(count)] for name, count in needed.items()]
    rows += [["**together**", mebibytes(sum(needed.values()))], ["available", mebibytes(available)]]
    return with_head(["memory of a device while training", "MiB"], rows)


def draw(contents: Contents, overlaps: np.ndarray, path: epath.Path) -> None:
    """Draw the distribution of the best IoU by size, as in Fig. 1 of the paper, and that of the objects' sides."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges, sizes = np.linspace(0, 1, 21), sizes_of(contents.areas)
    for index, name in enumerate(SIZES[:3]):
        counts = np.histogram(overlaps[sizes == index], edges)[0]
        left.stairs(100 * counts / max(counts.sum(), 1), edges, label=f"{name} ({counts.sum():,})", linewidth=1.5)
    left.set(title="Objects by their best anchor", xlabel="IoU with the best anchor", ylabel="percent of the size")
    left.legend()
    for scales, name in ((1.0, "stored"), (contents.scales[contents.owners], "network")):
        right.hist(np.sqrt(contents.areas) * scales, np.geomspace(1, 1024, 41), histtype="step", label=name)
    right.set(title="Objects by side", xlabel="square root of the area, pixels", ylabel="objects", xscale="log")
    right.legend()
    save(figure, path)
