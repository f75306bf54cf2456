"""Detecting over a split: what windows find is merged, picture by picture."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from cfinet_jax import mesh
from cfinet_jax.dataset import open_dataset
from cfinet_jax.evaluate import detect_split, score_split
from configs import scenes
from data.scenes.render import render_scene
from data.scenes.scenes_dataset_builder import Builder


def find_the_truth(_, batch) -> tuple[SimpleNamespace, SimpleNamespace]:
    """A detector that knows: every object of a window, the larger the better; its proposals are the same."""
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
        # What else is found are parts of objects, at the borders of windows.
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
