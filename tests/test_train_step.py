"""One update: the same on one device, on eight and in micro-batches; harmless when the loss is not finite."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax import optimizer
from cfinet_jax.input.sizes import training_preparation
from cfinet_jax.models.detector import build_detector
from cfinet_jax.ops import exemplar_memory
from cfinet_jax.runtime import mesh
from cfinet_jax.structures import Batch, Exemplars
from cfinet_jax.train_step import TrainState, create_state, exchange, move_average, train_step, with_average
from configs import sodad
from tests import tiny

IMAGES, CLASSES, DECAY = 8, 9, 0.9
CONFIG = sodad.get_config()


def shipped_batch(objects: int = tiny.OBJECTS) -> Batch:
    """Images as the host ships them, in NumPy."""
    batch = jax.tree.map(np.asarray, tiny.batch(objects=objects, images=IMAGES))
    pixels = np.random.default_rng(1).integers(0, 256, (IMAGES, *tiny.SHAPE, 3)).astype(np.uint8)
    return dataclasses.replace(batch, images=pixels)


@pytest.fixture(scope="module")
def parts():
    """Detector, optimizer and a state with an average whose memory is half full; every object is an exemplar."""
    settings = tiny.settings()
    settings.imitation.update(high_quality=0.0, min_predictions=0)
    detector = build_detector(settings, CLASSES)
    CONFIG.dataset.batch_size = IMAGES
    sgd = optimizer.make_optimizer(CONFIG, ("backbone/conv1/", "backbone/bn1/", "backbone/layer1_"))
    state = create_state(jax.random.key(0), detector, sgd, tiny.SHAPE, tiny.OBJECTS)
    features = jax.random.normal(jax.random.key(1), (2 * CLASSES, *state.memory.features.shape[2:]))
    labels = jnp.arange(2 * CLASSES, dtype=jnp.int32) % CLASSES
    half = Exemplars(features, labels, jnp.ones(2 * CLASSES), jnp.ones(2 * CLASSES, bool))
    memory = exemplar_memory.push(state.memory, half)
    return detector, sgd, jax.device_get(with_average(dataclasses.replace(state, memory=memory), True))


def make_step(parts, devices: int, micro_batches: int):
    """The jitted step over the first devices, and a function that places its arguments there."""
    detector, sgd, _ = parts
    prepare = training_preparation(tiny.augmented())
    step = partial(train_step, detector=detector, optimizer=sgd, prepare=prepare, average_decay=DECAY)
    step = partial(step, micro_batches=micro_batches)
    over = mesh.make_mesh(jax.devices()[:devices])
    specs = (mesh.EVERYWHERE, mesh.BY_IMAGE, mesh.EVERYWHERE)
    jitted = mesh.parallel(step, over, specs, mesh.EVERYWHERE)

    def run(state, batch):
        placed = mesh.replicate(state, over), mesh.place_batch(batch, over), mesh.replicate(jax.random.key(2), over)
        return jax.device_get(jitted(*placed))

    return run


@pytest.fixture(scope="module")
def one_device(parts):
    return make_step(parts, devices=1, micro_batches=1)


@pytest.mark.parametrize(("devices", "micro_batches"), [(8, 1), (1, 2)])
def test_mesh_and_micro_batches_change_nothing(parts, one_device, devices, micro_batches):
    state, metrics = one_device(parts[2], shipped_batch())
    same_state, same_metrics = make_step(parts, devices, micro_batches)(parts[2], shipped_batch())
    assert metrics["imitation/exemplars_offered"] > 0 and metrics["loss/imitation/contrast"] > 0
    assert metrics["features_gradient/roi_head"] > 0 and metrics["features_gradient/imitation"] > 0
    assert metrics.keys() == same_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(same_metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    learnt = [
        jax.tree_util.tree_leaves_with_path((each.params, each.average, each.memory)) for each in (state, same_state)
    ]
    for (path, leaf), (_, other) in zip(*learnt, strict=True):
        np.testing.assert_allclose(other, leaf, rtol=1e-5, atol=1e-5 * np.abs(leaf).max(), err_msg=str(path))


def test_a_step_moves_what_it_should(parts, one_device):
    before, (after, metrics) = parts[2], one_device(parts[2], shipped_batch())
    assert after.step == before.step + 1 and metrics["finite"]
    np.testing.assert_array_equal(
        after.params["backbone"]["conv1"]["kernel"], before.params["backbone"]["conv1"]["kernel"]
    )
    for part in ("backbone", "neck", "proposal_network", "roi_head", "imitation"):
        moved = jax.tree.map(lambda new, old: np.any(new != old), after.params[part], before.params[part])
        assert any(jax.tree.leaves(moved)), part
    kept = min(DECAY, 1 / 10) ** IMAGES  # before any image has been seen
    expected = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, before.params, after.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.average, expected)
    assert after.memory.size.sum() > before.memory.size.sum()
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, before.batch_stats)


def averages(params: np.ndarray, batch_size: int, decay: float) -> np.ndarray:
    """Return the average after steps with these parameters `[steps, n]`."""
    state = with_average(TrainState(jnp.array(0), jnp.asarray(params[0]), {}, (), None), True)
    for step, each in enumerate(params):
        now = dataclasses.replace(state, step=jnp.array(step), params=jnp.asarray(each))
        state = move_average(now, batch_size, decay)
    return np.asarray(state.average)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_average_is_that_of_a_loop_over_images(batch_size, rng):
    decay, params = 0.9, rng.normal(size=(50, 5)).astype(np.float32)
    params[:, 0] = 0.1  # is frozen
    average, expected = averages(params, batch_size, decay), params[0].astype(np.float64)
    for step, each in enumerate(params):
        seen = step * batch_size
        for _ in range(batch_size):
            left = min(decay, (1 + seen) / (10 + seen))
            expected = left * expected + (1 - left) * each
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
    assert average[0] == params[0, 0]


def test_the_average_reaches_as_far_back_whatever_the_batch_size():
    """Parameters that grow with the images seen are averaged to nearly the same."""
    line = np.arange(4000, dtype=np.float32)[:, None]
    alone, eight = averages(line, 1, 0.99), averages(line[7::8], 8, 0.99)
    np.testing.assert_allclose(alone, 3999 - 0.99 / 0.01, rtol=1e-3)
    np.testing.assert_allclose(eight, alone, atol=4)  # half a step


def test_exemplars_enter_the_memory_in_the_order_of_the_batch(parts, one_device):
    batch = shipped_batch()
    after, metrics = one_device(parts[2], batch)
    offered = metrics["imitation/exemplars_offered"] * IMAGES
    grown = after.memory.cursor.astype(int) - parts[2].memory.cursor
    assert metrics["memory/exchange_mib"] == CLASSES * 16 * 7 * 7 * 16 * 4 / 2**20
    assert offered == (grown % after.memory.features.shape[1]).sum() or offered >= after.memory.features.shape[1]


def test_a_loss_that_is_not_finite_changes_only_the_step_number(parts, one_device):
    broken = jax.tree.map(np.copy, parts[2])
    broken.params["roi_head"]["classify"]["bias"][:] = np.nan
    after, metrics = one_device(broken, shipped_batch())
    assert not metrics["finite"] and after.step == broken.step + 1
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, step=broken.step), broken)


def test_images_without_objects_train(parts, one_device):
    after, metrics = one_device(parts[2], shipped_batch(objects=0))
    assert metrics["finite"] and metrics["loss/roi/box"] == 0 and metrics["loss/imitation/contrast"] == 0
    jax.tree.map(np.testing.assert_array_equal, after.memory, parts[2].memory)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_the_best_of_all_devices_are_exchanged(devices, most, rng):
    """Whatever the devices and the order of the images on them; features tell who is who."""
    images, each, classes = 16, 5, 3
    features = rng.normal(size=(images, each, 1, 1, 2)).astype(np.float32)
    labels = rng.integers(0, classes, (images, each)).astype(np.int32)
    quality = rng.integers(0, 4, (images, each)).astype(np.float32)  # with ties
    valid = rng.random((images, each)) < 0.6
    index = rng.permutation(images).astype(np.int32)

    over = mesh.make_mesh(jax.devices()[:devices])
    specs = (mesh.BY_IMAGE, mesh.BY_IMAGE)
    exchanged = mesh.parallel(partial(exchange, classes=classes, most=most), over, specs, mesh.EVERYWHERE)
    offers = jax.tree.map(lambda x: x[index], Exemplars(features, labels, quality, valid))
    got = jax.device_get(exchanged(*mesh.place_batch((offers, index), over)))

    assert got.features.shape == (classes * min(most, images * each), 1, 1, 2)
    for label in range(classes):
        offered = [at for at in np.ndindex(images, each) if valid[at] and labels[at] == label]
        best = sorted(sorted(offered, key=lambda at: -quality[at])[:most])
        kept = got.valid & (got.labels == label)
        np.testing.assert_array_equal(got.features[kept], [features[at] for at in best])
        np.testing.assert_array_equal(got.quality[kept], [quality[at] for at in best])
