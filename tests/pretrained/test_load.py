"""Weights under other projects' names fill our variables, or one line says what does not fit."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from cfinet_jax import pretrained
from cfinet_jax.errors import UserError
from cfinet_jax.models.detector import build_detector
from cfinet_jax.pretrained.__main__ import main
from cfinet_jax.pretrained.names import MEAN, STD
from cfinet_jax.pretrained.weight_files import WeightFile
from cfinet_jax.train_step import empty_batch
from tests import tiny
from tests.official import official_name

CLASSES = tuple(f"class {index}" for index in range(9))


def variables_of(settings, classes: int = 9) -> dict:
    """Create the variables of a detector, every number different."""
    detector = build_detector(settings, classes)
    rng = np.random.default_rng(0)

    def create(key):
        batch = empty_batch(1, tiny.SHAPE, 4)
        priorities = detector.draw_priorities(key, batch.index, tiny.SHAPE, 4)
        return detector.init(key, batch, detector.empty_memory(), priorities, method="losses")

    shapes = jax.eval_shape(create, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def bottlenecks(variant: str = ""):
    """The settings of `tests.tiny` with a ResNet-50 that is as thin."""
    settings = tiny.settings(variant)
    settings.backbone.update(depth=50, width=2)
    return settings


@pytest.fixture(scope="module")
def cfinet() -> dict:
    return variables_of(bottlenecks("released"))


@pytest.fixture(scope="module")
def faster_rcnn() -> dict:
    return variables_of(bottlenecks("faster_rcnn"), classes=80)


def as_official(variables: dict) -> dict[str, np.ndarray]:
    """Rename and lay out the arrays of variables as mmdetection does."""
    arrays = {}
    for name, leaf in pretrained.named(variables).items():
        official, array = official_name(name.split("/", 1)[1]), np.asarray(leaf)
        if official.endswith("shared_fcs.0.weight"):
            array = array.reshape(7, 7, -1, array.shape[-1]).transpose(3, 2, 0, 1).reshape(array.shape[::-1])
        elif array.ndim > 1:
            array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
        arrays[official] = array
    return arrays


def of_backbone(official: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The content of torchvision's file of the same backbone."""
    start = "backbone."
    arrays = {name.removeprefix(start): array for name, array in official.items() if name.startswith(start)}
    return arrays | {
        "fc.weight": np.zeros((1000, 64)),
        "fc.bias": np.zeros(1000),
        "bn1.num_batches_tracked": np.array(1),
    }


def of_keras(variables: dict) -> dict[str, np.ndarray]:
    """The content of Keras' file of the same backbone."""
    arrays = {}
    for name, leaf in pretrained.named(variables).items():
        if "/backbone/" in name:
            layer = re.sub(r"^(layer\d)_", r"\1.", name.split("/backbone/")[1])
            arrays[layer] = np.asarray(leaf)
    return arrays


def load(path, variables, **changed) -> pretrained.Loaded:
    return pretrained.load(str(path), variables, **{"stride_style": "pytorch", "classes": CLASSES} | changed)


