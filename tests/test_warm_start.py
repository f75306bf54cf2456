"""A run starts from another one: from every array that fits, and of its average if it has one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cfinet_jax import checkpoint, pretrained
from cfinet_jax.errors import UserError
from cfinet_jax.models.detector import build_detector
from cfinet_jax.restore import load_published, state_shapes
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.settings import write_settings
from cfinet_jax.train_step import TrainState
from tests import tiny

CLASSES = ("car", "bus", "van")
OF_CLASSES = {f"params/roi_head/{name}/{kind}" for name in ("classify", "regress") for kind in ("kernel", "bias")}


def numbers(shapes: TrainState, seed: int) -> TrainState:
    """Return a state of these shapes in which no two arrays are alike."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def shapes_of(config, classes: int = 3) -> TrainState:
    return state_shapes(config, build_detector(config.detector, classes), mesh.make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[str, TrainState]:
    """The workdir of a run with an average, and its last state."""
    workdir, config = epath.Path(tmp_path_factory.mktemp("source")), tiny.tiny_config()
    config.training.average_decay = 0.9
    state = dataclasses.replace(numbers(shapes_of(config), 0), step=jnp.array(3))
    write_settings(config, workdir, CLASSES, [1, 2, 3])
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        checkpoint.save(checkpoints, state, 0)
    return str(workdir), state


def load(config, source: str, classes=CLASSES) -> tuple[dict, dict, pretrained.Loaded]:
    """Return the variables at random, those after loading, and the account."""
    config.training.pretrained = source
    before = numbers(shapes_of(config, len(classes)), 1).variables
    loaded = load_published(config, before, classes)
    return pretrained.named(before), pretrained.named(loaded.variables), loaded


def check(before: dict, after: dict, loaded: pretrained.Loaded, run: TrainState) -> None:
    """Check that what is not at random is the run's average, and the rest as it was."""
    learnt = pretrained.named(run.evaluated)
    for name, array in after.items():
        np.testing.assert_array_equal(array, (before if name in loaded.at_random else learnt)[name], err_msg=name)


def test_everything_is_taken_from_the_average_of_a_run_of_the_same_model(source):
    before, after, loaded = load(tiny.tiny_config(), source[0])
    assert not loaded.at_random and "backbone: " in loaded.account
    check(before, after, loaded, source[1])


@pytest.mark.parametrize("classes", [("car", "van", "bus"), ("a", "b", "c"), ("car", "bus")])
def test_the_rows_of_other_classes_stay_at_random(source, classes):
    before, after, loaded = load(tiny.tiny_config(), source[0], classes)
    assert loaded.at_random == OF_CLASSES
    assert "left out: 4 arrays (rows of other classes)" in loaded.account
    check(before, after, loaded, source[1])


def test_another_model_takes_what_fits(source):
    before, after, loaded = load(tiny.tiny_config("faster_rcnn"), source[0])
    parts = {name.split("/")[1] for name in loaded.at_random}
    assert "proposal_network" in parts and not parts & {"backbone", "roi_head"}
    assert "not used: params/imitation/" in loaded.account
    check(before, after, loaded, source[1])


def test_parts_of_a_run_can_be_chosen(source):
    config = tiny.tiny_config()
    config.training.pretrained_parts = ("backbone", "neck")
    before, after, loaded = load(config, source[0])
    assert {name.split("/")[1] for name in after.keys() - loaded.at_random} == {"backbone", "neck"}
    assert not any(name.split("/")[1] in ("backbone", "neck") for name in loaded.at_random)
    check(before, after, loaded, source[1])


def test_a_run_on_other_pictures_or_strides_is_refused(source):
    for key, value in (("dataset.mean", (0.0, 0.0, 0.0)), ("detector.backbone.stride_style", "caffe")):
        config = tiny.tiny_config()
        config.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=f"set --config.{key}="):
            load(config, source[0])


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    config = tiny.tiny_config()
    config.training.pretrained = str(tmp_path)
    write_settings(config, epath.Path(tmp_path), CLASSES, [1, 2, 3])  # of the very run that looks for weights
    with pytest.raises(UserError, match="is a folder without a checkpoint: give the workdir of a trained run"):
        load(config, str(tmp_path))
