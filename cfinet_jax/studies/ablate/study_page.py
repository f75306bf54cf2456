"""Page of a study: scores, differences, what can be claimed, curves, and links to every run."""

import json

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input.dataset import Prepared
from cfinet_jax.metrics.proposal_scores import NEAR
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.report.page import to_html
from cfinet_jax.report.plots import SHARES, read_log
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.markdown import escape, with_head
from cfinet_jax.studies.ablate import study_plots, study_tables
from cfinet_jax.studies.ablate.intervals import RESAMPLES, devices_of, differences, keys_of, metrics_of
from cfinet_jax.studies.ablate.runs import Run
from cfinet_jax.studies.ablate.study import Study

FEW_SEEDS = 3  # with fewer, the spread says little
Rows = dict[str, list[Run]]  # row -> its finished runs


def write(
    study: Study, runs: list[Run], prepared: Prepared, config: ConfigDict, workdir: epath.Path, name: str
) -> None:
    """Write `<name>.md`, its pictures, `<name>.html` with the pictures in it, and `<name>.json` into the workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    rows = {row.name: [run for run in runs if run.row == row.name and run.finished] for row in study.rows}
    rows = {row: finished for row, finished in rows.items() if finished}
    sections = compare(study, rows, prepared, config, workdir / name) if rows else {}
    if study.quoted:
        sections["Of the paper, not built here"] = quoted(study)
    if runs:
        sections["Runs"] = study_tables.run_table(runs, workdir)
    data = f"{config.dataset.name}, split {config.dataset.eval_split}, {len(prepared):,} images"
    text = f"# {study.title}\n\n{' '.join(filter(None, (f'{escape(data)}.', study.note)))}\n{warning(rows)}"
    text += "".join(f"\n## {title}\n\n{section.rstrip()}\n" for title, section in sections.items())
    replace_text(workdir / f"{name}.md", text)
    replace_text(workdir / f"{name}.html", to_html(text, study.title, workdir))
    print(f"\n{text}\nReport: {workdir / f'{name}.html'}", flush=True)


def warning(rows: Rows) -> str:
    """Return a paragraph about why the numbers are no evidence; empty if nothing speaks against them."""
    seeds = min((len(runs) for runs in rows.values()), default=0)
    reasons = [f"{seeds} seeds, fewer than {FEW_SEEDS}"] if seeds < FEW_SEEDS else []
    if any("cpu" in devices_of(run) for runs in rows.values() for run in runs):
        reasons.append("trained on a CPU, at a small scale")
    return f"\n**Shows that the study runs, but is no evidence**: {'; '.join(reasons)}.\n" if rows and reasons else ""


def compare(study: Study, rows: Rows, prepared: Prepared, config: ConfigDict, stem: epath.Path) -> dict[str, str]:
    """Return the sections that compare the rows, by title.

    The paper's scores are shown only where they are of the same data. Files get names that begin with `stem`.
    """
    protocol = PROTOCOLS[config.evaluation.protocol]
    published = study.rows if study.has_data_of_paper(config.dataset) else ()
    scores = {row: [metrics_of(run) for run in finished] for row, finished in rows.items()}
    boxes = next(iter(scores.values()))[0]["boxes"]

    def sizes_of(measure: str) -> dict[str, str]:
        """Return the keys of a measure in the metrics, for the ranges of sizes with enough boxes."""
        keys = keys_of(measure, protocol)
        return {key: size for key, size in keys.items() if not study_tables.too_few(size, boxes, protocol.headline)}

    table = study_tables.score_table(scores, study_tables.score_columns(protocol), protocol.headline, published)
    sections = {"Scores": f"{table}\nMean and standard deviation over seeds, in percent.\n"}
    if study.rows[0].name in rows and len(rows) > 1:
        found, known = differences(rows, prepared.coco, protocol, study.measure), sizes_of(study.measure)
        found = {row: {key: of_row[key] if key in known else None for key in of_row} for row, of_row in found.items()}
        keys = keys_of(study.measure, protocol)
        of_paper = {row.name: study_tables.published_differences(row, study.rows[0]) for row in study.rows}
        study_plots.draw_differences(found, of_paper, known, epath.Path(f"{stem}_differences.png"))
        sections["Differences"] = (
            f"{study_tables.difference_table(found, study, keys, bool(published))}\n"
            f"In percentage points of {study.measure}, seed by seed. Intervals are over seeds (Student's t) and images "
            f"({RESAMPLES:,} resamples). With one seed they are over images only: another seed may disagree.\n\n"
            f"![differences by size]({stem.name}_differences.png)"
        )
        heading = "For these runs only:\n\n" if warning(rows) else ""
        sections["What can be claimed"] = heading + study_tables.claims(found, study, keys)
        replace_text(epath.Path(f"{stem}.json"), json.dumps({"scores": scores, "differences": found}, indent=1))
    if all("proposals" in metrics for of_row in scores.values() for metrics in of_row):
        columns = study_tables.proposal_columns(protocol)
        table = study_tables.score_table(scores, columns, protocol.headline, published)
        sections["Proposals"] = f"{table}\n{study_tables.PROPOSALS}\n"
    if text := curves(rows, sizes_of("proposals/per_object"), stem):
        sections["Curves"] = text
    return sections


def curves(rows: Rows, proposed: dict[str, str], stem: epath.Path) -> str:
    """Draw what the rows logged; `proposed` are the numbers of proposals to draw, by key -> title."""
    try:
        logs = {row: [read_log(run.folder / "metrics.jsonl") for run in runs] for row, runs in rows.items()}
    except UserError as error:  # a run too short to have logged a step has scores nevertheless
        print(f"No curves: {error}.", flush=True)
        return f"No curves: {escape(str(error))}."
    train = {row: [of_run[0] for of_run in of_row] for row, of_row in logs.items()}
    evaluated = {row: [of_run[1] for of_run in of_row] for row, of_row in logs.items()}
    text = ""
    if any(len(records) > 1 for of_row in evaluated.values() for records in of_row):
        marks = {"AP": "AP", "AP50": "AP50"}
        study_plots.draw_curves(evaluated, marks, "percent", 100, epath.Path(f"{stem}_AP.png"))
        near = f"proposals per object, IoU > {NEAR:g}"
        study_plots.draw_curves(evaluated, proposed, near, 1, epath.Path(f"{stem}_proposals.png"))
        text += f"![AP over the images seen]({stem.name}_AP.png)\n\n"
        text += f"![proposals per object]({stem.name}_proposals.png)\n\n"
    imitating = {row: of_row for row, of_row in train.items() if any("imitation/quality" in each for each in of_row[0])}
    if imitating:
        keys = {f"imitation/{key}": label for key, label in SHARES.items()}
        keys |= {"memory/fill": "share of slots filled", "loss/imitation/contrast": "contrastive loss"}
        keys |= {"imitation/taught": "objects with positives", "features_gradient/imitation": "gradient into features"}
        study_plots.draw_curves(imitating, keys, "", 1, epath.Path(f"{stem}_imitation.png"))
        text += f"![instance quality and memory]({stem.name}_imitation.png)\n"
    return text and f"Means over the seeds of every row.\n\n{text}"


def quoted(study: Study) -> str:
    """Return a table of the paper's rows that are not built here."""
    keys = list(dict.fromkeys(key for row in study.quoted for key in row.published))
    lines = [[row.name, *(row.published.get(key, "") for key in keys)] for row in study.quoted]
    data = f"On the test split of {study.published_on}, in percent"
    return f"{with_head(['row', *keys], lines)}\n{data}: as published, not measured here.\n"
