"""The page of a study: scores, differences, what can be claimed, curves, and where every run is."""

import json

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input.dataset import Prepared
from cfinet_jax.metrics.proposal_scores import NEAR
from cfinet_jax.metrics.protocols import PROTOCOLS, Protocol
from cfinet_jax.report.page import to_html
from cfinet_jax.report.plots import SHARES, read_log
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.markdown import escape, with_head
from cfinet_jax.studies.ablate import study_plots, study_tables
from cfinet_jax.studies.ablate.intervals import RESAMPLES, devices_of, differences, keys_of, metrics_of
from cfinet_jax.studies.ablate.runs import Run
from cfinet_jax.studies.ablate.study import Study

FEW_SEEDS = 3  # below it a spread says little


def write(
    study: Study, runs: list[Run], prepared: Prepared, config: ConfigDict, workdir: epath.Path, name: str
) -> None:
    """Leaves `<name>.md`, its pictures, `<name>.html`, which holds them, and `<name>.json` in the workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    rows = {row.name: [run for run in runs if run.row == row.name and run.finished] for row in study.rows}
    rows = {row: finished for row, finished in rows.items() if finished}
    protocol = PROTOCOLS[config.evaluation.protocol]
    same_data = study.stands_beside(config.dataset)
    sections = {
        **(compare(study, rows, prepared, protocol, same_data, workdir, name) if rows else {}),
        **({"Of the paper, not built here": quoted(study)} if study.quoted else {}),
        **({"Runs": study_tables.run_table(runs, workdir)} if runs else {}),
    }
    data = f"{config.dataset.name}, split {config.dataset.eval_split}, {len(prepared):,} images"
    text = f"# {study.title}\n\n{' '.join(filter(None, (f'{escape(data)}.', study.note)))}\n{warning(rows)}"
    text += "".join(f"\n## {title}\n\n{section.rstrip()}\n" for title, section in sections.items())
    replace_text(workdir / f"{name}.md", text)
    replace_text(workdir / f"{name}.html", to_html(text, study.title, workdir))
    print(f"\n{text}\nReport: {workdir / f'{name}.html'}", flush=True)


def warning(rows: dict[str, list[Run]]) -> str:
    """What keeps the numbers from being evidence, if anything does."""
    seeds = min((len(runs) for runs in rows.values()), default=0)
    reasons = [f"{seeds} seeds, fewer than {FEW_SEEDS}"] if seeds < FEW_SEEDS else []
    if any("cpu" in devices_of(run) for runs in rows.values() for run in runs):
        reasons.append("trained on a CPU, with what that allows")
    return f"\n**Proves the runner, no evidence**: {'; '.join(reasons)}.\n" if rows and reasons else ""


def compare(
    study: Study,
    rows: dict[str, list[Run]],
    prepared: Prepared,
    protocol: Protocol,
    same_data: bool,
    workdir: epath.Path,
    name: str,
) -> dict[str, str]:
    """The sections that set the rows beside each other, and the paper's beside them where the data are the same.

    Pictures go into the workdir.
    """
    scores = {row: [metrics_of(run) for run in finished] for row, finished in rows.items()}
    boxes = next(iter(scores.values()))[0]["boxes"]
    published = study.rows if same_data else ()
    sections = {
        "Scores": study_tables.score_table(scores, study_tables.score_columns(protocol), protocol.headline, published)
    }
    sections["Scores"] += "\nMean and standard deviation over seeds, in percent.\n"
    if study.rows[0].name in rows and len(rows) > 1:
        found = differences(rows, prepared.coco, protocol, study.measure)
        names = known_sizes(study.measure, protocol, boxes)
        of_paper = {row.name: study_tables.published_differences(row, study.rows[0]) for row in study.rows}
        study_plots.draw_differences(found, of_paper, names, workdir / f"{name}_differences.png")
        sections["Differences"] = (
            f"{study_tables.difference_table(found, study, protocol, boxes, same_data)}\n"
            f"In percent points of {study.measure}, seed by seed; the interval is over seeds (Student's t) and images "
            f"({RESAMPLES:,} choices of as many). With one seed it is over images only: another may say otherwise.\n\n"
            f"![differences by size]({name}_differences.png)"
        )
        heading = "Of these runs, and no further:\n\n" if warning(rows) else ""
        sections["What can be claimed"] = heading + study_tables.claims(found, study, protocol, boxes)
        replace_text(workdir / f"{name}.json", json.dumps({"scores": scores, "differences": found}, indent=1))
    if all("proposals" in metrics for of_row in scores.values() for metrics in of_row):
        table = study_tables.score_table(scores, study_tables.proposal_columns(protocol), protocol.headline, published)
        sections["Proposals"] = f"{table}\n{study_tables.near()}\n"
    return sections | curves(rows, known_sizes("proposals/per_object", protocol, boxes), workdir, name)


def known_sizes(measure: str, protocol: Protocol, boxes: dict[str, int]) -> dict[str, str]:
    """What a measure is called in the metrics, for every range with enough boxes -> the range."""
    every = keys_of(measure, protocol)
    return {key: size for key, size in every.items() if not study_tables.too_few(size, boxes, protocol.headline)}


def curves(rows: dict[str, list[Run]], proposed: dict[str, str], workdir: epath.Path, name: str) -> dict[str, str]:
    """What the rows did on the way; of proposals what `proposed` names."""
    try:
        logs = {row: [read_log(run.folder / "metrics.jsonl") for run in runs] for row, runs in rows.items()}
    except UserError as error:  # a run too short to have logged a step has scores too
        print(f"No curves: {error}.", flush=True)
        return {"Curves": f"No curves: {escape(str(error))}."}
    train = {row: [of_run[0] for of_run in of_row] for row, of_row in logs.items()}
    evaluated = {row: [of_run[1] for of_run in of_row] for row, of_row in logs.items()}
    text = ""
    if any(len(records) > 1 for of_row in evaluated.values() for records in of_row):
        marks = {"AP": "AP", "AP50": "AP50"}
        study_plots.draw_curves(evaluated, marks, "percent", 100, workdir / f"{name}_AP.png")
        near = f"proposals of an object, IoU > {NEAR:g}"
        study_plots.draw_curves(evaluated, proposed, near, 1, workdir / f"{name}_proposals.png")
        text += f"![AP over the images seen]({name}_AP.png)\n\n![proposals of an object]({name}_proposals.png)\n\n"
    imitating = {row: of_row for row, of_row in train.items() if any("imitation/quality" in each for each in of_row[0])}
    if imitating:
        keys = {f"imitation/{key}": label for key, label in SHARES.items()} | {
            "memory/fill": "share of slots filled",
            "loss/imitation/contrast": "contrastive loss",
        }
        study_plots.draw_curves(imitating, keys, "", 1, workdir / f"{name}_imitation.png")
        text += f"![instance quality and memory]({name}_imitation.png)\n"
    return {"Curves": f"A mean over the seeds of every row.\n\n{text}"} if text else {}


def quoted(study: Study) -> str:
    """Rows of the paper that are not built here."""
    keys = list(dict.fromkeys(key for row in study.quoted for key in row.published))
    lines = [[row.name, *(row.published.get(key, "") for key in keys)] for row in study.quoted]
    data = f"On the test split of {study.published_on}, in percent"
    return f"{with_head(['row', *keys], lines)}\n{data}: as published, not measured here.\n"
