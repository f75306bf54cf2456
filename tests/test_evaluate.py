"""Evaluation merges the detections of windows picture by picture, and replaces results only as a whole."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import evaluate
from cfinet_jax.errors import UserError
from cfinet_jax.evaluate import check_replaceable, detect_split, evaluated, score_split, write_results
from cfinet_jax.input.dataset import open_dataset
from cfinet_jax.metrics.results import columns
from cfinet_jax.preparation.scenes.render import render_scene
from cfinet_jax.preparation.scenes.scenes_builder import Builder
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.settings import write_settings
from configs import scenes
from tests import tiny


def find_the_truth(_, batch) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Stand in for a detector: return the ground truth of a window, larger objects first, also as proposals."""
    truth = batch.ground_truth
    sides = np.asarray(truth.boxes[..., 2:] - truth.boxes[..., :2])
    found = SimpleNamespace(
        boxes=np.asarray(truth.boxes),
        scores=np.prod(sides, axis=-1) / 1e6,
        labels=np.asarray(truth.labels),
        valid=np.asarray(truth.is_object),
    )
    return found, found


@pytest.mark.parametrize("overlap", [None, 100])
def test_every_object_is_found_once(overlap, tmp_path):
    Builder(counts={"test": 5}, data_dir=tmp_path).download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
    config: ConfigDict = scenes.get_config()
    config.dataset.update(data_dir=str(tmp_path), eval_batch_size=8, max_objects=100)
    if overlap is not None:
        config.dataset.update(window_overlap=overlap, stored_size=(160, 192))
    prepared = open_dataset(config.dataset, "test")
    results, proposals = detect_split(find_the_truth, None, prepared, config, mesh.make_mesh())

    for position in range(5):
        image_id = int(prepared.source[position]["image_id"])
        scene = render_scene("test", image_id - 1)
        whole = (scene.boxes[:, 2:] - scene.boxes[:, :2] <= 100).all(1) & ~scene.ignore
        found = results.image_ids == image_id
        boxes, labels = results.boxes[found], results.category_ids[found] - 1
        boxes[:, 2:] += boxes[:, :2]
        for box, label in zip(scene.boxes[whole], scene.labels[whole], strict=True):
            assert np.sum((labels == label) & (np.abs(boxes - box).max(1) < 0.01)) == 1
        # The other detections are parts of objects at the borders of windows.
        assert found.sum() < 2 * len(scene.boxes) if overlap else found.sum() == np.sum(~scene.ignore)
    assert len(set(results.image_ids)) == 1 + np.sum(np.diff(results.image_ids) != 0)

    metrics = score_split(results, proposals, prepared, "coco").metrics
    recall, number = metrics["proposals"]["AR100"], metrics["proposals"]["per_object"]
    assert recall > 0.9 and 1 <= number < 1.1 if overlap else recall == 1 and number >= 1
    config.evaluation.proposals = False
    again, none = detect_split(find_the_truth, None, prepared, config, mesh.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, again, results)
    assert none is None
    del metrics["proposals"]
    assert score_split(results, None, prepared, "coco").metrics == metrics


@pytest.fixture
def run(tiny_scenes, tmp_path) -> tuple:
    """A workdir with settings, the config, the split, and the scores of no detections."""
    config, workdir = tiny.tiny_config(), epath.Path(tmp_path, "run")
    config.dataset.data_dir = str(tiny_scenes)
    prepared = open_dataset(config.dataset, "test")
    write_settings(config, workdir, prepared.classes, prepared.category_ids)
    return workdir, config, prepared, score_split(columns([]), None, prepared, "coco")


def contents(workdir: epath.Path) -> dict[str, bytes]:
    """Read every file of a run except those of an interrupted evaluation."""
    files = (path for path in Path(workdir).rglob("*") if path.is_file() and "results.unfinished" not in str(path))
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


BREAKS = ("write_coco", "table", "cfinet_jax.report.write.to_html")


@pytest.mark.parametrize("broken", BREAKS)
def test_results_are_replaced_only_when_all_of_them_are_written(broken, run, monkeypatch):
    workdir, config, prepared, scored = run
    write_results(workdir, scored, prepared, config)
    before = contents(workdir)
    assert {"metrics.json", "metrics.md", "detections.json", "report.html", "evaluated.json"} < before.keys()

    def fail(*_):
        raise OSError(28, "No space left on device")

    other = scored._replace(metrics=scored.metrics | {"AP": 0.75})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(broken if "." in broken else f"cfinet_jax.evaluate.{broken}", fail)
        write_results(workdir, other, prepared, config)
    assert contents(workdir) == before
    (workdir / "results.unfinished" / "overlays").mkdir(parents=True, exist_ok=True)
    (workdir / "results.unfinished" / "stale.txt").touch()
    write_results(workdir, other, prepared, config)
    assert json.loads((workdir / "metrics.json").read_text())["AP"] == 0.75
    assert contents(workdir).keys() == before.keys() and not (workdir / "results.unfinished").exists()


@pytest.mark.parametrize("change", [{"split": "val"}, {"data set": "mine"}, {"images": 9}])
@pytest.mark.parametrize("known", [True, False])
def test_results_of_other_data_are_not_replaced(change, known, run):
    workdir, config, prepared, scored = run
    now = evaluated(prepared, config)
    check_replaceable(workdir, now | change)  # there are none yet
    write_results(workdir, scored, prepared, config)
    if not known:  # without a record the results are of the data in the settings, and their number is unknown
        (workdir / "evaluated.json").unlink()
    check_replaceable(workdir, now)
    if known or change.keys() != {"images"}:
        with pytest.raises(UserError, match="move its metrics.json elsewhere") as error:
            check_replaceable(workdir, now | change)
        assert all(f"{key} {each[key]}" in str(error.value) for key in change for each in (now, now | change))
    (workdir / "metrics.json").rename(workdir / "kept.json")
    check_replaceable(workdir, now | change)


def test_an_unwritable_workdir_is_reported_before_the_work(run, monkeypatch):
    workdir, config, prepared, _ = run
    (workdir / "checkpoints" / "7").mkdir(parents=True)
    (workdir / "results.unfinished").write_text("in the way")
    monkeypatch.setattr(evaluate, "trained_variables", lambda *_: {})
    monkeypatch.setattr(evaluate, "detect_split", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(OSError, match="results.unfinished"):
        evaluate.evaluate(config, workdir)
