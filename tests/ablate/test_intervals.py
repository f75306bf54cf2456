"""Differences between rows: what the resamples say, against loops in plain Python."""

import json
import math

import numpy as np
import pytest
from etils import epath

from cfinet_jax.ablate import intervals
from cfinet_jax.ablate.runs import Run
from cfinet_jax.metrics.proposals import LIMITS, SHOWN, Tally, summarise
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.score import score
from tests.metrics.test_resampling import made, repeated

RULES = PROTOCOLS["coco"]


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 60)


def finished(folder, seed: int, truth: dict, found, tally: Tally) -> Run:
    """A run as `--mode=train` leaves it, of these detections and proposals."""
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


def test_every_resample_is_a_choice_of_images(truth_and_runs):
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


def test_equal_rows_do_not_differ_and_a_better_one_does(truth_and_runs):
    truth, runs, _, _ = truth_and_runs
    same = intervals.differences({"base": runs["base"], "twin": runs["base"]}, truth, RULES, "AP")["twin"]["AP"]
    assert same == (0.0, 0.0, 0.0) and not same.is_clear
    better = intervals.differences(runs, truth, RULES, "AP")["ours"]
    metrics = [intervals.metrics_of(of_row[0]) for of_row in (runs["ours"], runs["base"])]
    for key, difference in better.items():
        if difference is not None:
            assert difference.mean == pytest.approx(metrics[0][key] - metrics[1][key])
            assert difference.low <= difference.mean + 1e-9 or difference.high >= difference.mean - 1e-9
    assert intervals.differences({"base": runs["base"], "none": []}, truth, RULES, "AP")["none"]["AP"] is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_interval_is_that_of_images_and_seeds(rng, seeds):
    ours, base = rng.normal(1.0, 0.1, (seeds, 400)), rng.normal(0.0, 0.1, (seeds, 400))
    found = intervals.compare(ours, base, 0.5)
    drawn = np.random.default_rng(1).integers(seeds, size=(400, seeds))
    values = sorted(np.mean([ours[s, b] - base[s, b] for s in drawn[b]]) for b in range(400))
    assert found.mean == 0.5
    assert values[8] <= found.low <= values[12] and values[387] <= found.high <= values[391]


def test_an_interval_covers_as_often_as_it_says(rng):
    """Of means of normal numbers, whose interval is known."""
    inside = 0
    for _ in range(300):
        values = rng.normal(0.3, 1.0, 60)
        times = rng.multinomial(60, np.full(60, 1 / 60), 300)
        found = intervals.compare((times @ values / 60)[None], np.zeros((1, 300)), values.mean())
        inside += found.low <= 0.3 <= found.high
    assert 0.90 <= inside / 300 <= 0.98


def test_a_size_that_most_resamples_leave_out_has_no_interval():
    half = np.where(np.arange(10) < 4, 1.0, np.nan)[None]
    assert intervals.compare(half, np.zeros((1, 10)), 1.0) is None


def test_spread_is_that_of_the_seeds():
    assert intervals.mean_and_spread([0.1, None, 0.3]) == (pytest.approx(0.2), pytest.approx(math.sqrt(0.02)))
    assert intervals.mean_and_spread([0.5]) == (0.5, None)
    assert intervals.mean_and_spread([None]) is None
