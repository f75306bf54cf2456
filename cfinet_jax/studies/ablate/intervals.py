"""What the runs of a study scored, and how sure the differences between its rows are."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.proposal_scores import LIMITS, SHOWN, Tally, endings
from cfinet_jax.metrics.protocols import OVERLAPS, Protocol
from cfinet_jax.metrics.resampling import average_precision, gather
from cfinet_jax.metrics.results import Columns, columns
from cfinet_jax.runtime.files import reading
from cfinet_jax.runtime.progress import Progress
from cfinet_jax.studies.ablate.runs import Run

RESAMPLES = 1000  # choices of as many images as there are
AGAIN = "the same command scores this run again."
LEVEL = 95  # percent of intervals that are to hold the true difference
NORMAL = 1.960  # within so many standard deviations are LEVEL percent of normal values
# And of means of 2, 3, ... values, in standard deviations that these values themselves give: Student's t with 1, 2, ...
# degrees of freedom. For more values than there are here the last one, which is a little too wide for them.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Difference(NamedTuple):
    """Between the scores of two rows, as a fraction, and the interval of it."""

    mean: float
    low: float
    high: float
    seeds: int  # with one the interval is over images only

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def metrics_of(run: Run) -> dict[str, Any]:
    """The scores of a finished run, those of proposals among the others, under the names of the log."""
    with reading(run.folder / "metrics.json", AGAIN) as path:
        metrics = json.loads(path.read_text())
        known = {"AP": metrics["AP"], "boxes": dict(metrics["boxes"])} | metrics
        return known | {f"proposals/{name}": value for name, value in metrics.get("proposals", {}).items()}


def devices_of(run: Run) -> list[str]:
    """The kinds of devices that a run was trained on."""
    with reading(run.folder / "settings.json", AGAIN) as path:
        return list(json.loads(path.read_text())["machine"]["devices"])


def evidence_of(run: Run, measure: str) -> Columns | Tally:
    """What a finished run found in every picture: detections for AP, counts of proposals for any other measure."""
    if measure == "AP":
        with reading(run.folder / "detections.json", AGAIN) as path:
            return columns(json.loads(path.read_text()))
    with reading(run.folder / "proposals.npz", AGAIN) as path, path.open("rb") as file, np.load(file) as arrays:
        return Tally(**arrays)


def reopen_damaged(runs: Sequence[Run], measure: str) -> None:
    """Take the mark from finished runs whose results are damaged, naming the file, so that they are run again."""
    for run in runs:
        try:
            _ = run.finished and (metrics_of(run), devices_of(run), evidence_of(run, measure))
        except UserError as error:
            print(error, flush=True)
            (run.folder / "finished").unlink(missing_ok=True)


def keys_of(measure: str, protocol: Protocol) -> dict[str, str]:
    """What a measure is called in the metrics, for the headline range and then for every other -> the range."""
    return {f"{measure}{ending}": size for size, ending in endings(protocol).items()}


def choices(images: int) -> Int[np.ndarray, "resamples images"]:
    """How often every image counts, in every resample: the same for all runs, so that they stay paired."""
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), RESAMPLES)


def resample(run: Run, truth: dict, protocol: Protocol, measure: str) -> Float[np.ndarray, "resamples ranges"]:
    """The measure of a finished run for every choice of images; NaN where there is nothing to find."""
    times = choices(len(truth["images"]))
    sizes = list(keys_of(measure, protocol).values())
    found = evidence_of(run, measure)
    if isinstance(found, Columns):
        evidence = gather(truth, found, protocol, tuple(sizes))
        return np.stack([average_precision(evidence, each) for each in times])
    places = [list(protocol.ranges).index(size) for size in sizes]
    hits, objects = (times @ counts[:, places] for counts in (found.hits[LIMITS.index(SHOWN)], found.objects))
    return np.where(objects > 0, hits / np.maximum(len(OVERLAPS) * objects, 1), np.nan)


def compare(values: Float[np.ndarray, "seeds"], resampled: Float[np.ndarray, "seeds resamples"]) -> Difference | None:
    """The mean difference of two rows from the same seeds, with its interval over seeds and images.

    `values` are the differences on all images, `resampled` those on choices of them. None where a choice leaves nothing
    to find in too many resamples.

    Of seeds the variance of the mean is known no better than few values tell, so it counts with Student's quantile; of
    images it is that over the resamples. However the two share the noise, the sum is exceeded as rarely as each alone,
    since the tail of a squared normal variable is convex in its limit.
    """
    seeds = len(values)
    means = resampled.mean(0)
    means = means[np.isfinite(means)]
    if len(means) < resampled.shape[1] / 2:
        return None
    of_seeds = STUDENT[min(seeds - 1, len(STUDENT)) - 1] * values.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0
    mean, reach = float(values.mean()), float(np.hypot(of_seeds, NORMAL * means.std()))
    return Difference(mean, mean - reach, mean + reach, seeds)


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Of the scores of several seeds: their mean and standard deviation, None for that of one; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def differences(
    by_row: dict[str, list[Run]], truth: dict, protocol: Protocol, measure: str
) -> dict[str, dict[str, Difference | None]]:
    """Every row against the first one: score -> difference, over the seeds that both have finished."""
    (first, base), *others = by_row.items()
    keys = keys_of(measure, protocol)
    wanted = {run.folder: run for runs in by_row.values() for run in runs}
    progress, resampled = Progress("Resampling", len(wanted), unit="runs"), {}
    for folder, run in wanted.items():
        resampled[folder] = resample(run, truth, protocol, measure)
        progress.advance(1)
    progress.close()
    metrics = {folder: metrics_of(run) for folder, run in wanted.items()}
    result = {}
    for row, runs in others:
        pairs = [(ours.folder, of_base.folder) for ours in runs for of_base in base if ours.seed == of_base.seed]
        result[row] = {}
        for place, key in enumerate(keys):
            scores = [(metrics[a][key], metrics[b][key]) for a, b in pairs]
            if not pairs or any(None in pair for pair in scores):
                result[row][key] = None
                continue
            values = np.array([a - b for a, b in scores])
            of_images = np.stack([resampled[a][:, place] - resampled[b][:, place] for a, b in pairs])
            result[row][key] = compare(values, of_images)
    return result
