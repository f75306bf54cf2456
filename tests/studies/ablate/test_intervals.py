"""Differences between rows and their intervals, compared with plain Python."""

import json
import math
import statistics

import numpy as np
import pytest
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.proposal_scores import LIMITS, SHOWN, Tally, summarise
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.score import score
from cfinet_jax.studies.ablate import intervals
from cfinet_jax.studies.ablate.runs import Run
from tests.metrics.test_resampling import made, repeated

RULES = PROTOCOLS["coco"]


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 60)


def finished(folder, seed: int, truth: dict, found, tally: Tally) -> Run:
    """A run with these detections and proposals, as `--mode=train` writes it."""
    folder.mkdir(parents=True)
    metrics = score(truth, found, RULES) | {"proposals": summarise(tally, RULES)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    boxes = [dict(zip(("image_id", "category_id", "bbox", "score"), entry, strict=True))
             for entry in zip(*(column.tolist() for column in found), strict=True)]  # fmt: skip
    (folder / "detections.json").write_text(json.dumps(boxes))
    np.savez(folder / "proposals.npz", **tally._asdict())
    return Run("row", seed, None, epath.Path(folder))


@pytest.fixture
def truth_and_runs(tmp_path, rng):
    truth, found = made(rng)
    images, ranges = len(truth["images"]), len(RULES.ranges)
    objects = rng.integers(0, 4, (images, ranges))
    tally = Tally(objects, rng.integers(0, 10 * objects + 1, (len(LIMITS), images, ranges)), objects)
    worse = found._replace(scores=rng.random(len(found.scores)))
    runs = {
        name: [finished(tmp_path / name / str(seed), seed, truth, columns, tally) for seed in (0, 1)]
        for name, columns in (("base", worse), ("ours", found))
    }
    return truth, runs, found, tally


def test_every_resample_is_scored_like_a_set_of_its_images(truth_and_runs):
    truth, runs, found, tally = truth_and_runs
    times = intervals.choices(len(truth["images"]))
    assert times.shape == (intervals.RESAMPLES, len(truth["images"])) and (times.sum(1) == len(truth["images"])).all()
    ap = intervals.resample(runs["ours"][0], truth, RULES, "AP")
    recall = intervals.resample(runs["ours"][0], truth, RULES, "proposals/AR300")
    for number in (0, 7):
        metrics = score(*repeated(truth, found, times[number]), RULES)
        expected = [metrics[key] for key in intervals.keys_of("AP", RULES)]
        np.testing.assert_allclose(ap[number], [np.nan if x is None else x for x in expected], atol=1e-9)
        chosen = np.repeat(np.arange(len(times[number])), times[number])
        of_choice = summarise(Tally(tally.objects[chosen], tally.hits[:, chosen], tally.near[chosen]), RULES)
        expected = [of_choice[key.removeprefix("proposals/")] for key in intervals.keys_of("proposals/AR300", RULES)]
        np.testing.assert_allclose(recall[number], [np.nan if x is None else x for x in expected], atol=1e-12)
    assert SHOWN == 300


def test_resamples_are_kept_and_need_no_detections_then(truth_and_runs, monkeypatch):
    truth, runs, _, _ = truth_and_runs
    run, other = runs["ours"]
    first = intervals.resample(run, truth, RULES, "AP")
    recall = intervals.resample(run, truth, RULES, "proposals/AR300")
    for name in ("detections.json", "proposals.npz"):
        (run.folder / name).unlink()
    np.testing.assert_array_equal(intervals.resample(run, truth, RULES, "AP"), first)
    np.testing.assert_array_equal(intervals.resample(run, truth, RULES, "proposals/AR300"), recall)
    (run.folder / intervals.KEPT).write_bytes(b"PK torn")
    assert intervals.kept(run) == {}
    # Resamples of other results, or another number of resamples, do not count.
    intervals.resample(other, truth, RULES, "AP")
    (other.folder / "metrics.json").write_text("{}")
    assert intervals.kept(other) == {}
    with pytest.raises(UserError, match="detections.json is missing or damaged"):
        intervals.resample(run, truth, RULES, "AP")


def test_equal_rows_do_not_differ_and_a_better_one_does(truth_and_runs):
    truth, runs, _, _ = truth_and_runs
    same = intervals.differences({"base": runs["base"], "twin": runs["base"]}, truth, RULES, "AP")["twin"]["AP"]
    assert same == (0.0, 0.0, 0.0, 2) and not same.is_clear
    better = intervals.differences(runs, truth, RULES, "AP")["ours"]
    metrics = [intervals.metrics_of(of_row[0]) for of_row in (runs["ours"], runs["base"])]
    for key, difference in better.items():
        if difference is not None:
            assert difference.mean == pytest.approx(metrics[0][key] - metrics[1][key])
            assert difference.low <= difference.mean <= difference.high and difference.seeds == 2
    assert intervals.differences({"base": runs["base"], "none": []}, truth, RULES, "AP")["none"]["AP"] is None


def test_an_interval_combines_the_variances_over_seeds_and_images(rng):
    values, resampled = np.array([0.1, 0.2, 0.6]), rng.normal(0.3, 0.1, (3, 400))
    found = intervals.compare(values, resampled)
    of_seeds = statistics.stdev(values.tolist()) / math.sqrt(3)
    of_images = statistics.pstdev(sum(column) / 3 for column in resampled.T.tolist())
    reach = math.sqrt((4.302653 * of_seeds) ** 2 + (1.959964 * of_images) ** 2)
    assert found == pytest.approx((0.3, 0.3 - reach, 0.3 + reach, 3))
    alone = intervals.compare(values[:1], resampled[:1])
    reach = 1.959964 * statistics.pstdev(resampled[0].tolist())
    assert alone == pytest.approx((0.1, 0.1 - reach, 0.1 + reach, 1))


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("by_seed", "by_image", "by_both"),
    [(1.0, 0.5, 0.0), (1.0, 7.0, 0.0), (0.0, 7.0, 0.0), (0.3, 7.0, 7.0)],
    ids=["seeds", "as much", "images", "images by seed"],
)
def test_false_claims_are_as_rare_as_the_level_says(rng, seeds, by_seed, by_image, by_both):
    """The rows do not differ, but for noise by seed, by image and by both, in the mean over 50 images."""
    images, tries, claims = 50, 1000, 0
    times = rng.multinomial(images, np.full(images, 1 / images), 200) / images
    if seeds == 1:
        by_seed = by_both = 0.0  # one seed says nothing about these
    for _ in range(tries):
        of_image = by_image * rng.normal(size=images) + by_both * rng.normal(size=(seeds, images))
        differences = by_seed * rng.normal(size=(seeds, 1)) + of_image
        claims += intervals.compare(differences.mean(1), differences @ times.T).is_clear
    assert claims / tries <= 0.075  # 5 percent, 3.5 standard deviations of such a count


def test_a_size_that_most_resamples_lack_has_no_interval():
    half = np.where(np.arange(10) < 4, 1.0, np.nan)[None]
    assert intervals.compare(np.ones(1), half) is None


def test_mean_and_spread_over_seeds():
    assert intervals.mean_and_spread([0.1, None, 0.3]) == (pytest.approx(0.2), pytest.approx(math.sqrt(0.02)))
    assert intervals.mean_and_spread([0.5]) == (0.5, None)
    assert intervals.mean_and_spread([None]) is None
