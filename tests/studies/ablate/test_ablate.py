"""`--mode=ablate`: runs are skipped, resumed, shared and reported."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from cfinet_jax.errors import Interrupted, Unwritable, UserError
from cfinet_jax.runtime.lock import locked
from cfinet_jax.studies.ablate import intervals, runs
from tests import tiny

ROOT = Path(__file__).parents[3]
STUDIES = """
from cfinet_jax.studies.ablate.study import Row, Study

def get_studies(config):
    rows = (
        Row("base", {}, {"AP": 30.0}),
        Row("lighter", {"detector.imitation.weight": 0.25}, {"AP": 31.5}),
        Row("plain", {"detector.imitation.enabled": False}),
    )
    anchors = (Row("squares", {}), Row("three ratios", {"detector.proposal_network.name": "rpn"}))
    return {
        "mine": Study("Mine", rows, "A note.", quoted=(Row("theirs", {}, {"AP": 12.5}),)),
        "recall": Study("Recall", rows[:2], measure="proposals/AR300"),
        "fit": Study("Fit", anchors, measure="anchors"),
        "unscored": Study("Unscored", (Row("base", {}), Row("odd", {"evaluation.protocol": "soda_a"}))),
        "frozen": Study("Frozen", (Row("base", {}), Row("odd", {"detector.backbone.frozen_stages": 1}))),
        "broken": Study("Broken", (Row("base", {}), Row("odd", {"detector.precision": "float8"}))),
        "quoted": Study("Quoted", (), quoted=(Row("theirs", {}, {"AP": 12.5}),)),
        "two": Study("Two", rows[::2]),
    }
