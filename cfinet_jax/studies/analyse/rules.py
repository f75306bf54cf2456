"""`--mode=rules`: pictures and a table of the anchors that each rule of assignment gives a small object."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from ml_collections import ConfigDict

from cfinet_jax.boxes.anchors import anchor_grid
from cfinet_jax.boxes.similarity import Pairwise
from cfinet_jax.build import discover_sizes
from cfinet_jax.input.sizes import scales_of
from cfinet_jax.models.detector import build_assigners, build_proposal_network
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.models.proposals.assigners import Assigner
from cfinet_jax.models.proposals.base import ProposalNetwork
from cfinet_jax.models.proposals.coarse_to_fine_rpn import CoarseToFineRPN
from cfinet_jax.models.proposals.rpn import RPN
from cfinet_jax.ops import matching
from cfinet_jax.report.plots import COLOURS, GREY, INK, WIDTH, add_grid, save
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.markdown import with_head
from cfinet_jax.structures import GroundTruth

CANVAS, MARGIN = 192, 64  # network pixels: side of a square image, and least distance of objects from its border
SIDES, PLACES = (6, 8, 10, 12, 16, 20, 24, 32), 64  # stored pixels of the objects in the table; random places of each
# The object that is drawn: side in stored pixels; centre and surroundings in network pixels.
DRAWN, CENTRE, REACH = 10, (97.3, 94.6), 24
SHIFTED, SHIFTS = (4, 8, 16, 32), np.linspace(0, 32, 129)  # stored pixels: sides of objects, and shifts of boxes
PANELS = 3  # per row
SHOWN = {"iou": "IoU", "nwd": "NWD", "dotd": "DotD"}


class Grid(NamedTuple):
    """Anchors of a configuration on the canvas."""

    boxes: jax.Array  # [anchors, 4], in network pixels
    levels: jax.Array  # [anchors]
    scale: jax.Array  # network pixels per stored pixel


def rules(config: ConfigDict, workdir: epath.Path) -> None:
    """Write `rules.md`, `rules.png` and `similarities.png` into the workdir. No data are read but their sizes."""
    config = discover_sizes(config, workdir)
    sections = config.detector.to_dict()
    network = build_proposal_network(sections)
    stored = np.asarray(config.dataset.stored_size, np.float32)
    grid = grid_of(network, config.detector.neck.levels, scales_of(stored, config.dataset))
    positives = positives_of(grid, rules_of(network, build_assigners(sections)))
    text = describe(config.detector.proposal_network.name, grid, positives)
    workdir.mkdir(parents=True, exist_ok=True)
    draw_rules(grid, {rule: of_rule[0] for rule, of_rule in positives.items()}, workdir / "rules.png")
    draw_similarities(network, workdir / "similarities.png")
    replace_text(workdir / "rules.md", text)
    print(text, flush=True)


def grid_of(network: ProposalNetwork, levels: int, scale: float) -> Grid:
    """Return the anchors of a proposal network: square ones only, except for the plain RPN."""
    ratios = network.aspect_ratios if isinstance(network, RPN) else (1.0,)
    grids = [
        anchor_grid((CANVAS // stride, CANVAS // stride), stride, network.anchor_scale, ratios)
        for stride in strides_of(levels)
    ]
    indices = np.repeat(np.arange(levels), [len(boxes) for boxes in grids])
    return Grid(jnp.asarray(np.concatenate(grids)), jnp.asarray(indices), jnp.asarray(scale, jnp.float32))


def rules_of(
    network: ProposalNetwork, assigners: dict[str, Assigner]
) -> dict[str, Callable[[Grid, GroundTruth], matching.Assignment]]:
    """Return the rules of the coarse stage, if the network has one with thresholds, and `assigners`, by name."""
    thresholds = network.coarse_thresholds if isinstance(network, CoarseToFineRPN) else {}

    def coarse(row: str, grid: Grid, truth: GroundTruth) -> matching.Assignment:
        base_size = network.base_size  # type: ignore[attr-defined]
        overlaps = matching.dynamic_thresholds(truth.boxes, grid.scale, base_size=base_size, **thresholds[row])
        return matching.match_dynamic(grid.boxes, truth, overlaps, ignore_overlap=network.ignore_overlap)

    def other(row: str, grid: Grid, truth: GroundTruth) -> matching.Assignment:
        return network.clone(assigner=assigners[row]).assign(grid.boxes, grid.levels, truth, grid.scale)

    return {
        **{f"coarse {row}": partial(coarse, row) for row in thresholds},
        **{row: partial(other, row) for row in assigners},
    }


def alone(box: jax.Array) -> GroundTruth:
    """Return the ground truth of an image with one object."""
    some = jnp.ones(1, bool)
    return GroundTruth(box[None], jnp.zeros(1, jnp.int32), some, ~some)


def positives_of(grid: Grid, known: dict[str, Callable]) -> dict[str, np.ndarray]:
    """Return the positive anchors `[objects, anchors]` of lone square objects, by rule.

    The first object is the one that is drawn, the others those of the table: `PLACES` of each side.
    """
    centres = np.random.default_rng(0).uniform(MARGIN, CANVAS - MARGIN, (PLACES, 2))
    centres = np.concatenate([[CENTRE], np.tile(centres, (len(SIDES), 1))])
    half = grid.scale * np.array([DRAWN, *np.repeat(SIDES, PLACES)])[:, None] / 2
    boxes = jnp.asarray(np.concatenate([centres - half, centres + half], -1), jnp.float32)

    def positives(rule: Callable) -> np.ndarray:
        # Without compiling, every operation of a rule would be compiled alone.
        of_all = jax.jit(lambda grid, boxes: jax.lax.map(lambda box: rule(grid, alone(box)).positive, boxes))
        return np.asarray(of_all(grid, boxes))

    return {name: positives(rule) for name, rule in known.items()}


def describe(name: str, grid: Grid, positives: dict[str, np.ndarray]) -> str:
    """Return the page in Markdown."""
    means = {rule: of_rule[1:].sum(1).reshape(len(SIDES), PLACES).mean(1) for rule, of_rule in positives.items()}
    rows = ([rule, *(f"{mean:.1f}" for mean in of_rule)] for rule, of_rule in means.items())
    head = ["rule", *(f"{side} px" for side in SIDES)]
    return f"""# What the rules of assignment do

