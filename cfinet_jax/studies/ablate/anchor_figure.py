"""Fig. 1 of the paper: IoU of every object with its best anchor, by size. Nothing is trained."""

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cfinet_jax.input import dataset
from cfinet_jax.input.batches import views
from cfinet_jax.metrics.protocols import LIMITS, SIZES, sizes_of
from cfinet_jax.metrics.score_table import MIN_BOXES
from cfinet_jax.report.page import to_html
from cfinet_jax.report.plots import COLOURS, WIDTH, add_grid, save
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.markdown import escape, with_head
from cfinet_jax.studies.ablate.study import Study, config_of
from cfinet_jax.studies.analyse.contents import overlaps_with_anchors, read_contents

GOOD = 0.5  # the least IoU of an anchor that fits well
BINS = np.linspace(0, 1, 21)


def write(study: Study, config: ConfigDict, workdir: epath.Path, name: str) -> None:
    """Write `<name>.md`, its picture, and `<name>.html` with the picture in it, into the workdir."""
    settings = config.dataset
    prepared = dataset.open_dataset(settings, settings.train_split)
    contents = read_contents(views(prepared, settings, training=True), settings)
    sizes = sizes_of(contents.areas)
    overlaps = {}
    for row in study.rows:
        changed = config_of(row, config)
        network = changed.detector.proposal_network
        overlaps[row.name] = overlaps_with_anchors(contents, changed, network[network.name].anchor_scale)
    workdir.mkdir(parents=True, exist_ok=True)
    draw(overlaps, sizes, workdir / f"{name}.png")
    data = f"{settings.name}, split {settings.train_split}, {len(sizes):,} objects"
    text = f"""# {study.title}

{escape(data)}.

![IoU of objects with their best anchor]({name}.png)

Mean IoU with the best anchor, and the share of objects for which it is at least {GOOD:g}, in percent:

{table(overlaps, sizes)}"""
    replace_text(workdir / f"{name}.md", text)
    replace_text(workdir / f"{name}.html", to_html(text, study.title, workdir))
    print(f"{text}\nReport: {workdir / f'{name}.html'}", flush=True)


def table(overlaps: dict[str, np.ndarray], sizes: np.ndarray) -> str:
    """Return a table with a row for every set of anchors; n/a for a size with too few objects."""
    chosen = [sizes == size for size in range(len(LIMITS) + 1)]
    lines = [
        [escape(row), *(f"{of_row[own].mean():.2f}, {100 * np.mean(of_row[own] >= GOOD):.0f} %"
                        if own.sum() >= MIN_BOXES else "n/a" for own in chosen)]
        for row, of_row in overlaps.items()
    ]  # fmt: skip
    counts = ["objects", *(f"{own.sum():,}" for own in chosen)]
    return with_head(["anchors", *SIZES], [*lines, counts])


def draw(overlaps: dict[str, np.ndarray], sizes: np.ndarray, path: epath.Path) -> None:
    """Draw a panel for every set of anchors: the distribution by size."""
    figure = Figure(figsize=(WIDTH, 0.8 + 2.2 * len(overlaps)), layout="constrained")
    panels = figure.subplots(len(overlaps), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (row, of_row) in zip(panels, overlaps.items(), strict=True):
        for size, (label, colour) in enumerate(zip(SIZES[: len(LIMITS)], COLOURS, strict=False)):
            own = of_row[sizes == size]
            if len(own) >= MIN_BOXES:
                share = 100 * np.histogram(own, BINS)[0] / len(own)
                axes.stairs(share, BINS, color=colour, linewidth=1.5, label=f"{label} ({len(own):,})")
        axes.set(ylabel="percent of objects", title=row)
        add_grid(axes)
    panels[-1].set_xlabel("IoU with the best anchor")
    panels[0].legend(frameon=False)
    save(figure, path)