"""


@pytest.fixture
def ablate(tmp_path, tiny_scenes, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """The command, with studies of this file and fewer resamples."""
    (tmp_path / "studies.py").write_text(STUDIES)
    monkeypatch.setattr(intervals, "RESAMPLES", 40)

    def call(study: str, *more: str) -> tuple[int, str, str]:
        mode = ("--mode=ablate", f"--study={tmp_path}/studies.py:{study}", "--seeds=2")
        return tiny.call_main(*tiny.arguments(tiny_scenes, tmp_path / "work"), *mode, *more)

    return call


@pytest.fixture
def trainings(trained, monkeypatch) -> list[tuple]:
    """Requested trainings. Their result is copied from `tests.tiny`; the row `lighter` finds no boxes."""
    asked: list[tuple] = []

    def train(config, folder):
        name = "plain" if not config.detector.imitation.enabled else f"{config.detector.imitation.weight:g}"
        asked.append((name, config.seed))
        shutil.copytree(trained[0], folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", "lock"))
        if name == "0.25":
            (folder / "detections.json").write_text("[]")
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics |= {key: 0.0 for key, value in metrics.items() if key.startswith("AP") and value is not None}
            (folder / "metrics.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(runs, "train", train)
    return asked


def test_a_study_is_run_once_and_reported(ablate, trainings, tmp_path):
    status, output, errors = ablate("mine")
    assert (status, errors) == (0, ""), errors
    assert trainings == [("0.5", 0), ("0.5", 1), ("0.25", 0), ("0.25", 1), ("plain", 0), ("plain", 1)]
    page = (tmp_path / "work" / "mine.md").read_text()
    assert page in output and "A note." in page
    assert "is no evidence" in page and "2 seeds, fewer than 3; trained on a CPU" in page
    assert "| context: the paper's difference, on the test split of sodad | +1.5 |" in page
    assert "30.0" not in page and "| theirs | 12.5 |" in page  # on other data, the paper's scores would mislead
    assert "- No difference from base can be claimed for:" in page
    for number in ("differences", "imitation"):
        assert (tmp_path / "work" / f"mine_{number}.png").stat().st_size > 1000
    assert (tmp_path / "work" / "mine.html").stat().st_size > 10_000
    saved = json.loads((tmp_path / "work" / "mine.json").read_text())
    assert saved["differences"]["plain"]["AP"] == [0.0, 0.0, 0.0, 2]
    assert all(Path(tmp_path, "work", folder).exists() for folder in links(page))

    trainings.clear()
    damaged = next((tmp_path / "work" / "runs").glob("*/seed_1")) / "metrics.json"
    damaged.write_text("")
    status, output, _ = ablate("mine")
    assert status == 0 and len(trainings) == 1 and trainings[0][1] == 1 and str(damaged) in output
    trainings.clear()
    assert ablate("mine")[0] == 0 and trainings == []
    assert ablate("two")[0] == 0 and trainings == []  # another study with the same rows
    assert ablate("recall")[0] == 0 and trainings == []
    assert "AR300" in (tmp_path / "work" / "recall.md").read_text()
    assert ablate("mine", "--seeds=3")[0] == 0
    assert trainings == [("0.5", 2), ("0.25", 2), ("plain", 2)]


def links(page: str) -> list[str]:
    """The links to workdirs."""
    return [line.split("](")[1].split("/report.html")[0] for line in page.splitlines() if "report.html" in line]


@pytest.mark.parametrize(
    ("error", "line"),
    [(UserError("Change this."), "Change this."), (ValueError("odd\nshape"), "ValueError: odd shape")],
)
def test_a_failed_run_is_reported_and_does_not_stop_the_others(ablate, trainings, tmp_path, monkeypatch, error, line):
    train = runs.train

    def refuse(config, folder):
        if config.detector.imitation.weight == 0.25 and config.seed == 1:
            raise error
        train(config, folder)

    monkeypatch.setattr(runs, "train", refuse)
    status, _, errors = ablate("mine")
    assert "not finished" not in errors and "same command" in errors
    assert status == 2 and f"1 of 6 runs failed, first lighter, seed 1: {line}" in errors
    assert f"| lighter | 1 | failed: {line} |" in (tmp_path / "work" / "mine.md").read_text()
    assert len(trainings) == 5
    written = next((tmp_path / "work").glob("runs/*/seed_1/failure.txt")).read_text()
    assert ("Traceback" in written) == isinstance(error, ValueError)
    trainings.clear()
    monkeypatch.setattr(runs, "train", train)
    assert ablate("mine")[0] == 0 and trainings == [("0.25", 1)]
    assert "failed" not in (tmp_path / "work" / "mine.md").read_text()


def test_an_interrupted_study_resumes(ablate, trainings, monkeypatch):
    train = runs.train

    def stop(config, folder):
        if len(trainings) == 3:
            raise Interrupted("Stopped by SIGTERM.")
        train(config, folder)

    monkeypatch.setattr(runs, "train", stop)
    assert ablate("mine")[0] == 75 and len(trainings) == 3
    monkeypatch.setattr(runs, "train", train)
    assert ablate("mine")[0] == 0
    assert trainings == [("0.5", 0), ("0.5", 1), ("0.25", 0), ("0.25", 1), ("plain", 0), ("plain", 1)]


def test_a_study_of_runs_too_short_to_log_has_scores(ablate, trainings, tmp_path, monkeypatch):
    train = runs.train

    def log_nothing(config, folder):
        train(config, folder)
        log = folder / "metrics.jsonl"
        log.write_text("".join(line for line in log.read_text().splitlines(True) if json.loads(line)["kind"] == "eval"))

    monkeypatch.setattr(runs, "train", log_nothing)
    status, _, errors = ablate("two")
    assert (status, errors) == (0, "")
    page = (tmp_path / "work" / "two.md").read_text()
    assert "No curves: " in page and "has no training record yet" in page and "## Scores" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", ""),
        ("metrics.json", '{"AP": 0.12, "bo'),
        ("metrics.json", "[]"),
        ("metrics.json", '{"AP": 0.5}'),
        ("detections.json", None),
        ("detections.json", '[{"image_id": 1, "cat'),
        ("detections.json", "{}x"),
        ("detections.json", "[" * 100_000),
        ("settings.json", "null"),
        ("proposals.npz", "PK torn"),
        ("proposals.npz", ""),
    ],
)
def test_a_run_with_a_damaged_file_is_no_longer_finished(trained, tmp_path, capsys, name, content):
    measure = "proposals/AR300" if name == "proposals.npz" else "AP"
    ignored = shutil.ignore_patterns("checkpoints", "lock", "overlays")
    folder = epath.Path(shutil.copytree(trained[0], tmp_path / "run", ignore=ignored))
    (folder / "finished").touch()
    run = runs.Run("row", 0, tiny.tiny_config(), folder)
    intervals.reopen_damaged([run], measure)
    assert run.finished and capsys.readouterr().out == ""
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    intervals.reopen_damaged([run], measure)
    assert not run.finished
    (line,) = capsys.readouterr().out.splitlines()
    assert str(folder / name) in line and "score this run again" in line


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe broke off"])
def test_a_damaged_record_of_a_failure_is_shown_as_far_as_it_goes(tmp_path, content):
    (tmp_path / "failure.txt").write_bytes(content)
    failure = runs.Run("row", 0, None, epath.Path(tmp_path)).failure
    assert failure is not None and ("broke off" in failure or "failure.txt" in failure or failure == "")


def test_a_full_disk_ends_the_study(ablate, trainings, tmp_path, monkeypatch):
    def refuse(config, folder):
        trainings.append(config.seed)
        raise Unwritable("Checkpoint 8 cannot be written: make room.")

    monkeypatch.setattr(runs, "train", refuse)
    status, _, errors = ablate("mine")
    assert (status, errors) == (2, "cfinet_jax: Checkpoint 8 cannot be written: make room.\n")
    assert trainings == [0] and not list((tmp_path / "work").glob("runs/*/*/failure.txt"))


def test_a_run_that_another_process_is_running_is_left_to_it(ablate, trainings, tmp_path):
    ablate("two", "--seeds=1")
    trainings.clear()
    folder = next((tmp_path / "work" / "runs").glob("*"))
    with locked(epath.Path(folder / "seed_1" / "claim")):
        status, output, errors = ablate("two")
    assert status == 2 and len(trainings) == 1 and "another process is running it" in output
    assert re.search("1 of 4 runs are not finished [(](base|plain), seed 1[)]: another process is running", errors)
    assert "| not finished |" in (tmp_path / "work" / "two.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("broken",), "detector.precision is 'float8'"),
        (("unscored",), "evaluation.protocol is 'soda_a'"),
        (("frozen",), "detector.backbone.frozen_stages would freeze random weights"),
        (("none",), "has no study 'none'"),
        (("mine", "--devices=a,b"), "--devices has 'a'"),
        (("mine", "--devices=0", "--workdir=gs://bucket/work"), "needs a --workdir on a disk"),
        (("recall", "--config.evaluation.proposals=False"), "set evaluation.proposals"),
        (("mine", "--config.evaluation.protocol=visdrone_toolkit"), "set evaluation.protocol=visdrone."),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_is_trained(ablate, trainings, arguments, message):
    status, _, errors = ablate(*arguments)
    assert status == 2 and message in errors and len(errors.splitlines()) == 1
    assert trainings == []


def test_figures_of_anchors_and_quoted_rows_need_no_training(ablate, trainings, tmp_path):
    assert ablate("fit")[0] == 0 and trainings == []
    page = (tmp_path / "work" / "fit.md").read_text()
    assert "| squares |" in page and "| three ratios |" in page and (tmp_path / "work" / "fit.png").exists()
    assert ablate("quoted")[0] == 0 and trainings == []
    assert "| theirs | 12.5 |" in (tmp_path / "work" / "quoted.md").read_text()


def test_a_missing_study_is_an_error(tiny_scenes, tmp_path):
    status, _, errors = tiny.call_main(*tiny.arguments(tiny_scenes, tmp_path), "--mode=ablate")
    assert status == 2 and "--study is missing" in errors


CONFIG = """
import json
from cfinet_jax.restore import recorded_config

