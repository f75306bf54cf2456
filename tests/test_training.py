"""A whole run learns."""

import json
from functools import partial

import cv2
import numpy as np
import pytest
from etils import epath

import cfinet_jax
from cfinet_jax.errors import UserError
from cfinet_jax.evaluate import evaluate
from cfinet_jax.preparation.coco_layout import read_named
from cfinet_jax.preparation.own_builder import Builder
from cfinet_jax.preparation.scenes.render import render_scene
from configs import scenes
from tests import tiny

SIDE = 96  # pixels of the corner of a scene


@pytest.fixture(scope="module")
def corners(tmp_path_factory) -> str:
    """Prepare four corners of scenes as COCO data with two equal splits; return the folder."""
    folder = tmp_path_factory.mktemp("corners")
    images, annotations = [], []
    for index in range(200):
        scene = render_scene("train", index)
        inside = (scene.boxes < SIDE - 2).all(1)
        cut = (scene.boxes[:, :2] < SIDE).all(1) & ~inside  # would be visible without a box
        if inside.sum() < 2 or cut.any() or scene.ignore.any():
            continue
        name = f"{index}.png"
        cv2.imwrite(str(folder / name), scene.image[:SIDE, :SIDE, ::-1])
        images.append({"id": index, "file_name": name, "height": SIDE, "width": SIDE})
        for box, label in zip(scene.boxes[inside], scene.labels[inside], strict=True):
            x1, y1, x2, y2 = (float(x) for x in box)
            entry = {"image_id": index, "category_id": int(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotations.append(entry | {"id": len(annotations) + 1, "area": (x2 - x1) * (y2 - y1), "iscrowd": 0})
        if len(images) == 4:
            break
    categories = [{"id": index + 1, "name": f"class {index + 1}"} for index in range(6)]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    files = {split: (epath.Path(path), epath.Path(folder)) for split in ("train", "test")}
    builder = Builder(read=partial(read_named, files), origin={}, name="corners", data_dir=str(folder / "prepared"))
    builder.download_and_prepare(file_format="array_record")
    return str(folder / "prepared")


SMALL = {
    "dataset.name": "corners",
    "dataset.stored_size": (SIDE, SIDE),
    "dataset.max_objects": 16,
    "dataset.batch_size": 8,
    "dataset.flip": 0.0,
    "detector.backbone.width": 16,
    "detector.neck.channels": 32,
    "detector.proposal_network.coarse_to_fine.channels": 32,
    "detector.proposal_network.coarse_to_fine.samples": 64,
    "detector.proposal_network.coarse_to_fine.proposals.max_proposals": 50,
    "detector.proposal_network.coarse_to_fine.proposals.train.candidates": 200,
    "detector.proposal_network.coarse_to_fine.proposals.test.candidates": 200,
    "detector.roi_head.samples": 32,
    "detector.roi_head.hidden": 128,
    "detector.imitation.groups": 4,
    "detector.imitation.encoder": 32,
    "detector.imitation.embedding": 16,
    "detector.imitation.samples": 16,
    "detector.imitation.slots": 8,
    "detector.imitation.max_exemplars": 2,
    "optimizer.learning_rate": 0.012,
    "optimizer.warmup_images": 160,
    "optimizer.decay_images": (700, 10_000),
    "training.log_every_images": 80,
    "training.checkpoint_every_images": 100_000,
    "evaluation.every_images": 100_000,
    "evaluation.overlays": 1,
}


@pytest.mark.slow
def test_a_run_overfits_four_images(corners, tmp_path, capsys):
    config = scenes.get_config()
    config.update_from_flattened_dict(SMALL | {"dataset.data_dir": corners, "training.images": 1000})
    metrics = cfinet_jax.train(config, str(tmp_path))
    assert metrics["AP50"] >= 0.95
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    results = json.loads((tmp_path / "detections.json").read_text())
    assert results and results[0].keys() == {"image_id", "category_id", "bbox", "score"}
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {"loss", "loss/roi/box", "roi/small_box_loss_share", "imitation/quality", "memory/fill", "memory/turnover"}
    assert logged <= records[0].keys() and records[-1]["kind"] == "eval"
    assert list((tmp_path / "overlays").iterdir()) and (tmp_path / "learning_curve.png").stat().st_size > 1000
    assert (tmp_path / "report.html").stat().st_size > 10_000

    capsys.readouterr()
    assert evaluate(config, epath.Path(tmp_path)) == metrics  # from its checkpoint
    assert "boxes" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_run_averages_and_how_it_looks_is_what_is_evaluated_and_predicted_with(tiny_scenes, tmp_path):
    config = tiny.tiny_config()
    config.dataset.data_dir, config.training.average_decay = str(tiny_scenes), 0.9
    config.optimizer.schedule, config.optimizer.warmup_images = "cosine", 8
    config.prediction.views = ("plain", "flip", "vertical:1.5")
    metrics = cfinet_jax.train(config, str(tmp_path))
    found = (tmp_path / "detections.json").read_text()
    assert evaluate(config, epath.Path(tmp_path)) == metrics
    assert (tmp_path / "detections.json").read_text() == found

    model = cfinet_jax.load(str(tmp_path))
    assert model.config.prediction.views == config.prediction.views
    picture = np.zeros((*config.dataset.stored_size, 3), np.uint8)
    several, one = (cfinet_jax.load(str(tmp_path), views=views).predict(picture)[0] for views in (None, ("plain",)))
    assert several.boxes.shape[1] == one.boxes.shape[1] == 4
    with pytest.raises(UserError, match="prediction.views has 'mirror'"):
        cfinet_jax.load(str(tmp_path), views=("mirror",))
