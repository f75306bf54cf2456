"""The documented commands lead from the downloaded SODA-A to a report, and refuse mistakes."""

import csv
import json
import sys
from pathlib import Path
from unittest import mock

import cv2
import pytest
from jax import export

import cfinet_jax
from cfinet_jax.preparation import __main__ as prepare
from tests import sodaa, tiny, tiny_oriented


def arguments(folder: Path, workdir: str = "run", config: str = tiny_oriented.__file__) -> list[str]:
    """Return the arguments of a run on the data prepared in a folder."""
    return [f"--config={config}", f"--config.dataset.data_dir={folder / 'prepared'}", f"--workdir={folder / workdir}"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Prepare a tiny SODA-A; return the folder of both."""
    folder = tmp_path_factory.mktemp("sodaa")
    source = sodaa.make(folder / "SODA-A")
    command = ["prepare.py", "sodaa", f"--source={source}", f"--data_dir={folder / 'prepared'}"]
    with mock.patch.object(sys, "argv", command):
        assert prepare.main() == 0
    return folder


@pytest.fixture(scope="module")
def trained(prepared) -> Path:
    """Train rotated CFINet in the same folder."""
    status, output, errors = tiny.call_main(*arguments(prepared))
    assert (status, errors) == (0, ""), errors
    assert "AP50" in output
    return prepared


def test_a_run_writes_scores_detections_and_a_report(trained):
    run = trained / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["boxes"]["Small"] == 1 and "AR300" in metrics["proposals"]
    for entry in json.loads((run / "detections.json").read_text()):
        assert len(entry["bbox"]) == 5 and entry["category_id"] in range(9)
    assert "oriented boxes" in (run / "report.md").read_text()
    assert list((run / "overlays").iterdir()) and (run / "dota").is_dir()


def test_results_of_another_split_are_not_overwritten(trained):
    flags = "--mode=evaluate", "--config.dataset.eval_split=test"
    status, _, errors = tiny.call_main(*arguments(trained), *flags)
    assert status == 2 and "results of other data" in errors
    (trained / "run" / "metrics.json").rename(trained / "run" / "metrics_train.json")
    status, output, errors = tiny.call_main(*arguments(trained), *flags)
    assert (status, errors) == (0, ""), errors
    assert "AP50" in output


def test_predictions_are_oriented(trained, tmp_path):
    pictures = trained / "SODA-A" / "Images"
    flags = ["--mode=predict", f"--images={pictures}", f"--output={tmp_path}", "--config.prediction.min_score=0.0"]
    status, _, errors = tiny.call_main(*arguments(trained), *flags)
    assert (status, errors) == (0, ""), errors
    with (tmp_path / "counts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(pictures.iterdir())) == len(list((tmp_path / "overlays").iterdir()))
    picture = cv2.imread(str(next(iter(pictures.iterdir()))))[..., ::-1]
    (prediction,) = cfinet_jax.load(trained / "run").predict([picture])
    assert prediction.boxes.shape == (len(prediction.scores), 5)


def test_the_export_detects_oriented_boxes(trained):
    status, _, errors = tiny.call_main(*arguments(trained), "--mode=export")
    assert (status, errors) == (0, ""), errors
    folder = trained / "run" / "export"
    exported = export.deserialize(bytearray((folder / "detector.stablehlo").read_bytes()))
    assert {(8, 20, 5), (8, 20)} == {each.shape for each in exported.out_avals}
    assert "`cx cy w h angle`" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.dataset.boxes=slanted", "choose horizontal or oriented"),
        ("--config.detector.roi_head.name=horizontal", "choose one of rotated, oriented"),
        ("--config.evaluation.protocol=coco", "choose one of oriented, soda_a"),
    ],
)
def test_horizontal_and_oriented_do_not_mix(prepared, change, message):
    status, _, errors = tiny.call_main(*arguments(prepared, "mixed"), change)
    assert status == 2 and message in errors and len(errors.splitlines()) == 1


def test_an_upright_run_refuses_oriented_data_and_the_reverse(prepared, tiny_scenes, tmp_path):
    upright = *arguments(prepared, "mixed", tiny.__file__), "--config.dataset.name=sodaa"
    data = f"--config.dataset.data_dir={tiny_scenes}"
    reverse = f"--config={tiny_oriented.__file__}", data, f"--workdir={tmp_path}", "--config.dataset.name=scenes"
    for flags, kinds in (
        (upright, "horizontal, but sodaa has oriented boxes"),
        (reverse, "oriented, but scenes has horizontal boxes"),
    ):
        status, _, errors = tiny.call_main(*flags)
        assert status == 2 and f"dataset.boxes is {kinds}: choose another data set" in errors
        assert len(errors.splitlines()) == 1
