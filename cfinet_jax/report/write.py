"""Report of a run, section by section."""

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input.dataset import Prepared
from cfinet_jax.metrics.error_types import KINDS, MISSED, TRUE, count_outcomes
from cfinet_jax.metrics.proposal_scores import SHOWN
from cfinet_jax.metrics.protocols import PROTOCOLS, Protocol
from cfinet_jax.metrics.results import Columns, entries
from cfinet_jax.metrics.score_table import MIN_BOXES, proposal_table, table
from cfinet_jax.report.examples import Counts, choose, write_examples
from cfinet_jax.report.page import to_html
from cfinet_jax.report.plots import (
    MOST_CLASSES,
    draw_imitation,
    draw_learning,
    draw_outcomes,
    draw_precision,
    draw_proposals,
    read_log,
)
from cfinet_jax.report.tables import outcome_table, settings
from cfinet_jax.runtime.markdown import escape, percent


def write_report(
    workdir: epath.Path,
    metrics: dict,
    results: Columns,
    prepared: Prepared,
    config: ConfigDict,
    run: epath.Path,
) -> None:
    """Write `report.md`, its pictures, and `report.html` with the pictures in it, into the workdir.

    `run` is the folder with the log and the settings; the report may be moved to it later.
    """
    min_score = config.evaluation.overlay_min_score
    shown = list(entries(results.at_least(min_score)))
    counts = count_outcomes(prepared.coco, shown, prepared.category_ids, min_score)
    title = f"{config.dataset.name}, split {config.dataset.eval_split}"
    protocol = PROTOCOLS[metrics["protocol"]]
    sections = {
        "Scores": table(metrics),
        "Precision and recall": precision(workdir, metrics),
        **({"Proposals": proposals(metrics, config)} if "proposals" in metrics else {}),
        "Training": training(workdir, run / "metrics.jsonl", protocol),
        "Errors": errors(workdir, counts, prepared.classes, min_score),
        "Pictures": pictures(workdir, counts, shown, prepared, config),
        "Settings": settings(run / "settings.json", config),
    }
    boxes = metrics["boxes"][protocol.headline]
    headline = ", ".join(f"{name} {percent(metrics[name])}" for name in ("AP", "AP50", "AP75"))
    text = f"# {escape(title)}\n\n**{headline}** on {len(prepared):,} images with {boxes:,} objects to find.\n"
    text += "".join(f"\n## {name}\n\n{section.rstrip()}\n" for name, section in sections.items())
    (workdir / "report.md").write_text(text)
    (workdir / "report.html").write_text(to_html(text, title, workdir))
    print(f"Report: {run / 'report.html'}", flush=True)


def precision(workdir: epath.Path, metrics: dict) -> str:
    """Return the section with the curves of the classes that have enough boxes, and the names of the others."""
    ranked = sorted(metrics["per_class"].items(), key=lambda item: -item[1]["boxes"])
    enough = [name for name, values in ranked if values["boxes"] >= MIN_BOXES]
    reasons = {
        f"fewer than {MIN_BOXES} boxes": [name for name, values in ranked if values["boxes"] < MIN_BOXES],
        f"not among the {MOST_CLASSES} classes with the most boxes": enough[MOST_CLASSES:],
    }
    text = "For each class at IoU 0.5, interpolated as for COCO's AP, so that precision never rises with recall.\n"
    if enough:
        shown = {name: metrics["per_class"][name]["precision50"] for name in enough[:MOST_CLASSES]}
        draw_precision(shown, workdir / "precision_recall.png")
        text += "\n![precision over recall](precision_recall.png)\n"
    for reason, names in reasons.items():
        if names:
            text += f"\nLeft out ({reason}): {', '.join(map(escape, names))}.\n"
    return text


def proposals(metrics: dict, config: ConfigDict) -> str:
    """Return the section about the proposals of the first stage, and how they are scored."""
    network = config.detector.proposal_network
    most = network[network.name].proposals.max_proposals
    where = "image" if config.dataset.window_overlap is None else "window, merged over the windows of an image"
    return (
        f"`{network.name}` gives the second stage at most {most} proposals per {where}. AR100, AR300 and AR1000 are "
        "the recall with that many of the best proposals of an image, whatever their class, averaged over IoU "
        f"0.5:0.05:0.95.\n\n{proposal_table(metrics)}\nThe paper does not say how it measured its Table 4 and Fig. 4: "
        "only differences between proposal networks can be compared with them.\n"
    )


