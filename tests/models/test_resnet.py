"""The backbone: shapes, published sizes, a plain restatement, and what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.resnet import BasicBlock, Bottleneck, ResNet, frozen_parts
from tests import plain


def resnet(depth: int = 18, width: int = 2, style: str = "pytorch", frozen: int = -1, scale: float = 1.0) -> ResNet:
    return ResNet(depth, width, style, frozen, scale)


def random_like(tree, rng: np.random.Generator):
    """Parameters or statistics with nothing at its default."""
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.2, 1, x.shape) * rng.choice([-1, 1], x.shape)), tree)


@pytest.mark.parametrize(
    ("depth", "expansion", "parameters"),
    [(18, 1, 11_176_512), (34, 1, 21_284_672), (50, 4, 23_508_032), (101, 4, 42_500_160)],
)
def test_maps_and_parameters_of_every_depth(depth, expansion, parameters):
    model, images = resnet(depth, 64), jnp.zeros((1, 64, 96, 3))
    maps, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))
    assert [x.shape for x in maps] == [(1, 64 // s, 96 // s, 16 * expansion * s) for s in (4, 8, 16, 32)]
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters


def norm(x, variables, name):
    """Batch norm with stored statistics."""
    params, stats = variables["params"][name], variables["batch_stats"][name]
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def kernel(variables, name):
    return variables["params"][name]["kernel"]


def inside(variables, name):
    return {kind: of[name] for kind, of in variables.items()}


def basic_block_loop(x, variables, stride):
    y = np.maximum(norm(plain.convolve(x, kernel(variables, "conv1"), stride), variables, "bn1"), 0)
    y = norm(plain.convolve(y, kernel(variables, "conv2")), variables, "bn2")
    if "downsample_conv" in variables["params"]:
        x = norm(plain.convolve(x, kernel(variables, "downsample_conv"), stride), variables, "downsample_bn")
    return np.maximum(x + y, 0)


def bottleneck_loop(x, variables, strides):
    y = np.maximum(norm(plain.convolve(x, kernel(variables, "conv1"), strides[0]), variables, "bn1"), 0)
    y = np.maximum(norm(plain.convolve(y, kernel(variables, "conv2"), strides[1]), variables, "bn2"), 0)
    y = norm(plain.convolve(y, kernel(variables, "conv3")), variables, "bn3")
    x = norm(plain.convolve(x, kernel(variables, "downsample_conv"), max(strides)), variables, "downsample_bn")
    return np.maximum(x + y, 0)


def positive_variance(variables):
    return variables | {"batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}


def test_resnet18_equals_the_loop(rng):
    model, images = resnet(), jnp.asarray(rng.normal(size=(1, 32, 64, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    variables = positive_variance(random_like(shapes, rng))
    variables["params"] = jax.tree.map(lambda x: x * 0.5, variables["params"])
    ours = jax.jit(model.apply)(variables, images)
    numbers = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    x = np.maximum(norm(plain.convolve(np.asarray(images), kernel(numbers, "conv1"), 2), numbers, "bn1"), 0)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    shifted = [padded[:, i : i + x.shape[1] : 2, j : j + x.shape[2] : 2] for i in range(3) for j in range(3)]
    x = np.max(shifted, axis=0)
    for stage in range(1, 5):
        for index in range(2):
            stride = 2 if stage > 1 and index == 0 else 1
            x = basic_block_loop(x, inside(numbers, f"layer{stage}_{index}"), stride)
        np.testing.assert_allclose(ours[stage - 1], x, rtol=1e-3, atol=1e-3 * np.abs(x).max())


@pytest.mark.parametrize(("style", "strides"), [("pytorch", (1, 2)), ("caffe", (2, 1))])
def test_bottleneck_equals_the_loop(rng, style, strides):
    block, x = Bottleneck(3, 2, style, 1.0), jnp.asarray(rng.normal(size=(1, 6, 8, 4)), jnp.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x))
    variables = positive_variance(random_like(shapes, rng))
    expected = bottleneck_loop(np.asarray(x), jax.tree.map(np.asarray, variables), strides)
    np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-4, atol=1e-3)


def test_only_caffe_style_never_looks_at_odd_cells():
    x = jnp.ones((1, 6, 6, 4))
    odd = jnp.zeros((1, 6, 6, 4)).at[:, 1::2, 1::2].set(5.0)
    for style, same in (("pytorch", False), ("caffe", True)):
        block = Bottleneck(3, 2, style, 1.0)
        variables = jax.jit(block.init)(jax.random.key(0), x)
        apply = jax.jit(block.apply)
        assert bool((apply(variables, x) == apply(variables, x + odd)).all()) == same


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
def test_only_the_last_norm_of_a_block_starts_at_the_given_scale(block, last):
    params = jax.jit(block(2, 1, "pytorch", 0.3).init)(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))["params"]
    scales = {name: float(of["scale"][0]) for name, of in params.items() if "scale" in of}
    assert scales == {name: np.float32(0.3) if name == last else 1.0 for name in scales}


@pytest.mark.parametrize("frozen", [-1, 0, 1, 2])
def test_frozen_stages_get_no_gradient_and_all_others_do(frozen):
    model, images = resnet(frozen=frozen), jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: sum(x.sum() for x in model.apply(variables | {"params": p}, images)))(params)

    moved = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        if (np.asarray(leaf) != 0).any():
            moved.add("/".join(key.key for key in path))
    stages = {"conv1": 0, "bn1": 0} | {f"layer{stage}_{block}": stage for stage in range(1, 5) for block in range(2)}
    for name, stage in stages.items():
        assert any(path.startswith(f"{name}/") for path in moved) == (stage > frozen), name
    assert not any(path.startswith(part) for part in frozen_parts(frozen) for path in moved)


def test_frozen_parts_name_stem_and_stages():
    assert frozen_parts(-1) == ()
    assert frozen_parts(0) == ("conv1/", "bn1/")
    assert frozen_parts(2) == ("conv1/", "bn1/", "layer1_", "layer2_")
