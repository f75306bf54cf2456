"""A trained detector is used as the model that it was trained as."""

import json

import pytest
from etils import epath

from cfinet_jax.config_checks import check_values
from cfinet_jax.errors import UserError
from cfinet_jax.restore import check_same_model, recorded_config, with_tuples
from cfinet_jax.runtime.settings import ADDED, recorded, write_settings
from tests import tiny


@pytest.fixture
def workdir(tmp_path) -> epath.Path:
    write_settings(tiny.tiny_config(), epath.Path(tmp_path), ["car"], [1])
    return epath.Path(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("detector.backbone.stride_style", "caffe"),
        ("detector.imitation.reweight", True),
        ("detector.proposal_network.coarse_to_fine.anchor_scale", 8.0),
        ("detector.roi_head.stds", (1.0, 1.0, 1.0, 1.0)),
        ("dataset.mean", (0.0, 0.0, 0.0)),
    ],
)
def test_another_model_of_the_same_shapes_is_refused(workdir, key, value):
    config = tiny.tiny_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"trained with {key} = .* use the config that it was trained with"):
        check_same_model(workdir, config)


def test_settings_of_inference_may_change(workdir):
    config = tiny.tiny_config()
    config.detector.precision, config.detector.roi_head.max_detections = "bfloat16", 7
    config.detector.proposal_network.coarse_to_fine.proposals.test.candidates = 9
    config.training.images = 3
    check_same_model(workdir, config)


def test_a_workdir_of_earlier_names_of_keys_or_without_newer_ones_is_read(workdir):
    path = workdir / "settings.json"
    facts = json.loads(path.read_text())
    section = facts["config"]["detector"]["proposal_network"]["coarse_to_fine"]
    section["assign"], section["assign_modes"] = section.pop("coarse_threshold"), section.pop("coarse_thresholds")
    tiny.forget(facts["config"], ADDED)
    path.write_text(json.dumps(facts))
    check_same_model(workdir, tiny.tiny_config())
    config = recorded_config(recorded(workdir))
    assert config.to_dict() == tiny.tiny_config().to_dict()
    check_values(config)
    write_settings(tiny.tiny_config(), workdir, ["car"], [1])
    with pytest.raises(UserError, match="coarse_threshold = 'paper', but this config has 'fixed'"):
        changed = tiny.tiny_config()
        changed.detector.proposal_network.coarse_to_fine.coarse_threshold = "fixed"
        check_same_model(workdir, changed)


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_workdir_without_settings_is_refused(workdir, content):
    (workdir / "settings.json").unlink()
    if content is not None:
        (workdir / "settings.json").write_text(content)
    with pytest.raises(UserError, match="settings.json is missing or damaged"):
        check_same_model(workdir, tiny.tiny_config())


def test_settings_survive_json():
    settings = {"a": (1, (2, 3)), "b": {"c": ("x",), "d": None}}
    assert with_tuples(json.loads(json.dumps(settings))) == settings


def test_another_scale_is_printed(workdir, capsys):
    config = tiny.tiny_config()
    config.dataset.image_size = (96, 96)
    check_same_model(workdir, config)
    assert "dataset.image_size = [64, 64]; using [96, 96] now" in capsys.readouterr().out