def get_config():
    return recorded_config({"config": json.loads(%r)})
"""


@pytest.mark.slow
def test_two_devices_share_the_runs_and_a_stopped_study_resumes(tiny_scenes, tmp_path):
    config = tiny.tiny_config()
    config.dataset.data_dir = str(tiny_scenes)
    (tmp_path / "config.py").write_text(CONFIG % config.to_json())  # the program cannot import `tests.tiny`
    (tmp_path / "studies.py").write_text(STUDIES)
    where = (f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/work", f"--study={tmp_path}/studies.py:two")
    command = [sys.executable, "-m", "cfinet_jax.main", "--mode=ablate", *where, "--seeds=2", "--devices=0,1"]
    first = subprocess.Popen(command, cwd=ROOT)
    while first.poll() is None and not list((tmp_path / "work").glob("runs/*/*/metrics.jsonl")):
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    assert first.wait(400) == 75
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("runs/*/*/finished")}
    assert len(before) < 4
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert second.returncode == 0, second.stdout + second.stderr
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("runs/*/*/finished")}
    assert len(finished) == 4 and before.items() <= finished.items()
    logs = [(tmp_path / "work" / "devices" / f"{device}.log").read_text() for device in (0, 1)]
    taken = [line for log in logs for line in log.splitlines() if line.startswith("Run ")]
    assert len(taken) == len(set(taken)) == 4 - len(before)  # each by one of them, nothing twice
    assert "| finished |" in (tmp_path / "work" / "two.md").read_text()
