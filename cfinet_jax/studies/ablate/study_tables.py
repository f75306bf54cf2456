"""Tables of a study, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from cfinet_jax.metrics.proposal_scores import NEAR, SHOWN
from cfinet_jax.metrics.protocols import Protocol
from cfinet_jax.metrics.score_table import MIN_BOXES
from cfinet_jax.runtime.markdown import escape, percent, with_head
from cfinet_jax.studies.ablate.intervals import LEVEL, Difference, keys_of, mean_and_spread
from cfinet_jax.studies.ablate.runs import Run
from cfinet_jax.studies.ablate.study import Row, Study

Scores = Mapping[str, Sequence[dict[str, Any]]]  # row -> metrics of its seeds
Differences = Mapping[str, Mapping[str, Difference | None]]  # row -> key in the metrics -> difference; None: unknown
PROPOSALS = (
    f"AR{SHOWN} is the recall with the best {SHOWN} proposals of a picture, whatever their class, in percent; per "
    f"object is the number of proposals with an IoU above {NEAR:g}."
)


class Column(NamedTuple):
    """Column of a table of scores."""

    key: str  # in the metrics
    name: str
    size: str  # the range of sizes that it is about


def score_columns(protocol: Protocol) -> list[Column]:
    """Return the columns AP, its marks, AR, and AP by size."""
    keys = ("AP", *protocol.marks, f"AR{protocol.limits[-1]}")
    first = [Column(key, key, protocol.headline) for key in keys]
    return [*first, *(Column(f"AP_{size}", f"AP, {size}", size) for size in protocol.sizes)]


def proposal_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of recall by size, then proposals per object by size."""
    names = {f"AR{SHOWN}": f"AR{SHOWN}", "per_object": "per object"}
    return [
        Column(key, name if size == protocol.headline else f"{name}, {size}", size)
        for measure, name in names.items()
        for key, size in keys_of(f"proposals/{measure}", protocol).items()
    ]


def score_table(scores: Scores, columns: Sequence[Column], headline: str, published: Sequence[Row] = ()) -> str:
    """Return a table of mean and spread over the seeds, in percent except counts; the paper's rows follow ours."""
    of_paper = {row.name: row.published for row in published}
    lines = []
    for row, metrics in scores.items():
        lines.append([escape(row), len(metrics), *(cell(metrics, column, headline) for column in columns)])
        quoted = of_paper.get(row, {})
        if quoted.keys() & {column.key for column in columns}:
            lines.append(["of the paper", "", *(quoted.get(column.key, "") for column in columns)])
    return with_head(["row", "seeds", *(column.name for column in columns)], lines)


def cell(metrics: Sequence[dict[str, Any]], column: Column, headline: str) -> str:
    """Return one score of several seeds as text; n/a for a size with too few boxes."""
    summary = mean_and_spread([each.get(column.key) for each in metrics])
    if summary is None or too_few(column.size, metrics[0]["boxes"], headline):
        return "n/a"
    mean, spread = summary
    if "per_object" in column.key:
        return f"{mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
    return percent(mean) + ("" if spread is None else f" ± {100 * spread:.1f}")


def too_few(size: str, boxes: Mapping[str, int], headline: str) -> bool:
    """Return whether a range of sizes has too few boxes to score; the headline is always scored."""
    return size != headline and boxes[size] < MIN_BOXES


def difference_table(found: Differences, study: Study, keys: Mapping[str, str], same_data: bool) -> str:
    """Return a table of every row against the first, in percentage points with the interval.

    `keys` are the measure's keys in the metrics -> ranges of sizes. A difference is bold if its interval excludes zero.
    """
    of_paper = "the paper's difference"
    context = of_paper if same_data else f"context: {of_paper}, on the test split of {study.published_on}"
    lines = []
    for row in study.rows[1:]:
        of_row = found.get(row.name, {})
        lines.append([escape(row.name), *(show(of_row.get(key)) for key in keys)])
        if quoted := published_differences(row, study.rows[0]):
            lines.append([context, *(f"{quoted[key]:+.1f}" if key in quoted else "" for key in keys)])
    return with_head([f"against {escape(study.rows[0].name)}", *keys.values()], lines)


def published_differences(row: Row, base: Row) -> dict[str, float]:
    """Return the differences between two rows of the paper, in percentage points."""
    return {key: value - base.published[key] for key, value in row.published.items() if key in base.published}


def show(difference: Difference | None) -> str:
    """Return a difference and its interval as text."""
    if difference is None:
        return "n/a"
    mean, low, high = (f"{100 * value:+.1f}" for value in difference[:3])
    mean = f"**{mean}**" if difference.is_clear else mean
    return f"{mean} [{low}, {high}]{one_seed(difference)}"


def one_seed(difference: Difference) -> str:
    """Return a remark on an interval that rests on one seed."""
    return ", images only" if difference.seeds == 1 else ""


def claims(found: Differences, study: Study, keys: Mapping[str, str]) -> str:
    """Return a sentence for every interval that excludes zero, and one for the rows that have none."""
    lines, unclear = [], []
    for row, of_row in found.items():
        clear = {key: each for key, each in of_row.items() if each is not None and each.is_clear}
        for key, difference in clear.items():
            better = "higher" if difference.mean > 0 else "lower"
            mean, low, high = (100 * value for value in difference[:3])
            lines.append(
                f"- {escape(row)}: {escape(study.measure)} ({keys[key]}) is {better} by {abs(mean):.1f} points "
                f"({low:+.1f} to {high:+.1f}{one_seed(difference)})."
            )
        if not clear:
            unclear.append(escape(row))
    if unclear:
        lines.append(f"- No difference from {escape(study.rows[0].name)} can be claimed for: {'; '.join(unclear)}.")
    note = f"Every interval has a level of {LEVEL} percent: among many, some exclude zero by chance.\n"
    return "\n".join([*lines, "", note])


def run_table(runs: Sequence[Run], workdir: epath.Path) -> str:
    """Return a table of the runs: where each is, and why one failed."""
    lines = []
    for run in runs:
        state = "finished" if run.finished else "failed: " + escape(run.failure) if run.failure else "not finished"
        folder = str(run.folder).removeprefix(f"{workdir}/")
        lines.append([escape(run.row), run.seed, state, f"[{folder}]({folder}/report.html)"])
    return with_head(["row", "seed", "state", "report"], lines)