def training(workdir: epath.Path, log: epath.Path, protocol: Protocol) -> str:
    """Return the section with learning curves, or why there are none: a run too short to log a step has results too."""
    if not log.exists():
        return "Not trained in this folder: it has no metrics.jsonl."
    try:
        train, evaluations = read_log(log)
    except UserError as error:
        print(f"No learning curve: {error}.", flush=True)
        return f"No learning curve: {escape(str(error))}."
    draw_learning(train, evaluations, workdir / "learning_curve.png")
    text = "![losses and AP over the images seen](learning_curve.png)\n"
    if any("imitation/quality" in record for record in train):
        draw_imitation(train, workdir / "imitation.png")
        text += f"\n{imitation(train)}\n\n![quality, memory, embeddings and gradients of imitation](imitation.png)\n"
    if any(f"proposals/AR{SHOWN}" in record for record in evaluations):
        draw_proposals(evaluations, protocol, workdir / "proposals.png")
        text += "\n![proposals by size over the images seen](proposals.png)\n"
    return text


def imitation(train: list[dict]) -> str:
    """Return what feature imitation is, and what the log says about its reach."""
    text = (
        "Feature imitation grades every object from 0 to 1 by how well it is detected. Exemplars of high quality fill "
        "the memory, and objects of low quality learn most from them."
    )
    taught = [record["images"] for record in train if record.get("imitation/taught")]
    if not taught:
        return text
    late = [record for record in train if record["images"] >= taught[0]]

    def total(key: str) -> float:
        return sum(record.get(key, 0.0) for record in late)

    share = total("features_gradient/imitation") / max(total("features_gradient/roi_head"), 1e-9)
    text += (
        f" Of the logged steps, {100 * len(taught) / len(train):.0f} % had an object with positives, the first after "
        f"{taught[0]:,} images. From then on the gradient that imitation sends into the RoI features has been "
        f"{100 * share:.0f} % of the head's"
    )
    renewed = total("memory/turnover") / len(late)
    return text + (f", and the exemplars have been renewed every {1 / renewed:,.0f} steps." if renewed else ".")


def errors(workdir: epath.Path, counts: Counts, classes: tuple[str, ...], min_score: float) -> str:
    """Return the section about kinds of mistakes: their definition, and how often each was made."""
    of_class = counts.sum(axis=0)
    objects = of_class[:, [TRUE, MISSED]].sum(axis=1)
    shown = np.argsort(-objects, kind="stable")[:MOST_CLASSES]
    rows = np.stack([of_class.sum(axis=0), *of_class[shown]])
    draw_outcomes(["all", *(classes[k] for k in shown)], rows, workdir / "errors.png")
    kinds = "\n".join(f"{number}. **{kind}**: {rule}" for number, (kind, rule) in enumerate(KINDS.items(), start=1))
    bars = f"The bars show the {MOST_CLASSES} classes with the most objects.\n\n" if len(classes) > len(shown) else ""
    return (
        f"Every detection with a score of at least {min_score:g} counts as the first of these kinds that applies. "
        f"Those of an image are matched in order of decreasing score, whatever the size of the object:\n\n{kinds}\n\n"
        "An object that no detection matches is **missed**. Detections count for the class that they predict.\n\n"
        f"{bars}![kinds of detections, found and missed objects](errors.png)\n\n{outcome_table(of_class, classes)}"
    )


def pictures(workdir: epath.Path, counts: Counts, results: list[dict], prepared: Prepared, config: ConfigDict) -> str:
    """Return the section with the best, typical and worst images."""
    min_score = config.evaluation.overlay_min_score
    chosen = choose(counts, config.evaluation.overlays)
    shown = write_examples(workdir / "overlays", chosen, counts, results, prepared, min_score)
    return (
        "Images are ranked by F1 = 2 true / (2 true + mistakes + missed), counted as above at a score of at least "
        f"{min_score:g}; images with neither objects nor detections are left out. Boxes are detections with the "
        "first letters of their class and the score in percent, dashed boxes the ground truth, hatched areas ignore "
        f"regions.\n\n{shown}"
    )
