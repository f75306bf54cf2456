"""Plots of a run and of its results, as PNG."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.error_types import MISSED, OUTCOMES, TRUE
from cfinet_jax.metrics.proposal_scores import NEAR, SHOWN, endings
from cfinet_jax.metrics.protocols import Protocol
from cfinet_jax.runtime.files import replacing

CURVE_POINTS = 80  # most points of a curve; a longer log is averaged over as many stretches
WIDTH = 6.6  # inches; panels lie one below the other, so that they are legible on a phone
LONGEST_NAME = 20  # letters of a class name
INK, GREY = "#222222", "#bbbbbb"
# Colours of Okabe and Ito, which the colour-blind can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--")
MOST_CLASSES = len(COLOURS) * len(DASHES)  # classes in one plot
KIND_COLOURS = ("#009e73", GREY, "#56b4e9", "#e69f00", "#cc79a7", "#d55e00")  # of `metrics.error_types.KINDS`
SHARES = {"quality": "mean quality", "high_quality": "share of high quality", "low_quality": "share of low quality"}
IMITATION = {  # panels: what they show, their limits, and key -> label
    "instance quality": ((0, 1.02), {f"imitation/{key}": label for key, label in SHARES.items()}),
    "exemplar memory": (
        (0, 1.02),
        {
            "memory/fill": "share of slots filled",
            "memory/emptiest_class": "of the emptiest class",
            "memory/turnover": "share replaced in a step",
            "imitation/taught": "objects with positives",
            "memory/high_quality": "threshold of high quality",
        },
    ),
    "cosine of an object with": (
        (-1, 1.02),
        {"imitation/positive_cosine": "its positives", "imitation/negative_cosine": "its negatives"},
    ),
    "spread of the embeddings": (
        (None, None),
        {"imitation/effective_rank": "effective rank", "imitation/uniformity": "uniformity"},
    ),
    "gradient into the RoI features": (
        (0, None),
        {"features_gradient/roi_head": "of the head", "features_gradient/imitation": "of imitation"},
    ),
}


def read_log(path: epath.Path) -> tuple[list[dict], list[dict]]:
    """Return the training and the evaluation records of a `metrics.jsonl`, by step; of one step the last record.

    Raises `UserError` if a line is damaged or the log has no training record.
    """
    records: dict[str, dict[tuple, dict]] = {"train": {}, "eval": {}}
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
            values = {name: value for name, value in record.items() if isinstance(value, int | float)}
            records[record["kind"]][values["step"], values["images"]] = values
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}, line {number} is not a JSON record: remove the line") from None
    train, evaluations = ([values for _, values in sorted(of_kind.items())] for of_kind in records.values())
    if not train:
        raise UserError(f"{path} has no training record yet: train in this workdir first")
    return train, evaluations


def draw_learning(train: list[dict], evaluations: list[dict], path: epath.Path) -> None:
    """Draw the loss, its parts, AP and AP50 over the images seen."""
    figure = Figure(figsize=(WIDTH, 7), layout="constrained")
    losses, scores = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    parts = sorted({key for record in train for key in record if key.startswith("loss/")})
    _plot(losses, train, {"loss": "loss"}, color=INK, linewidth=2)
    _plot(losses, train, {part: part.removeprefix("loss/") for part in parts})
    losses.set_ylabel("training loss and its parts")
    losses.set_yscale("log", nonpositive="mask")  # a part may be 0: imitation is while the memory is empty
    for name, colour in zip(("AP50", "AP"), COLOURS, strict=False):
        points = [(record["images"], 100 * record[name]) for record in evaluations if name in record]
        x, y = zip(*points, strict=True) if points else ((), ())
        scores.plot(x, y, marker="o", markersize=4, label=name, color=colour)
    scores.set(ylabel="evaluation, percent", ylim=(0, None if evaluations else 100))
    _finish(losses)
    _finish(scores, "images seen")
    save(figure, path)


def draw_imitation(train: list[dict], path: epath.Path) -> None:
    """Draw whom imitation teaches, from what and with what effect, over the images seen, as far as it is logged."""
    logged = {key for record in train for key in record}
    shown = {name: panel for name, panel in IMITATION.items() if not logged.isdisjoint(panel[1])}
    figure = Figure(figsize=(WIDTH, 2.7 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, (limits, keys)) in zip(panels, shown.items(), strict=True):
        _plot(axes, train, keys)
        axes.set(ylabel=name, ylim=limits)
        _finish(axes, "images seen" if axes is panels[-1] else "")
    save(figure, path)


def draw_proposals(evaluations: list[dict], protocol: Protocol, path: epath.Path) -> None:
    """Draw the recall of proposals and their number per object, for every size, over the images seen."""
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    recall, number = figure.subplots(2, 1, sharex=True)
    for axes, name, scale in ((recall, f"AR{SHOWN}", 100), (number, "per_object", 1)):
        keys = {f"proposals/{name}{ending}": size for size, ending in endings(protocol).items()}
        _plot(axes, evaluations, keys, scale, marker="o", markersize=4)
    recall.set(ylabel=f"AR{SHOWN}, percent", ylim=(0, None))
    number.set(ylabel=f"proposals per object, IoU > {NEAR:g}", ylim=(0, None))
    _finish(recall, columns=5)
    _finish(number, "images seen", columns=5)
    save(figure, path)


def draw_precision(curves: Mapping[str, list[float]], path: epath.Path) -> None:
    """Draw precision [101] over recall 0:.01:1, as far as it is reached, of at most `MOST_CLASSES` classes."""
    figure = Figure(figsize=(WIDTH, 4 + 0.12 * len(curves)), layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        precision = 100 * np.array(curve)
        reached = precision > 0
        label = f"AP50 {precision.mean():.1f} {_plain(name)}"
        axes.plot(np.flatnonzero(reached), precision[reached], label=label, **line_style(number))
    axes.set(xlim=(0, 100), ylim=(0, 102), ylabel="precision, percent")
    _finish(axes, "recall, percent", columns=2)
    save(figure, path)


def draw_outcomes(names: Sequence[str], counts: Int[np.ndarray, "rows outcomes"], path: epath.Path) -> None:
    """Draw, for every named row, the kinds of detections and the shares of objects found and missed, in percent."""
    figure = Figure(figsize=(WIDTH, 2 + 0.6 * len(names)), layout="constrained")
    detections, objects = figure.subplots(2, 1)
    kinds = dict(zip(OUTCOMES[:MISSED], KIND_COLOURS, strict=True))
    _stack(detections, names, counts[:, :MISSED], kinds, "detections")
    _stack(objects, names, counts[:, [TRUE, MISSED]], {"found": KIND_COLOURS[0], "missed": COLOURS[0]}, "objects")
    save(figure, path)


def _stack(axes: Axes, names: Sequence[str], counts: np.ndarray, colours: Mapping[str, str], what: str) -> None:
    """Draw a bar of 100 percent for every row, the first row on top."""
    totals = counts.sum(axis=1)
    shares = 100 * counts / np.maximum(totals, 1)[:, None]
    ends = shares.cumsum(axis=1)
    rows = np.arange(len(names))
    for k, (label, colour) in enumerate(colours.items()):
        axes.barh(rows, shares[:, k], left=ends[:, k] - shares[:, k], color=colour, label=label)
    labels = [f"{_plain(name)} ({total:,})" for name, total in zip(names, totals.tolist(), strict=True)]
    axes.set(yticks=rows, yticklabels=labels, xlim=(0, 100), xlabel=f"percent of {what}")
    axes.invert_yaxis()
    axes.tick_params(left=False)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes)


def _plot(axes: Axes, records: list[dict], labels: dict[str, str], scale: float = 1, **style) -> None:
    """Draw the named values over the images seen; many values are averaged over stretches."""
    for number, (key, label) in enumerate(labels.items()):
        points = [(record["images"], scale * record[key]) for record in records if key in record]
        if points:
            axes.plot(*averaged(points), label=label, **{**line_style(number), **style})


def _finish(axes: Axes, xlabel: str = "", columns: int = 3) -> None:
    axes.set_xlabel(xlabel)
    add_grid(axes)
    if axes.lines:
        _legend(axes, columns)


def _legend(axes: Axes, columns: int = 3) -> None:
    """Draw the legend above the plot, where it hides nothing."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, frameon=False, handlelength=2)


def _plain(name: str) -> str:
    """Return a class name that is short and that matplotlib does not take for a formula."""
    return (name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…").replace("$", r"\$")


def averaged(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Average points over stretches where there are many; return x and y."""
    stretches = np.array_split(np.array(points, float), min(len(points), CURVE_POINTS))
    return np.array([stretch.mean(axis=0) for stretch in stretches]).T


def line_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of the line with this number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def add_grid(axes: Axes, axis: Literal["both", "x"] = "both") -> None:
    """Draw a faint grid, and no border above and to the right."""
    axes.grid(alpha=0.3, axis=axis)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: epath.Path) -> None:
    """Write a figure as PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    with replacing(path) as partial:
        partial.write_bytes(png.getvalue())
