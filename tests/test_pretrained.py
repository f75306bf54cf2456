"""Published weights fit the backbone exactly or are refused; only the order and scale of the input change."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.errors import UserError
from cfinet_jax.models.resnet import ResNet
from cfinet_jax.pretrained import load_backbone, published_name
from configs import sodad

MEAN, STD = sodad.get_config().dataset.mean, sodad.get_config().dataset.std
KEYS = {"stride_style": "caffe", "frozen_stages": 0, "last_norm_scale": 1.0}


@pytest.fixture(scope="module")
def backbone() -> ResNet:
    return ResNet(depth=50, width=2, **KEYS)


@pytest.fixture(scope="module")
def variables(backbone) -> dict:
    """The variables of a detector: the backbone and something else."""
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    return {
        "params": {"backbone": zeros["params"], "neck": {"kernel": jnp.ones(3)}},
        "batch_stats": {"backbone": zeros["batch_stats"]},
    }


@pytest.fixture
def published(variables, rng) -> dict[str, np.ndarray]:
    """Weights under the names of the file, all different."""
    trees = (variables[kind]["backbone"] for kind in ("params", "batch_stats"))
    leaves = [leaf for tree in trees for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return {published_name(path): rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves}


def load(folder: Path, arrays: dict, variables: dict, style: str = "caffe") -> dict:
    np.savez(folder / "weights.npz", **arrays)
    return load_backbone(str(folder / "weights.npz"), variables, style, STD)


def test_every_array_finds_its_place(tmp_path, published, variables):
    loaded = load(tmp_path, published, variables)
    block = loaded["params"]["backbone"]["layer2_0"]
    np.testing.assert_array_equal(block["conv2"]["kernel"], published["layer2.0/conv2/kernel"])
    np.testing.assert_array_equal(block["downsample_bn"]["scale"], published["layer2.0/downsample_bn/scale"])
    means = loaded["batch_stats"]["backbone"]["layer4_2"]["bn3"]["mean"]
    np.testing.assert_array_equal(means, published["layer4.2/bn3/mean"])
    assert loaded["params"]["neck"] is variables["params"]["neck"]
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)


def test_the_first_kernel_reads_rgb_as_the_published_one_read_bgr(tmp_path, published, variables, rng):
    kernel = load(tmp_path, published, variables)["params"]["backbone"]["conv1"]["kernel"]
    picture = rng.uniform(0, 255, (1, 32, 32, 3))  # R G B

    def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel)
        return np.asarray(
            jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )

    ours = convolve((picture - MEAN) / STD, kernel)
    caffe = convolve((picture - MEAN)[..., ::-1], published["conv1/kernel"])
    np.testing.assert_allclose(ours, caffe, rtol=1e-4, atol=1e-4 * np.abs(caffe).max())
    # Keras subtracts (103.939, 116.779, 123.68): a constant per filter apart.
    keras = convolve(picture[..., ::-1] - (103.939, 116.779, 123.68), published["conv1/kernel"])
    difference = (np.asarray(MEAN[::-1]) - (103.939, 116.779, 123.68)) @ published["conv1/kernel"].sum((0, 1))
    np.testing.assert_allclose(keras - ours, np.broadcast_to(difference, ours.shape), atol=1e-4 * np.abs(caffe).max())


def test_mismatches_are_listed(tmp_path, published, variables):
    del published["layer1.0/bn1/var"], published["conv1/kernel"]
    published |= {"fc/kernel": np.zeros(3), "layer3.1/conv1/kernel": np.zeros((1, 1, 2, 2))}
    with pytest.raises(UserError) as error:
        load(tmp_path, published, variables)
    message = str(error.value)
    for part in (
        "weights.npz does not fit the backbone",
        "missing conv1/kernel; missing layer1.0/bn1/var",
        "unexpected fc/kernel",
        "layer3.1/conv1/kernel is (1, 1, 2, 2), not (1, 1, 32, 8)",
    ):
        assert part in message
    assert "\n" not in message


def test_a_long_list_is_cut(tmp_path, published, variables):
    with pytest.raises(UserError, match=f"and {len(published) - 5} more"):
        load(tmp_path, {}, variables)


def test_another_depth_is_refused(tmp_path, published, variables):
    deeper = published | {f"layer3.6/conv{n}/kernel": np.zeros((1, 1, 1, 1)) for n in (1, 2, 3)}
    with pytest.raises(UserError, match="unexpected layer3.6/conv1/kernel"):
        load(tmp_path, deeper, variables)


def test_the_other_stride_style_is_refused(tmp_path, published, variables):
    with pytest.raises(UserError, match="--config.detector.backbone.stride_style=caffe"):
        load(tmp_path, published, variables, "pytorch")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short", None])
def test_what_is_no_archive_is_refused(tmp_path, variables, content):
    path = tmp_path / "weights.npz"
    if content is None:
        np.save(tmp_path / "weights.npy", np.zeros(3))
        path = tmp_path / "weights.npy"
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="is not an .npz of arrays"):
        load_backbone(str(path), variables, "caffe", STD)


def test_a_missing_file_is_named(variables):
    with pytest.raises(UserError, match="No pretrained weights at /nowhere.npz"):
        load_backbone("/nowhere.npz", variables, "caffe", STD)
