"""Weights under other people's names find their places, or one line says what does not fit."""

import re
import subprocess
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
from cfinet_jax.pretrained.names import MEAN, STD
from cfinet_jax.train_step import empty_batch
from tests import tiny
from tests.official import official_name

CLASSES = tuple(f"class {index}" for index in range(9))


def variables_of(settings, classes: int = 9) -> dict:
    """The variables of a detector, every number different."""
    detector = build_detector(settings, classes)
    rng = np.random.default_rng(0)

    def create(key):
        batch = empty_batch(1, tiny.SHAPE, 4)
        priorities = detector.draw_priorities(key, batch.index, tiny.SHAPE, 4)
        return detector.init(key, batch, detector.empty_memory(), priorities, method="losses")

    shapes = jax.eval_shape(create, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def bottlenecks(variant: str = ""):
    """The settings of `tests.tiny` with a ResNet-50 in it, as thin."""
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
    """The arrays of variables as mmdetection names and lays them out."""
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
    """What torchvision's file of the same backbone holds."""
    start = "backbone."
    arrays = {name.removeprefix(start): array for name, array in official.items() if name.startswith(start)}
    return arrays | {
        "fc.weight": np.zeros((1000, 64)),
        "fc.bias": np.zeros(1000),
        "bn1.num_batches_tracked": np.array(1),
    }


def of_keras(variables: dict) -> dict[str, np.ndarray]:
    """What Keras' file of the same backbone holds."""
    arrays = {}
    for name, leaf in pretrained.named(variables).items():
        if "/backbone/" in name:
            layer = re.sub(r"^(layer\d)_", r"\1.", name.split("/backbone/")[1])
            arrays[layer] = np.asarray(leaf)
    return arrays


def load(path, variables, **changed) -> pretrained.Loaded:
    return pretrained.load(str(path), variables, **{"stride_style": "pytorch", "classes": CLASSES} | changed)


def write(path, arrays: dict) -> str:
    """Writes arrays as the kind of file that the path names."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in arrays.items()}))
    return str(path)


def assert_same(ours, expected) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("model", ["cfinet", "faster_rcnn"])
@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_detector_of_mmdetection_comes_back(request, tmp_path, model, ending):
    expected = request.getfixturevalue(model)
    official = {f"module.{name}": array for name, array in as_official(expected).items()}
    official |= {"ema_backbone_conv1_weight": np.ones(3), "module.backbone.bn1.num_batches_tracked": np.array(1)}
    loaded = load(write(tmp_path / f"model.{ending}", official), jax.tree.map(jnp.zeros_like, expected))
    assert_same(loaded.variables, expected)
    assert not loaded.at_random
    assert "mmdetection names" in loaded.account and "roi_head: 8 arrays" in loaded.account
    assert "left out: 2 arrays (a counter of training, raw weights beside the averaged ones)" in loaded.account


@pytest.mark.parametrize("names", ["torchvision", "Keras"])
def test_a_backbone_leaves_the_rest_as_it_is(tmp_path, cfinet, names):
    zeros = jax.tree.map(jnp.zeros_like, cfinet)
    arrays = of_backbone(as_official(cfinet)) if names == "torchvision" else of_keras(cfinet)
    style = "pytorch" if names == "torchvision" else "caffe"
    loaded = load(write(tmp_path / "resnet.npz", arrays), zeros, stride_style=style)
    ours, expected = (tree["params"]["backbone"] for tree in (loaded.variables, cfinet))
    if names == "Keras":
        ours["conv1"]["kernel"] = expected["conv1"]["kernel"]  # the next test's
    assert_same(ours, expected)
    assert_same(loaded.variables["batch_stats"], cfinet["batch_stats"])
    assert_same(loaded.variables["params"]["neck"], zeros["params"]["neck"])
    assert loaded.at_random
    assert f"{names} names" in loaded.account and "neck: 16 arrays as initialised\n" in loaded.account


def test_the_first_kernel_reads_rgb_as_the_published_one_read_bgr(tmp_path, cfinet, rng):
    arrays = of_keras(cfinet)
    loaded = load(write(tmp_path / "resnet.npz", arrays), cfinet, stride_style="caffe")
    picture = rng.uniform(0, 255, (7, 7, 3))  # R G B
    ours = np.einsum("ijc,ijco->o", (picture - MEAN) / STD, loaded.variables["params"]["backbone"]["conv1"]["kernel"])
    theirs = np.einsum("ijc,ijco->o", (picture - MEAN)[:, :, ::-1], arrays["conv1/kernel"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_what_mmdetection_says_of_its_training_counts(cfinet, monkeypatch, capsys):
    base = "backbone=dict(style='pytorch')\nimg_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True)\n"
    config = base + "style='caffe'\ndict(mean=[103.53, 116.28, 123.675], std=[1.0, 2.0, 4.0], to_rgb=False)"
    meta = {"CLASSES": ("car", "bus"), "config": config}
    official = as_official(cfinet)
    monkeypatch.setattr(pretrained, "read", lambda _: pretrained.files.WeightFile(official, meta))
    with pytest.raises(
        UserError, match="holds caffe-style weights .stride in the first 1x1 convolution. and the model"
    ):
        load("model.pth", cfinet)
    loaded = load("model.pth", cfinet, stride_style="caffe")
    kernel, published = (tree["params"]["backbone"]["conv1"]["kernel"] for tree in (loaded.variables, cfinet))
    scale = np.float32(STD) / np.float32([4, 2, 1])
    np.testing.assert_allclose(kernel, published[:, :, ::-1] * scale[:, None], rtol=1e-6)
    assert "learnt other classes: its class 0 is 'car', the data set's 'class 0'." in capsys.readouterr().out
    later = {"dataset_meta": {"classes": CLASSES[::-1]}, "cfg": "dict(mean=[1, 2, 3], bgr_to_rgb=False)"}
    monkeypatch.setattr(pretrained, "read", lambda _: pretrained.files.WeightFile(official, later))
    with pytest.raises(UserError, match=r"wants dataset.mean = \(3.0, 2.0, 1.0\)"):
        load("model.pth", cfinet)
    with pytest.raises(UserError, match="has the classes in another order .its class 0 is 'class 8', the data set's"):
        load("model.pth", cfinet, mean=(3.0, 2.0, 1.0))


def test_our_own_files_come_back(tmp_path, cfinet, capsys):
    facts = {"stride_style": "caffe", "classes": ["one", "two"], "mean": [1.0, 2.0, 3.0]}
    pretrained.save(epath.Path(tmp_path / "own.safetensors"), cfinet, facts)
    zeros = jax.tree.map(jnp.zeros_like, cfinet)
    loaded = load(tmp_path / "own.safetensors", zeros, stride_style="caffe", mean=(1.0, 2.0, 3.0))
    assert_same(loaded.variables, cfinet)
    assert not loaded.at_random
    assert "learnt other classes: its class 0 is 'one', the data set's 'class 0'." in capsys.readouterr().out
    with pytest.raises(UserError, match="stride_style=caffe"):
        load(tmp_path / "own.safetensors", zeros)
    with pytest.raises(UserError, match=r"wants dataset.mean = \(1.0, 2.0, 3.0\), which is \(123.675"):
        load(tmp_path / "own.safetensors", zeros, stride_style="caffe")


def test_the_command_converts(tmp_path, cfinet):
    source, target = write(tmp_path / "model.npz", as_official(cfinet)), tmp_path / "model.safetensors"
    command = [sys.executable, "-m", "cfinet_jax.pretrained", source, f"--output={target}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backbone: 265 arrays" in done.stdout and f"Written: {target}" in done.stdout
    assert_same(load(target, jax.tree.map(jnp.zeros_like, cfinet)).variables, cfinet)
    write(tmp_path / "model.npz", as_official(cfinet) | {"mask_head.weight": np.zeros(3)})
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"cfinet_jax: {source} has names that are not known: mask_head.weight.\n"


def without(arrays: dict, *names: str) -> dict:
    return {name: array for name, array in arrays.items() if name not in names}


MISFITS = {  # what becomes of the official arrays, changes to the model, parts of the line
    "head of other classes": (
        lambda a: a | {"roi_head.bbox_head.fc_cls.bias": np.zeros(81), "roi_head.bbox_head.fc_reg.bias": np.zeros(320)},
        {},
        ["it knows 80 classes and the data set has 9", "params/roi_head/classify/bias (81,) for (10,)"],
    ),
    "another depth": (
        lambda a: a | {f"backbone.layer3.{block}.conv3.weight": np.ones(1) for block in range(6, 23)},
        {},
        ["it holds a ResNet-101 and detector.backbone.depth is 50", "17 unexpected: params/backbone/layer3_10/conv3"],
    ),
    "no backbone but a ResNet-18's": (
        lambda a: {k: v for k, v in a.items() if not re.search(r"layer.\.[2-9]|(conv|bn)3", k)},
        {},
        ["it holds a ResNet-18 and detector.backbone.depth is 50"],
    ),
    "a stem that is none": (
        lambda _: {"conv1/kernel": np.zeros(3), "odd": np.zeros(1)},
        {"stride_style": "caffe"},
        ["1 unexpected: params/backbone/odd", "1 of another shape: params/backbone/conv1/kernel (3,) for"],
    ),
    "strangers": (lambda a: a | {"mask_head.weight": np.zeros(1)}, {}, ["1 unexpected: mask_head.weight."]),
    "unknown names": (lambda _: {"encoder.weight": np.zeros(1)}, {}, ["has names that are not known (encoder.weight)"]),
    "other pictures": (lambda a: a, {"std": (1.0, 1.0, 1.0)}, ["wants dataset.std = (58.395, 57.12, 57.375)"]),
    "other mean": (lambda a: a, {"mean": (0.0, 0.0, 0.0)}, ["wants dataset.mean = (123.675, 116.28, 103.53)"]),
}  # fmt: skip


@pytest.mark.parametrize("row", MISFITS)
def test_what_does_not_fit_is_listed_in_one_line(tmp_path, cfinet, row):
    change, settings, parts = MISFITS[row]
    path = write(tmp_path / "model.npz", change(as_official(cfinet)))
    with pytest.raises(UserError) as error:
        load(path, cfinet, **settings)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_torchvision_names_on_folded_batch_norm_are_refused(tmp_path, cfinet):
    arrays = of_backbone(as_official(cfinet))
    arrays["bn1.running_mean"] = np.zeros_like(arrays["bn1.running_mean"])
    with pytest.raises(UserError, match="no statistics in its batch norm"):
        load(write(tmp_path / "resnet.npz", arrays), cfinet)


def test_caffe_style_weights_are_refused_by_a_pytorch_style_model(tmp_path, cfinet):
    path = write(tmp_path / "resnet.npz", of_keras(cfinet))
    with pytest.raises(UserError, match=r"--config.detector.backbone.stride_style=caffe"):
        load(path, cfinet)


def test_what_fits_may_be_taken_and_the_rest_is_listed(tmp_path, cfinet):
    official = without(as_official(cfinet), "neck.lateral_convs.0.conv.bias")
    official |= {"roi_head.bbox_head.fc_cls.bias": np.zeros(81), "mask_head.weight": np.zeros(1)}
    zeros = jax.tree.map(jnp.zeros_like, cfinet)
    loaded = load(write(tmp_path / "model.npz", official), zeros, partial=True)
    taken = pretrained.named(loaded.variables)
    for name, expected in pretrained.named(cfinet).items():
        left = name in ("params/neck/lateral2/bias", "params/roi_head/classify/bias")
        np.testing.assert_array_equal(taken[name], np.zeros_like(expected) if left else expected, err_msg=name)
    assert loaded.at_random
    for line in (
        "neck: 1 arrays as initialised (params/neck/lateral2/bias)",
        "roi_head: 1 arrays as initialised (params/roi_head/classify/bias)",
        "not used: mask_head.weight, params/roi_head/classify/bias",
    ):
        assert line in loaded.account
    with pytest.raises(UserError, match="has nothing that fits this model"):
        load(write(tmp_path / "model.npz", {"backbone.conv1.weight": np.zeros((1, 3, 7, 7))}), zeros, partial=True)
