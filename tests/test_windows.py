"""A whole run on pictures cut into windows: training, evaluation, report, and the score of its detections."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from etils import epath

from cfinet_jax.evaluate import detect_split, score_split
from cfinet_jax.input.dataset import open_dataset
from cfinet_jax.metrics.__main__ import score_files
from cfinet_jax.metrics.results import write_coco
from cfinet_jax.preparation.coco_layout import read_named
from cfinet_jax.preparation.own_builder import Builder
from cfinet_jax.preparation.scenes.render import SIZE, render_scene
from cfinet_jax.preparation.scenes.templates import CLASSES
from cfinet_jax.runtime import mesh
from tests import tiny
from tests.test_evaluate import find_the_truth

REGION = len(CLASSES) + 1


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory) -> Path:
    """Prepare pictures of two by two scenes as COCO data; return the folder."""
    folder = tmp_path_factory.mktemp("mosaics")
    categories = [{"id": number, "name": name} for number, name in enumerate([*CLASSES, "ignore"], start=1)]
    for split, count in (("train", 4), ("test", 3)):
        images, annotations = [], []
        for image_id in range(1, count + 1):
            picture = np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8)
            for part in range(4):
                scene = render_scene(split, 4 * image_id + part)
                top, left = SIZE * (part // 2), SIZE * (part % 2)
                picture[top : top + SIZE, left : left + SIZE] = scene.image
                for box, label, ignore in zip(scene.boxes, scene.labels, scene.ignore, strict=True):
                    x1, y1, x2, y2 = box.tolist()
                    entry = {"bbox": [x1 + left, y1 + top, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                    entry |= {"category_id": REGION if ignore else int(label) + 1, "image_id": image_id}
                    annotations.append(entry | {"id": len(annotations) + 1})
            name = f"{split}{image_id}.png"
            cv2.imwrite(str(folder / name), picture[..., ::-1])
            images.append({"id": image_id, "file_name": name, "height": 2 * SIZE, "width": 2 * SIZE})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    files = {split: (epath.Path(folder, f"{split}.json"), epath.Path(folder)) for split in ("train", "test")}
    builder = Builder(read=partial(read_named, files), origin={}, name="mosaics", data_dir=str(folder / "prepared"))
    builder.download_and_prepare(file_format="array_record")
    return folder


def truth_of(_, batch) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Detect the truth as in `tests.test_evaluate`, and also ignore regions, wrongly, with the highest scores."""
    (found, proposals), truth = find_the_truth(_, batch), batch.ground_truth
    changes = {"valid": np.asarray(truth.valid), "scores": found.scores + np.asarray(truth.ignore)}
    return SimpleNamespace(**vars(found) | changes), proposals


@pytest.mark.parametrize("protocol", ["soda_d", "coco"])
def test_a_prepared_split_and_its_annotation_file_give_the_same_scores(mosaics, tmp_path, protocol):
    config = tiny.tiny_config()
    settings = {"name": "mosaics", "data_dir": str(mosaics / "prepared"), "window_overlap": 100, "max_objects": 99}
    config.dataset.update(settings)
    prepared = open_dataset(config.dataset, "test")
    results, _ = detect_split(truth_of, None, prepared, config, mesh.make_mesh())
    write_coco(results, tmp_path / "detections.json")
    files = {name: epath.Path(path) for name, path in (
        ("annotations", mosaics / "test.json"),
        ("detections", tmp_path / "detections.json"),
        ("output", tmp_path / "metrics.json"),
    )}  # fmt: skip
    score_files(protocol, **files)
    expected = json.loads((tmp_path / "metrics.json").read_text())
    found = score_split(results, None, prepared, protocol).metrics
    assert found["boxes"] == expected["boxes"]
    for name in found.keys() - {"boxes", "per_class", "protocol"}:
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    people = found["per_class"]["people"]["AP50"]  # the class of the wrong detections
    assert people > 0.85 if protocol == "coco" else 0.5 < people < 0.85  # SODA-D has no ignore regions


def test_a_run_on_windows(mosaics, tmp_path):
    run = (*tiny.arguments(mosaics / "prepared", tmp_path / "run"), "--config.dataset.name=mosaics")
    status, output, errors = tiny.call_main(*run, "--config.dataset.window_overlap=64")
    assert (status, errors) == (0, "")
    assert "4 training and 3 evaluation images" in output and "windows to train on" in output
    assert {"report.html", "metrics.json", "overlays"} <= {path.name for path in (tmp_path / "run").iterdir()}
    metrics = (tmp_path / "run" / "metrics.json").read_text()

    # The evaluation uses the windows of the run.
    status, output, errors = tiny.call_main(*run, "--mode=evaluate")
    assert (status, errors) == (0, "") and "windows/s" in output
    assert (tmp_path / "run" / "metrics.json").read_text() == metrics
