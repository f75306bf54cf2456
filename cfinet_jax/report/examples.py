"""Pictures of a report: those with the best, the typical and the worst results."""

import re
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Int

from cfinet_jax.input import dataset
from cfinet_jax.metrics.error_types import MISTAKES, OUTCOMES, TRUE, WRONG, f1
from cfinet_jax.report.overlays import write_overlays
from cfinet_jax.runtime.markdown import escape
from cfinet_jax.runtime.paths import matching

Counts = Int[np.ndarray, "images classes outcomes"]  # from `metrics.error_types.count_outcomes`
UNSAFE = re.compile(r"[^\w.-]")  # characters not to use in names of linked files


def choose(counts: Counts, number: int) -> dict[str, list[int]]:
    """Choose `number` images with the best, typical (median) and worst F1, the best and the worst first.

    With equal F1, the image with the larger lead of true detections over mistakes is better. Images without F1 are left
    out, and no image is chosen twice.
    """
    of_image, scores = counts.sum(axis=1), f1(counts)
    lead = of_image[:, TRUE] - of_image[:, WRONG].sum(axis=1)
    ranked = np.lexsort((-lead, -scores))[: np.isfinite(scores).sum()].tolist()  # NaN comes last
    best, worst, typical = (len(share) for share in np.array_split(range(min(number, len(ranked))), 3))
    between = ranked[best : len(ranked) - worst]
    start = (len(between) - typical) // 2
    return {
        "best": ranked[:best],
        "typical": between[start : start + typical],
        "worst": ranked[len(ranked) - worst :][::-1],
    }


def write_examples(
    folder: epath.Path,
    chosen: Mapping[str, list[int]],
    counts: Counts,
    results: list[dict],
    prepared: dataset.Prepared,
    min_score: float,
) -> str:
    """Draw the chosen images into `folder`, replacing those of an earlier evaluation; return Markdown with them."""
    for old in matching(folder, "*.png"):
        old.unlink()
    classes = dict(zip(prepared.category_ids, prepared.classes, strict=True))
    lines = []
    for kind, positions in chosen.items():
        lines += [f"### {kind.capitalize()}", ""] if positions else []
        for rank, position in enumerate(positions, start=1):
            image, image_id, name = dataset.picture(prepared, position)
            found, truth = (
                [entry for entry in entries if entry["image_id"] == image_id]
                for entries in (results, prepared.coco["annotations"])
            )
            stem = f"{kind}-{rank}-{UNSAFE.sub('_', epath.Path(name).stem)}"  # kind and rank make it unique
            write_overlays(folder, [(stem, image, found, truth)], classes, min_score)
            lines += [f"**{kind} {rank}**, {escape(name)}: {describe(counts[position])}", ""]
            lines += [f"![{kind} {rank}]({folder.name}/{stem}.png)", ""]
    return "\n".join(lines)


def describe(counts: Int[np.ndarray, "classes outcomes"]) -> str:
    """Describe the outcomes of one image in words."""
    outcomes = dict(zip(OUTCOMES, counts.sum(axis=0).tolist(), strict=True))
    mistakes = [f"{outcomes[name]} {name}" for name in MISTAKES if outcomes[name]]
    objects = outcomes["true"] + outcomes["missed"]
    return (
        f"F1 {f1(counts[None])[0]:.2f}, {outcomes['true']} of {objects} objects found, "
        f"mistakes: {', '.join(mistakes) or 'none'}"
    )
