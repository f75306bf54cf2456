"""Plots of a study."""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfinet_jax.report.plots import COLOURS, GREY, INK, WIDTH, add_grid, averaged, line_style, save
from cfinet_jax.studies.ablate.intervals import Difference

COLUMNS = 2  # of panels
FEW_POINTS = 15  # a line with fewer points gets markers
Logs = Mapping[str, Sequence[list[dict]]]  # row -> records of its seeds


def draw_differences(
    found: Mapping[str, Mapping[str, Difference | None]],
    published: Mapping[str, Mapping[str, float]],
    names: Mapping[str, str],
    path: epath.Path,
) -> None:
    """Draw a panel per size: every row's difference with its interval, and the paper's difference as a ring."""
    lines = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.6 + lines * (0.7 + 0.26 * len(found))), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False).flat
    rows = np.arange(len(found))
    for (key, name), axes in zip(names.items(), panels, strict=False):
        axes.axvline(0, color=GREY, linewidth=1)
        for place, (row, of_row) in enumerate(found.items()):
            difference = of_row[key]
            if difference is not None:
                mean, low, high = (100 * value for value in difference[:3])
                colour = COLOURS[0] if difference.is_clear else INK
                axes.plot((low, high), (place, place), color=colour, linewidth=2)
                axes.plot(mean, place, "o", color=colour, markersize=5)
            if key in published.get(row, {}):
                axes.plot(published[row][key], place, "o", color=COLOURS[1], markersize=8, fillstyle="none")
        axes.set(title=name, yticks=rows, yticklabels=list(found), ylim=(len(found) - 0.5, -0.5))
        add_grid(axes, "x")
    for axes in panels:
        axes.remove()
    figure.supxlabel("difference in percentage points; ring: the paper's, on SODA", fontsize=10)
    save(figure, path)


def draw_curves(logs: Logs, keys: Mapping[str, str], ylabel: str, scale: float, path: epath.Path) -> None:
    """Draw a panel per score, by key -> title: every row over the images seen, averaged over its seeds."""
    lines = -(-len(keys) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 1.1 + 2.1 * lines), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, squeeze=False).flat
    for (key, title), axes in zip(keys.items(), panels, strict=False):
        plot_rows(axes, logs, key, scale)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, None)
        add_grid(axes)
    for axes in panels:
        axes.remove()
    figure.supxlabel("images seen", fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    save(figure, path)


def plot_rows(axes: Axes, logs: Logs, key: str, scale: float) -> None:
    """Draw a line per row; values that several seeds logged after the same number of images are averaged."""
    for number, (row, seeds) in enumerate(logs.items()):
        points: dict[float, list[float]] = {}
        for record in (record for records in seeds for record in records):
            if record.get(key) is not None:
                points.setdefault(record["images"], []).append(scale * record[key])
        if not points:
            continue
        x, y = averaged([(images, float(np.mean(values))) for images, values in sorted(points.items())])
        marker = "o" if len(x) < FEW_POINTS else ""
        axes.plot(x, y, label=row.replace("$", r"\$"), marker=marker, markersize=4, **line_style(number))
