"""Differences between the rows of a study, with confidence intervals over seeds and images."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.proposal_scores import LIMITS, SHOWN, Tally, endings
from cfinet_jax.metrics.protocols import OVERLAPS, Protocol
from cfinet_jax.metrics.resampling import average_precision, gather
from cfinet_jax.metrics.results import Columns, columns
from cfinet_jax.runtime.files import DAMAGED, reading, replacing
from cfinet_jax.runtime.progress import Progress
from cfinet_jax.studies.ablate.runs import Run

RESAMPLES = 1000  # bootstrap resamples of the images
KEPT = "resampled.npz"  # in the folder of a run: the resamples of its measures, which need no detections any more
STAMP = "stamp"  # the entry that says of which results they are
AGAIN = "rerun the same command to score this run again."
LEVEL = 95  # percent of intervals that hold the true difference
UPPER = 0.5 + LEVEL / 200  # the quantile that bounds an interval of this level from above


class Difference(NamedTuple):
    """Difference between the scores of two rows, as a fraction, and its interval."""

    mean: float
    low: float
    high: float
    seeds: int  # with one seed the interval is over images only

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def metrics_of(run: Run) -> dict[str, Any]:
    """Return the scores of a finished run, including those of proposals, under the names of the log."""
    with reading(run.folder / "metrics.json", AGAIN) as path:
        metrics = json.loads(path.read_text())
        known = {"AP": metrics["AP"], "boxes": dict(metrics["boxes"])} | metrics
        return known | {f"proposals/{name}": value for name, value in metrics.get("proposals", {}).items()}


def devices_of(run: Run) -> list[str]:
    """Return the kinds of devices that a run was trained on."""
    with reading(run.folder / "settings.json", AGAIN) as path:
        return list(json.loads(path.read_text())["machine"]["devices"])


def evidence_of(run: Run, measure: str) -> Columns | Tally:
    """Return what a finished run found in every picture: detections for AP, counts of proposals for other measures."""
    if measure == "AP":
        with reading(run.folder / "detections.json", AGAIN) as path:
            return columns(json.loads(path.read_text()))
    with reading(run.folder / "proposals.npz", AGAIN) as path, path.open("rb") as file, np.load(file) as arrays:
        return Tally(**arrays)


def reopen_damaged(runs: Sequence[Run], measure: str) -> None:
    """Mark finished runs whose results are damaged as unfinished, and print which file it is."""
    for run in runs:
        try:
            if run.finished:
                _ = metrics_of(run), devices_of(run)
                _ = measure in kept(run) or evidence_of(run, measure)
        except UserError as error:
            print(error, flush=True)
            (run.folder / "finished").unlink(missing_ok=True)


def keys_of(measure: str, protocol: Protocol) -> dict[str, str]:
    """Return the keys of a measure in the metrics -> the range of sizes, the headline first."""
    return {f"{measure}{ending}": size for size, ending in endings(protocol).items()}


def choices(images: int) -> Int[np.ndarray, "resamples images"]:
    """Return how often every image counts in every resample: the same for all runs, so that they stay paired."""
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), RESAMPLES)


def resample(run: Run, truth: dict, protocol: Protocol, measure: str) -> Float[np.ndarray, "resamples ranges"]:
    """Return the measure of a finished run in every resample; NaN where there is nothing to find.

    It is kept beside the run's results, so that these few files are all that another machine needs to go on.
    """
    known = kept(run)
    if measure not in known:
        known[measure] = scored_again(run, truth, protocol, measure)
        with replacing(run.folder / KEPT) as path, path.open("wb") as file:
            arrays: dict[str, Any] = {STAMP: np.array(stamp(run)), **known}
            np.savez_compressed(file, **arrays)
    return known[measure]


def kept(run: Run) -> dict[str, np.ndarray]:
    """Return the kept resamples of a finished run, by measure; none if they are not those of its `metrics.json`."""
    try:
        with (run.folder / KEPT).open("rb") as file, np.load(file) as arrays:
            known = dict(arrays)
    except DAMAGED:  # they are computed again
        return {}
    current = str(known.pop(STAMP, "")) == stamp(run)
    return {measure: values for measure, values in known.items() if current and len(values) == RESAMPLES}


def stamp(run: Run) -> str:
    """Return what tells the results of a run from others."""
    with reading(run.folder / "metrics.json", AGAIN) as path:
        return hashlib.sha256(path.read_bytes()).hexdigest()


def scored_again(run: Run, truth: dict, protocol: Protocol, measure: str) -> Float[np.ndarray, "resamples ranges"]:
    """Compute what `resample` returns from what the run found in every picture."""
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
    """Return the mean difference of two rows from the same seeds, with its interval over seeds and images.

    The variance of the mean over seeds is known no better than a few values tell, so it counts with Student's quantile;
    the variance over images is that of the resamples. However the noise splits between seeds and images, the combined
    interval misses no more often than either alone would (the tail of a squared normal variable is convex).

    Args:
      values: differences on all images.
      resampled: differences on resamples of the images; NaN where a resample has nothing to find.

    Returns:
      None if too many resamples have nothing to find.
    """
    seeds = len(values)
    means = resampled.mean(0)
    means = means[np.isfinite(means)]
    if len(means) < resampled.shape[1] / 2:
        return None
    over_seeds = stats.t.ppf(UPPER, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0
    mean, reach = float(values.mean()), float(np.hypot(over_seeds, stats.norm.ppf(UPPER) * means.std()))
    return Difference(mean, mean - reach, mean + reach, seeds)


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Return mean and standard deviation of several seeds' scores; of one score no deviation, of none nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def differences(
    by_row: dict[str, list[Run]], truth: dict, protocol: Protocol, measure: str
) -> dict[str, dict[str, Difference | None]]:
    """Compare every row with the first one: score -> difference, over the seeds that both have finished."""
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