Anchors of `{name}`, {grid.scale:g} network pixels per stored pixel. Rows are the rules of `detector.assigners`, and
those of `coarse_thresholds` for the coarse stage. Anchors are those of the grid, before any stage moves them.

Positive anchors of a lone square object, by its side in stored pixels; mean over {PLACES} random places:

{with_head(head, rows)}
Positive anchors of an object of {DRAWN} stored pixels (grey), coloured by level; dots are the cells of P2:

![positive anchors under every rule](rules.png)

Similarity of an object with a box that moves away from it, as large as the object or half as large again:

![similarities over the shift](similarities.png)
"""


def draw_rules(grid: Grid, positives: dict[str, np.ndarray], path: epath.Path) -> None:
    """Draw a panel per rule: the object and its positive anchors."""
    half = float(grid.scale) * DRAWN / 2
    x, y = CENTRE
    rows = -(-len(positives) // PANELS)
    figure = Figure(figsize=(WIDTH, 2.35 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, PANELS, squeeze=False).flat
    for (name, positive), axes in zip(positives.items(), panels, strict=False):
        axes.set_title(f"{name}: {positive.sum()}", fontsize=10)
        cells = np.arange(0, CANVAS, 4)
        axes.plot(*map(np.ravel, np.meshgrid(cells, cells)), ".", color=GREY, markersize=1.5)
        axes.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, facecolor=GREY, edgecolor=INK, alpha=0.6))
        draw_anchors(axes, np.asarray(grid.boxes)[positive], np.asarray(grid.levels)[positive])
        axes.set(xlim=(x - REACH, x + REACH), ylim=(y + REACH, y - REACH), xticks=[], yticks=[], aspect="equal")
    for axes in panels:
        axes.remove()
    levels = range(int(grid.levels.max()) + 1)
    lines = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLOURS[level], linewidth=1.5) for level in levels]
    figure.legend(lines, [f"P{level + 2}" for level in levels], loc="outside lower center", ncols=6, frameon=False)
    save(figure, path)


def draw_anchors(axes: Axes, boxes: np.ndarray, levels: np.ndarray) -> None:
    """Draw the outlines and centres of anchors, in the colour of their level."""
    for (x1, y1, x2, y2), level in reversed(list(zip(boxes, levels.tolist(), strict=True))):  # small ones on top
        colour = COLOURS[level]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1, alpha=0.8))
        axes.plot((x1 + x2) / 2, (y1 + y2) / 2, "o", color=colour, markersize=3 + 2 * level)


def fall(measure: Pairwise, side: float, growth: float) -> np.ndarray:
    """Return the similarity `[shifts]` of a square object with a box, `growth` times as large, that moves along x."""
    low, high = SHIFTS - growth * side / 2, SHIFTS + growth * side / 2
    moved = jnp.asarray(np.stack([low, low - SHIFTS, high, high - SHIFTS], -1), jnp.float32)
    return np.asarray(measure(moved, jnp.array([[-side, -side, side, side]], jnp.float32) / 2))[:, 0]


def draw_similarities(network: ProposalNetwork, path: epath.Path) -> None:
    """Draw IoU, NWD and DotD over the shift, by the object's side, for boxes as large and half as large again."""
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, len(SHOWN), sharex=True, sharey=True)
    for row, (growth, label) in enumerate(((1.0, "as large"), (1.5, "half as large again"))):
        for axes, (name, title) in zip(panels[row], SHOWN.items(), strict=True):
            measure = network.similarity(name, 1.0)
            curves = [fall(measure, side, growth) for side in SHIFTED]
            if np.ptp(curves, axis=0).max() < 1e-4:
                axes.plot(SHIFTS, curves[0], color=INK)
                axes.text(SHIFTS[-1], 0.9, "every size", ha="right", color=INK)
            else:
                for side, curve, colour in zip(SHIFTED, curves, COLOURS, strict=False):
                    axes.plot(SHIFTS, curve, color=colour, label=f"object of {side} px")
            axes.set(ylim=(0, 1.02), xlim=(0, SHIFTS[-1]))
            add_grid(axes)
            of_constant = "".join(f", constant {length:g} px" for length in network.similarities[name].values())
            axes.set_title(f"{title}{of_constant}" if row == 0 else "", fontsize=10)
        panels[row][0].set_ylabel(f"box {label}")
    figure.supxlabel("shift along x, stored pixels", fontsize=10)
    figure.supylabel("similarity", fontsize=10)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    save(figure, path)