def write(path, arrays: dict) -> str:
    """Write arrays as the kind of file that the path's name says."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in arrays.items()}))
    return str(path)


def assert_same(ours, expected) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize(("model", "ending"), [("cfinet", "npz"), ("faster_rcnn", "safetensors")])
def test_a_detector_of_mmdetection_comes_back(request, tmp_path, model, ending):
    expected = request.getfixturevalue(model)
    official = {f"module.{name}": array for name, array in as_official(expected).items()}
    official |= {"ema_backbone_conv1_weight": np.ones(3), "module.backbone.bn1.num_batches_tracked": np.array(1)}
    loaded = load(write(tmp_path / f"model.{ending}", official), jax.tree.map(jnp.zeros_like, expected))
    assert_same(loaded.variables, expected)
    assert not loaded.at_random
    assert "mmdetection names" in loaded.account and "roi_head: 8 arrays" in loaded.account
    assert "left out: 2 arrays" in loaded.account


@pytest.mark.parametrize(("names", "style"), [("torchvision", "pytorch"), ("Keras", "caffe")])
def test_a_backbone_leaves_the_rest_as_initialised(tmp_path, cfinet, rng, names, style):
    zeros = jax.tree.map(jnp.zeros_like, cfinet)
    arrays = of_backbone(as_official(cfinet)) if names == "torchvision" else of_keras(cfinet)
    loaded = load(write(tmp_path / "resnet.npz", arrays), zeros, stride_style=style)
    ours, expected = (tree["params"]["backbone"] for tree in (loaded.variables, cfinet))
    if names == "Keras":  # its first kernel reads B G R, ours the same pictures as R G B, divided by STD
        picture = rng.uniform(0, 255, (7, 7, 3))
        seen = np.einsum("ijc,ijco->o", (picture - MEAN) / STD, ours["conv1"]["kernel"])
        theirs = np.einsum("ijc,ijco->o", (picture - MEAN)[:, :, ::-1], arrays["conv1/kernel"])
        np.testing.assert_allclose(seen, theirs, rtol=1e-5)
        ours["conv1"]["kernel"] = expected["conv1"]["kernel"]
    assert_same(ours, expected)
    assert_same(loaded.variables["batch_stats"], cfinet["batch_stats"])
    assert_same(loaded.variables["params"]["neck"], zeros["params"]["neck"])
    assert loaded.at_random
    assert f"{names} names" in loaded.account and "neck: 16 arrays as initialised\n" in loaded.account


def test_metadata_of_mmdetection_are_respected(cfinet, monkeypatch, capsys):
    base = "backbone=dict(style='pytorch')\nimg_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True)\n"
    config = base + "style='caffe'\ndict(mean=[103.53, 116.28, 123.675], std=[1.0, 2.0, 4.0], to_rgb=False)"
    meta = {"CLASSES": ("car", "bus"), "config": config}
    official = as_official(cfinet)
    monkeypatch.setattr(pretrained, "read", lambda _: WeightFile(official, meta))
    with pytest.raises(UserError, match="caffe-style weights .*stride_style=caffe"):
        load("model.pth", cfinet)
    loaded = load("model.pth", cfinet, stride_style="caffe")
    kernel, published = (tree["params"]["backbone"]["conv1"]["kernel"] for tree in (loaded.variables, cfinet))
    scale = np.float32(STD) / np.float32([4, 2, 1])
    np.testing.assert_allclose(kernel, published[:, :, ::-1] * scale[:, None], rtol=1e-6)
    assert "its class 0 is 'car', the data set's 'class 0'" in capsys.readouterr().out
    later = {"dataset_meta": {"classes": CLASSES[::-1]}, "cfg": "dict(mean=[1, 2, 3], bgr_to_rgb=False)"}
    monkeypatch.setattr(pretrained, "read", lambda _: WeightFile(official, later))
    with pytest.raises(UserError, match=r"dataset.mean = \(3.0, 2.0, 1.0\)"):
        load("model.pth", cfinet)
    with pytest.raises(UserError, match="another order .*'class 8'"):
        load("model.pth", cfinet, mean=(3.0, 2.0, 1.0))


def test_our_own_files_come_back(tmp_path, cfinet, capsys):
    facts = {"stride_style": "caffe", "classes": ["one", "two"], "mean": [1.0, 2.0, 3.0]}
    pretrained.save(epath.Path(tmp_path / "own.safetensors"), cfinet, facts)
    zeros = jax.tree.map(jnp.zeros_like, cfinet)
    loaded = load(tmp_path / "own.safetensors", zeros, stride_style="caffe", mean=(1.0, 2.0, 3.0))
    assert_same(loaded.variables, cfinet)
    assert not loaded.at_random
    assert "its class 0 is 'one', the data set's 'class 0'" in capsys.readouterr().out
    with pytest.raises(UserError, match="stride_style=caffe"):
        load(tmp_path / "own.safetensors", zeros)
    with pytest.raises(UserError, match=r"dataset.mean = \(1.0, 2.0, 3.0\).*\(123.675"):
        load(tmp_path / "own.safetensors", zeros, stride_style="caffe")


def test_the_command_converts(tmp_path, cfinet, monkeypatch, capsys):
    source, target = write(tmp_path / "model.npz", as_official(cfinet)), tmp_path / "model.safetensors"
    monkeypatch.setattr(sys, "argv", ["pretrained", source, f"--output={target}"])
    assert main() == 0
    said = capsys.readouterr().out
    assert "backbone: 265 arrays" in said and f"Written: {target}" in said
    assert_same(load(target, jax.tree.map(jnp.zeros_like, cfinet)).variables, cfinet)
    write(tmp_path / "model.npz", as_official(cfinet) | {"mask_head.weight": np.zeros(3)})
    assert main() == 2
    assert f"{source} has unknown names: mask_head.weight." in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["pretrained", source, f"--output={source}"])
    assert main() == 2
    assert f"--output={source} is also read, and would be lost" in capsys.readouterr().err


MISFITS = {  # change to the official arrays, changes to the model, parts of the message
    "head of other classes": (
        lambda a: a | {"roi_head.bbox_head.fc_cls.bias": np.zeros(81), "roi_head.bbox_head.fc_reg.bias": np.zeros(320)},
        {},
        ["it knows 80 classes and the data set has 9", "params/roi_head/classify/bias (81,) for (10,)"],
    ),
    "another depth": (
        lambda a: a | {f"backbone.layer3.{block}.conv3.weight": np.ones(1) for block in range(6, 23)},
        {},
        ["a ResNet-101 and detector.backbone.depth is 50", "17 unexpected: params/backbone/layer3_10/conv3"],
    ),
    "a backbone of basic blocks": (
        lambda a: {k: v for k, v in a.items() if not re.search(r"layer.\.[2-9]|(conv|bn)3", k)},
        {},
        ["it holds a ResNet-18 and detector.backbone.depth is 50"],
    ),
    "an invalid stem": (
        lambda _: {"conv1/kernel": np.zeros(3), "odd": np.zeros(1)},
        {"stride_style": "caffe"},
        ["1 unexpected: params/backbone/odd", "1 of another shape: params/backbone/conv1/kernel (3,) for"],
    ),
    "batch norm folded into convolutions": (
        lambda a: of_backbone(a) | {"bn1.running_mean": np.zeros_like(a["backbone.bn1.running_mean"])},
        {},
        ["empty batch-norm statistics", "Give torchvision's or Keras' own file"],
    ),
    "another stride style": (
        lambda _: {"conv1/kernel": np.zeros((7, 7, 3, 2))}, {}, ["--config.detector.backbone.stride_style=caffe"]
    ),
    "an unknown part": (lambda a: a | {"mask_head.weight": np.zeros(1)}, {}, ["1 unexpected: mask_head.weight."]),
    "unknown names": (lambda _: {"encoder.weight": np.zeros(1)}, {}, ["has unknown names (encoder.weight)"]),
    "other std": (lambda a: a, {"std": (1.0, 1.0, 1.0)}, ["dataset.std = (58.395, 57.12, 57.375)"]),
    "other mean": (lambda a: a, {"mean": (0.0, 0.0, 0.0)}, ["dataset.mean = (123.675, 116.28, 103.53)"]),
}  # fmt: skip


@pytest.mark.parametrize("row", MISFITS)
def test_misfits_are_listed_in_one_line(tmp_path, cfinet, row):
    change, settings, parts = MISFITS[row]
    path = write(tmp_path / "model.npz", change(as_official(cfinet)))
    with pytest.raises(UserError) as error:
        load(path, cfinet, **settings)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("number", "style", "words"),
    [
        (np.nan, "pytorch", "NaN or infinity in params/neck/lateral2/bias"),
        (-np.inf, "pytorch", "NaN or infinity in params/neck/lateral2/bias"),
        (0.0, "foo", "unknown stride_style, 'foo'"),
    ],
)
def test_weights_that_are_not_finite_or_of_no_known_style_are_refused(tmp_path, cfinet, number, style, words):
    name = "params/neck/lateral2/bias"
    changed = pretrained.replaced(cfinet, {name: jnp.full_like(pretrained.named(cfinet)[name], number)})
    pretrained.save(epath.Path(tmp_path / "own.safetensors"), changed, {"stride_style": style})
    with pytest.raises(UserError, match=words):
        load(tmp_path / "own.safetensors", cfinet)


def test_a_partial_fit_is_taken_on_request(tmp_path, cfinet):
    official = as_official(cfinet)
    del official["neck.lateral_convs.0.conv.bias"]
    official |= {"roi_head.bbox_head.fc_cls.bias": np.zeros(81), "mask_head.weight": np.zeros(1)}
    zeros = jax.tree.map(jnp.zeros_like, cfinet)
    loaded = load(write(tmp_path / "model.npz", official), zeros, partial=True)
    taken, left = pretrained.named(loaded.variables), {"params/neck/lateral2/bias", "params/roi_head/classify/bias"}
    for name, expected in pretrained.named(cfinet).items():
        np.testing.assert_array_equal(taken[name], 0 * expected if name in left else expected, err_msg=name)
    assert loaded.at_random == left
    for line in (
        "neck: 1 arrays as initialised (params/neck/lateral2/bias)",
        "roi_head: 1 arrays as initialised (params/roi_head/classify/bias)",
        "not used: mask_head.weight, params/roi_head/classify/bias",
    ):
        assert line in loaded.account
    with pytest.raises(UserError, match="no array that fits this model"):
        load(write(tmp_path / "model.npz", {"backbone.conv1.weight": np.zeros((1, 3, 7, 7))}), zeros, partial=True)
