"""The schedule and SGD against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cfinet_jax.config_checks import check_values
from cfinet_jax.errors import UserError
from cfinet_jax.optimizer import learning_rate, make_optimizer
from configs import sodad

STEPS = 5


def settings(batch_size: int = 4, **changes) -> ConfigDict:
    """Return the paper's config with another batch size and changes to the section `optimizer`."""
    config = sodad.get_config()
    config.dataset.batch_size = batch_size
    config.optimizer.update(changes)
    return config


def tree() -> dict:
    """Return parameters of four parts."""
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    return {
        "backbone": {"conv1": {"kernel": values[0]}, "conv10": {"kernel": values[1]}},
        "imitation": {"encode1": {"bias": values[2]}},
        "roi_head": {"bias": values[3]},
    }


def gradients(step: int) -> dict:
    rng = np.random.default_rng(step + 1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree())


def updated(config: ConfigDict, frozen: tuple[str, ...] = ()) -> dict:
    """Return the parameters after `STEPS` steps."""
    sgd, params = make_optimizer(config, frozen), jax.tree.map(jnp.asarray, tree())
    state = sgd.init(params)
    for step in range(STEPS):
        updates, state = sgd.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params)


def plain_sgd(leaf, rates, factor: float = 1.0, scales=None) -> np.ndarray:
    """Compute v = .9 v + (g + wd p), p -= rate v, as PyTorch does; `leaf` picks a parameter from a tree."""
    p, v = leaf(tree()).astype(np.float64), 0.0
    for step in range(STEPS):
        g = leaf(gradients(step)) * (1.0 if scales is None else scales[step])
        v = 0.9 * v + g + 1e-4 * p
        p = p - factor * rates[step] * v
    return p


def plain_rate(iteration: float, batch_size: int) -> float:
    """Compute the rate from epochs of 58,023 images and a warm-up of 500 iterations of four."""
    rate = 0.01 * batch_size / 4
    images = iteration * batch_size
    rate *= 0.1 ** sum(images >= epoch * 58_023 for epoch in (8, 11))
    if images < 2000:
        rate *= 1 - (1 - images / 2000) * (1 - 0.001)
    return rate


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_rate_warms_up_and_drops_by_images(batch_size):
    images = np.array([0, 64, 1024, 1984, 2048, 6400, 8 * 58_023 - 64, 8 * 58_023 + 64, 11 * 58_023 + 64, 12 * 58_023])
    rate = learning_rate(settings(batch_size))
    for iteration in images // batch_size:
        np.testing.assert_allclose(rate(iteration), plain_rate(iteration, batch_size), rtol=1e-4)


def test_the_rate_drops_exactly_at_its_image():
    rate = learning_rate(settings(decay_images=(40,), warmup_factor=1.0))
    np.testing.assert_allclose([rate(9), rate(10)], [0.01, 0.001], rtol=1e-6)


def plain_cosine(images: float, base: float, warmup: int, total: int) -> float:
    """Compute the rate after so many images: up a line from 0.001, then down half a cosine to a hundredth."""
    if images < warmup:
        return base * (0.001 + 0.999 * images / warmup)
    share = min((images - warmup) / (total - warmup), 1.0)
    return base * (0.01 + 0.99 * (1 + np.cos(np.pi * share)) / 2)


@pytest.mark.parametrize("warmup", [0, 96])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_cosine_falls_by_images_to_its_last_factor(batch_size, warmup):
    config = settings(batch_size, schedule="cosine", warmup_images=warmup)
    config.training.images = 960
    rate, base = learning_rate(config), 0.01 * batch_size / 4
    for step in range(0, 1100 // batch_size):  # beyond the end, too
        np.testing.assert_allclose(rate(step), plain_cosine(step * batch_size, base, warmup, 960), rtol=1e-4)
    np.testing.assert_allclose(rate(960 // batch_size), base / 100, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": "linear"}, "optimizer.schedule is 'linear': choose steps or cosine."),
        ({"schedule": "cosine", "warmup_images": 12 * 58_023}, "warm-up .*lower optimizer.warmup_images"),
        ({"schedule": "cosine", "final_factor": 1.5}, "optimizer.final_factor is 1.5: make it a number from 0 to 1."),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        check_values(settings(**changes))


def test_momentum_and_decay_are_those_of_pytorch():
    params = updated(settings())
    rates = [plain_rate(step, 4) for step in range(STEPS)]
    for part, factor in (("roi_head/bias", 1.0), ("imitation/encode1/bias", 0.05), ("backbone/conv1/kernel", 1.0)):

        def leaf(of: dict, part: str = part) -> np.ndarray:
            for key in part.split("/"):
                of = of[key]
            return of

        np.testing.assert_allclose(leaf(params), plain_sgd(leaf, rates, factor), rtol=1e-6, err_msg=part)
        assert np.any(leaf(params) != leaf(tree())), part


def test_frozen_parts_neither_move_nor_decay():
    params = updated(settings(weight_decay=0.5), frozen=("backbone/conv1/",))
    np.testing.assert_array_equal(params["backbone"]["conv1"]["kernel"], tree()["backbone"]["conv1"]["kernel"])
    moved = params["backbone"]["conv10"]["kernel"] != tree()["backbone"]["conv10"]["kernel"]
    assert moved.all()  # only its name starts like the frozen one


def test_clipping_scales_the_whole_gradient():
    config = settings(clip_norm=0.5, warmup_factor=1.0)
    norms = [np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(gradients(step)))) for step in range(STEPS)]
    assert min(norms) > 0.5
    expected = plain_sgd(lambda of: of["roi_head"]["bias"], [0.01] * STEPS, scales=[0.5 / norm for norm in norms])
    np.testing.assert_allclose(updated(config)["roi_head"]["bias"], expected, rtol=1e-6)
