"""Reading batches: shuffling, sharding, resuming, padding, windows and errors."""

import itertools

import cv2
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input import batches
from cfinet_jax.input.batches import eval_batches, mixed_order, train_batches, views, windows_of
from cfinet_jax.input.dataset import Prepared, open_dataset
from cfinet_jax.input.windows import boxes_in_window, fill, training_windows, window_origins
from cfinet_jax.preparation.scenes.render import SIZE, render_scene
from cfinet_jax.preparation.scenes.scenes_builder import Builder
from cfinet_jax.preparation.scenes.templates import CLASSES
from tests import prepared as prepared_data

IMAGES = 11


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> ConfigDict:
    folder = tmp_path_factory.mktemp("prepared")
    Builder(counts={"train": IMAGES}, data_dir=folder).download_and_prepare(
        file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    return ConfigDict({
        **prepared_data.settings("scenes", folder), "stored_size": (336, 352), "window_overlap": None,
        "paint_regions": False, "mixed_pictures": 4, "image_size": (640, 512), "max_objects": 20, "read_threads": 2,
    })  # fmt: skip


@pytest.fixture(scope="module")
def prepared(settings) -> Prepared:
    return open_dataset(settings, "train")


def training(prepared: Prepared, settings: ConfigDict, *arguments):
    return train_batches(prepared, windows_of(prepared, settings, training=True), settings, *arguments)


def evaluation(prepared: Prepared, settings: ConfigDict, *arguments):
    return eval_batches(prepared, windows_of(prepared, settings, training=False), settings, *arguments)


def ids(batches, count: int) -> np.ndarray:
    return np.concatenate([batch.image_ids for batch in itertools.islice(batches, count)])


def record(picture: np.ndarray, boxes: list, ignore: list) -> dict:
    """A record as the data source yields it."""
    objects = {
        "bbox": np.array(boxes, np.float32).reshape(-1, 4),
        "label": np.ones(len(boxes), int),
        "ignore": np.array(ignore, bool),
    }
    encoded = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    return {"image": encoded, "path": b"", "image_id": 5, "file_name": b"own.png", "height": picture.shape[0],
            "width": picture.shape[1], "objects": objects}  # fmt: skip


def alone(entry: dict) -> Prepared:
    return Prepared(source=[entry], classes=CLASSES, category_ids=tuple(range(1, 7)), account={})


def test_a_batch_holds_the_scenes_that_were_rendered(settings, prepared):
    batch = next(evaluation(prepared, settings, 4))
    assert len(prepared) == IMAGES and prepared.classes == CLASSES and prepared.category_ids == (1, 2, 3, 4, 5, 6)
    assert batch.images.shape == (4, 336, 352, 3) and batch.images.dtype == np.uint8
    assert batch.image_ids.dtype == np.int32 and batch.scales.dtype == batch.sizes.dtype == np.float32
    for row, image_id in enumerate(batch.image_ids):
        scene = render_scene("train", int(image_id) - 1)
        picture = batch.images[row, :SIZE, :SIZE]
        assert np.mean(np.abs(picture.astype(float) - scene.image)) < 4  # JPEG
        np.testing.assert_array_equal(batch.images[row, SIZE:, :SIZE], np.tile(picture[-1:], (16, 1, 1)))
        np.testing.assert_array_equal(batch.images[row, :SIZE, SIZE:], np.tile(picture[:, -1:], (1, 32, 1)))
        truth = jax.tree.map(lambda leaf, row=row: leaf[row], batch.ground_truth)
        np.testing.assert_array_equal(truth.boxes[truth.is_object], scene.boxes[~scene.ignore])
        np.testing.assert_array_equal(truth.labels[truth.is_object], scene.labels[~scene.ignore])
        np.testing.assert_array_equal(truth.boxes[truth.is_region], scene.boxes[scene.ignore])
    np.testing.assert_array_equal(batch.sizes, [[SIZE, SIZE]] * 4)
    np.testing.assert_allclose(batch.scales, 512 / SIZE)
    np.testing.assert_array_equal(batch.index, range(4))


def test_epochs_are_shuffled_each_in_its_own_way(settings, prepared):
    epochs = ids(training(prepared, settings, 0, IMAGES), 2).reshape(2, IMAGES)
    for epoch in epochs:
        assert set(epoch) == set(range(1, IMAGES + 1))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(ids(training(prepared, settings, 0, IMAGES), 2), epochs.ravel())
    assert not np.array_equal(ids(training(prepared, settings, 1, IMAGES), 2), epochs.ravel())


def test_a_batch_must_be_divisible(settings, prepared):
    with pytest.raises(UserError, match="multiple"):
        training(prepared, settings, 0, 4, 0, 3)


def test_evaluation_sees_every_image_once(settings, prepared):
    batches = list(evaluation(prepared, settings, 4))
    valid = np.concatenate([batch.valid for batch in batches])
    seen = np.concatenate([batch.image_ids for batch in batches])
    assert valid.shape == (12,) and not valid[-1]
    assert sorted(seen[valid]) == list(range(1, IMAGES + 1))
    last = batches[-1]
    assert not last.ground_truth.valid[-1].any() and np.all(last.sizes > 0) and np.all(np.isfinite(last.scales))


def test_objects_beyond_max_objects_are_counted(settings):
    boxes = [[0, 0, 30, 30], [1, 1, 1.5, 9], [2, 2, 9, 9], [3, 3, 9, 9], [4, 4, 9, 9], [9, 9, 9, 20]]
    entry = record(np.zeros((40, 60, 3), np.uint8), boxes, [True] + [False] * 5)
    for room, dropped, kept in ((2, 1, [2, 3]), (3, 0, [2, 3, 4]), (4, 0, [2, 3, 4, 0]), (6, 0, [2, 3, 4, 0])):
        batch = next(evaluation(alone(entry), ConfigDict({**settings, "max_objects": room}), 1))
        truth = batch.ground_truth
        assert batch.dropped.tolist() == [dropped]
        assert truth.boxes.shape == (1, room, 4)
        np.testing.assert_array_equal(truth.boxes[truth.valid], np.array(boxes)[kept])
        assert truth.ignore[truth.valid].tolist() == [index == 0 for index in kept]
        assert np.all(truth.boxes[~truth.valid] == 0)


def test_colours_are_red_green_blue_and_scale_follows_the_tighter_side(settings):
    picture = np.full((160, 80, 3), (200, 100, 50), np.uint8)
    batch = next(evaluation(alone(record(picture, [], [])), settings, 1))
    np.testing.assert_array_equal(batch.images[0, :160, :80], picture)
    np.testing.assert_allclose(batch.scales, [4])


def test_a_picture_larger_than_stored_size_is_refused(settings):
    entry = record(np.zeros((337, 60, 3), np.uint8), [], [])
    with pytest.raises(UserError, match="own.png is 337 x 60 .* dataset.stored_size = 336 x 352"):
        next(evaluation(alone(entry), settings, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": b"none"}, "own.png cannot be decoded"),
        ({"height": 41}, "own.png is 40 x 60 pixels, but was 41 x 60"),
        ({"path": b"/nowhere/own.png"}, "/nowhere/own.png cannot be read"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(settings, change, message):
    entry = record(np.zeros((40, 60, 3), np.uint8), [], []) | change
    with pytest.raises(UserError, match=message):
        next(training(alone(entry), settings, 0, 1))


# Windows of scenes: as small as they are, they are cut into four to nine.


@pytest.fixture(scope="module", params=[False, True], ids=["regions kept", "regions painted"])
def cut(settings, request) -> ConfigDict:
    sizes = {"stored_size": (160, 192), "image_size": None, "window_overlap": 32, "max_objects": 60}
    return ConfigDict({**settings, **sizes, "paint_regions": request.param})


def test_training_windows_follow_the_rules(prepared, cut):
    windows = windows_of(prepared, cut, training=True)
    count = len(windows.owners)
    seen = [
        jax.tree.map(lambda leaf: leaf[0], batch) for batch in itertools.islice(training(prepared, cut, 0, 1), count)
    ]
    order = mixed_order(windows.owners, cut.mixed_pictures, 0, 0)
    owners = [prepared.source[owner]["image_id"] for owner in windows.owners[order].tolist()]
    assert [batch.image_ids for batch in seen] == owners
    expected = []
    for index in range(IMAGES):
        scene = render_scene("train", index)
        objects, regions = scene.boxes[~scene.ignore], scene.boxes[scene.ignore]
        for origin in training_windows((SIZE, SIZE), objects, regions, (160, 192), (32, 32)):
            boxes, share = boxes_in_window(scene.boxes, origin, (160, 192))
            inside = share > 0 if not cut.paint_regions else (share > 0) & ~scene.ignore
            labels = np.maximum(scene.labels, 0)  # a region of every class
            expected.append((index + 1, boxes[inside], labels[inside], scene.ignore[inside] | (share[inside] <= 0.4)))
    assert count == len(expected) > 3 * IMAGES

    def facts(image_id: int, boxes: np.ndarray, labels: np.ndarray, ignore: np.ndarray) -> tuple:
        kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        order = np.argsort(ignore[kept], kind="stable")
        columns = (column[kept][order].tolist() for column in (boxes.astype(np.float32), labels, ignore))
        return int(image_id), *columns

    found = [
        facts(batch.image_ids, *(column[batch.ground_truth.valid] for column in (
            batch.ground_truth.boxes, batch.ground_truth.labels, batch.ground_truth.ignore
        )))
        for batch in seen
    ]  # fmt: skip
    assert sorted(found) == sorted(facts(*entry) for entry in expected)


def test_a_window_shows_its_part_of_the_picture(prepared, cut):
    windows = windows_of(prepared, cut, training=False)
    assert len(windows.owners) == IMAGES * len(window_origins((SIZE, SIZE), (160, 192), (32, 32)))
    read = [(batch, row) for batch in evaluation(prepared, cut, 4) for row in range(4) if batch.valid[row]]
    painted, unread = 0, views(prepared, cut, training=False)
    for owner, origin, (batch, row), view in zip(windows.owners, windows.origins, read, unread, strict=True):
        record = prepared.source[int(owner)]
        scene, picture = render_scene("train", int(record["image_id"]) - 1), batches.read_picture(record)
        assert batch.image_ids[row] == record["image_id"]
        if cut.paint_regions:
            picture = picture.copy()
            fill(picture, scene.boxes[scene.ignore], scene.boxes[~scene.ignore])
            painted += int(scene.ignore.sum())
        part = picture[origin[0] : origin[0] + 160, origin[1] : origin[1] + 192]
        height, width = batch.sizes[row].astype(int)
        assert part.shape[:2] == (height, width) == view[0]
        boxes, truth = view[1].boxes, batch.ground_truth
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2] >= 1).all(1)]
        assert sorted(boxes.tolist()) == sorted(truth.boxes[row][truth.valid[row]].tolist())
        # A region cut by the window is cut before it is rounded: its outermost pixels may differ.
        assert np.mean(np.any(batch.images[row, :height, :width] != part, axis=-1)) < 0.005
    assert painted > 0 or not cut.paint_regions


def test_an_epoch_of_windows_is_mixed_group_by_group():
    owners = np.repeat(np.arange(20), np.arange(20) % 4)
    first, second = (mixed_order(owners, 5, 0, epoch) for epoch in range(2))
    for order in (first, second):
        assert sorted(order) == list(range(len(owners)))
        places = {owner: np.flatnonzero(owners[order] == owner) for owner in set(owners)}
        assert max(place.max() - place.min() for place in places.values()) < 15  # five pictures of three windows
        assert any(place.max() - place.min() >= len(place) for place in places.values())
    assert not np.array_equal(first, second)
    for seed in (1, 2, 7):
        again = mixed_order(owners, 5, seed, 0)
        np.testing.assert_array_equal(again, mixed_order(owners, 5, seed, 0))
        assert not np.array_equal(again, first) and not np.array_equal(again, second)


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("make", [lambda *a: training(*a[:2], 0, *a[2:]), evaluation])
def test_a_picture_is_decoded_once_an_epoch(prepared, cut, monkeypatch, make, size):
    decoded, read = [], batches.read_picture

    def count(record: dict, *how) -> np.ndarray:
        decoded.append(int(record["image_id"]))
        return read(record, *how)

    monkeypatch.setattr(batches, "read_picture", count)
    settings = ConfigDict({**cut, "read_threads": 3, "mixed_pictures": 2})
    windows = windows_of(prepared, settings, training=make is not evaluation)
    for _ in zip(range(-(-len(windows.owners) // size)), make(prepared, settings, size), strict=False):
        pass
    assert len(windows.owners) > 3 * IMAGES
    if make is evaluation:
        assert sorted(decoded) == list(range(1, IMAGES + 1))
    else:  # the threads are in the next epoch by now
        assert set(decoded) == set(range(1, IMAGES + 1)) and len(decoded) < 3 * IMAGES


def test_windows_without_an_object_are_not_trained_on(settings):
    entry = record(np.zeros((40, 60, 3), np.uint8), [], [])
    with pytest.raises(UserError, match="No window of the split holds an object"):
        windows_of(alone(entry), ConfigDict({**settings, "window_overlap": 8}), training=True)


def test_windows_are_scaled_alike(settings):
    """The published tool pads them first; whole pictures are scaled to fit."""
    entry = record(np.zeros((40, 60, 3), np.uint8), [[1, 1, 9, 9]], [False])
    windowed = next(evaluation(alone(entry), ConfigDict({**settings, "window_overlap": 8}), 1))
    assert windowed.sizes.tolist() == [[40, 60]] and windowed.scales == min(640 / 336, 512 / 352)
    assert next(evaluation(alone(entry), settings, 1)).scales == min(640 / 40, 512 / 60)


@pytest.fixture(params=["whole", "cut"])
def either(request, settings, cut) -> ConfigDict:
    """Settings that read whole pictures, or windows of them."""
    return settings if request.param == "whole" else cut


@pytest.mark.parametrize("threads", [1, 3])
def test_a_restored_iterator_continues_with_the_next_batch(either, prepared, threads):
    settings = ConfigDict({**either, "read_threads": threads})
    batches = training(prepared, settings, 0, 4)
    for _ in range(len(windows_of(prepared, settings, training=True).owners) // 4):
        next(batches)
    state, expected = batches.get_state(), next(batches)  # across the end of the epoch
    for restored in (training(prepared, settings, 0, 4), batches):
        restored.set_state(state)
        jax.tree.map(np.testing.assert_array_equal, next(restored), expected)


@pytest.mark.parametrize("make", [lambda *a: training(*a[:2], 0, *a[2:]), evaluation])
def test_processes_share_the_global_batches(either, prepared, make):
    whole = list(itertools.islice(make(prepared, either, 4), 3))
    parts = [list(itertools.islice(make(prepared, either, 4, process, 2), 3)) for process in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *shares)
        jax.tree.map(np.testing.assert_array_equal, joined, batch)


def test_the_seed_decides_the_order_of_windows_and_nothing_else(prepared, cut):
    orders = [ids(training(prepared, cut, seed, 4), 8).tolist() for seed in (0, 1, 2, 0)]
    assert orders[0] == orders[3] and len(set(map(tuple, orders))) == 3
