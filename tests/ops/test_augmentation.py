"""Views of a picture: pixels and boxes against plain loops, and what is drawn against its ranges."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.boxes import horizontal, oriented
from cfinet_jax.input.annotations import Objects, objects_in_window
from cfinet_jax.input.sizes import augmentation_of, training_preparation, training_shape
from cfinet_jax.ops import augmentation
from cfinet_jax.ops.augmentation import View
from cfinet_jax.structures import Batch, GroundTruth
from configs import sodad
from tests import oriented as reference
from tests import plain

TURNS = list(itertools.product([False, True], repeat=3))  # transposed, across, down
STORED, SIZE = (24, 30), (22, 27)
SEEDS = st.integers(0, 2**32 - 1)


def view_of(scale: float, corner: tuple | None, turns: tuple | None) -> View:
    """Return a view of numbers; `turns` are `transposed`, `across` and `down`."""
    view = View(jnp.float32(scale), None if corner is None else jnp.asarray(corner, jnp.float32))
    return view if turns is None else View(*view[:2], *map(jnp.asarray, turns))


def seen_of(view: View, shape: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the part of `SIZE` that is seen."""
    height, width = (round(side * float(view.scale)) for side in SIZE)
    if view.transposed:
        height, width = width, height
    return (height, width) if view.corner is None else (min(height, shape[0]), min(width, shape[1]))


def picture_loop(image: np.ndarray, view: View, shape: tuple[int, int]) -> np.ndarray:
    """Look up every pixel that is seen in the picture, bilinearly."""
    height, width = seen_of(view, shape)
    scale, corner = float(view.scale), (0, 0) if view.corner is None else view.corner
    result = np.zeros((height, width, 3))
    for i, j in np.ndindex(height, width):
        row, column = height - 1 - i if view.down else i, width - 1 - j if view.across else j
        row, column = (column, row) if view.transposed else (row, column)
        place = [
            np.clip((at + start + 0.5) / scale - 0.5, 0, side - 1)
            for at, start, side in zip((row, column), corner, image.shape[:2], strict=True)
        ]
        result[i, j] = plain.bilinear(image.astype(float), *place)
    return result


def point_loop(points: np.ndarray, view: View, shape: tuple[int, int]) -> np.ndarray:
    """Move points (x, y) one by one."""
    (height, width), moved = seen_of(view, shape), []
    for x, y in points.reshape(-1, 2):
        row, column = y * float(view.scale), x * float(view.scale)
        if view.corner is not None:
            row, column = row - view.corner[0], column - view.corner[1]
        if view.transposed:
            row, column = column, row
        moved.append((width - column if view.across else column, height - row if view.down else row))
    return np.array(moved).reshape(points.shape)


VIEWS = [
    (1.0, (3, 5), (16, 12)), (1.0, None, (32, 32)), (0.7, None, (32, 32)), (0.7, (2, 5), (12, 13)),
    (1.6, (3, 11), (32, 20)), (1.6, (7, 15), (20, 28)),
]  # fmt: skip


@pytest.mark.parametrize(("scale", "corner", "shape"), VIEWS)
def test_pixels_and_boxes_equal_the_loops(rng, scale, corner, shape):
    image = rng.integers(0, 256, (*STORED, 3)).astype(np.uint8)
    image[SIZE[0] :], image[:, SIZE[1] :] = image[SIZE[0] - 1], image[:, SIZE[1] - 1 : SIZE[1]]
    boxes = reference.some_boxes(rng, 6, extent=20, largest=9)
    truth = truth_of(oriented.enclose(boxes), boxes)
    show = jax.jit(partial(augmentation.show, resize=scale != 1.0, shape=shape))
    for turns in [None] if corner is None and shape[0] != shape[1] else [None, *TURNS]:
        view = view_of(scale, corner, turns)
        pixels, seen, moved = show(jnp.asarray(image), jnp.array(SIZE, jnp.float32), truth, view)
        expected = picture_loop(image, view, shape)
        assert pixels.shape == (*shape, 3) and tuple(np.asarray(seen)) == expected.shape[:2]
        np.testing.assert_allclose(pixels[: expected.shape[0], : expected.shape[1]], expected, rtol=1e-4, atol=1e-2)
        corners = point_loop(oriented.to_polygon(boxes).reshape(-1, 4, 2), view, shape)
        there = shapely.polygons(corners)
        assert shapely.hausdorff_distance(reference.polygons(np.asarray(moved.oriented)), there).max() < 1e-3
        np.testing.assert_allclose(moved.boxes, shapely.bounds(there), atol=1e-3)
        angles = np.asarray(moved.oriented)[:, 4]
        assert (angles >= -np.pi / 2).all() and (angles < np.pi / 2).all()


def truth_of(boxes: np.ndarray, turned: np.ndarray | None = None, regions: int = 0) -> GroundTruth:
    """Return annotations of which the last ones are `regions`."""
    count = len(boxes)
    ignore = jnp.arange(count) >= count - regions
    turned = None if turned is None else jnp.asarray(turned, jnp.float32)
    boxes = jnp.asarray(boxes, jnp.float32)
    return GroundTruth(boxes, jnp.arange(count, dtype=jnp.int32), jnp.ones(count, bool), ignore, turned)


@given(SEEDS)
def test_upright_objects_are_cut_as_in_windows(seed):
    rng = np.random.default_rng(seed)
    corner, room = rng.integers(0, 12, 2), tuple(rng.integers(8, 24, 2).tolist())
    low = rng.integers(-4, 30, (40, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 12, (40, 2))], 1).astype(np.float32)
    truth = truth_of(boxes - np.tile(corner[::-1], 2), regions=10)
    cut = augmentation.cut(truth, jnp.array(room, jnp.float32))
    expected = objects_in_window(Objects(boxes, np.arange(40), np.arange(40) >= 30), corner, room)
    # In float32 a share of exactly 0.4 may exceed it.
    shares = plain.shares(np.asarray(truth.boxes), np.array([[0, 0, *room[::-1]]], np.float32))[:, 0]
    plainly = np.abs(shares - 0.4) > 1e-5
    kept = np.flatnonzero(cut.valid)
    np.testing.assert_array_equal(kept, expected.labels)
    np.testing.assert_array_equal(np.asarray(cut.boxes)[kept], expected.boxes)
    np.testing.assert_array_equal(np.asarray(cut.ignore)[kept][plainly[kept]], expected.ignore[plainly[kept]])
    assert np.isfinite(cut.boxes).all() and (np.asarray(cut.boxes) <= np.tile(room[::-1], 2)).all()


@given(SEEDS)
def test_oriented_objects_stay_whole_or_are_ignored(seed):
    """Cut objects follow the rule of windows, but are ignored where windows drop them; their middle is inside."""
    rng = np.random.default_rng(seed)
    boxes, room = reference.some_boxes(rng, 30, extent=36), (24, 30)
    truth = truth_of(oriented.enclose(boxes), boxes, regions=8)
    cut = augmentation.cut(truth, jnp.array(room, jnp.float32))
    polygons = oriented.to_polygon(boxes).reshape(-1, 4, 2)
    frame = plain.corners([room[1] / 2, room[0] / 2, room[1], room[0], 0.0])
    shares = np.array([plain.shared_area(each, frame) / plain.polygon_area(each) for each in polygons])
    plainly = (np.abs(shares - 0.7) > 1e-4) & (np.abs(shares) > 1e-4)
    np.testing.assert_array_equal(np.asarray(cut.is_object)[plainly], ((shares >= 0.7) & (np.arange(30) < 22))[plainly])
    np.testing.assert_array_equal(np.asarray(cut.valid)[plainly], (shares > 0)[plainly])
    np.testing.assert_array_equal(cut.oriented, boxes)
    np.testing.assert_array_equal(cut.boxes, truth.boxes)
    middles = boxes[np.asarray(cut.is_object), :2]
    assert (middles >= 0).all() and (middles <= room[::-1]).all()
    windowed = objects_in_window(
        Objects(boxes, np.arange(30), np.asarray(truth.ignore), polygons), np.zeros(2, int), room
    )
    sure = np.flatnonzero(plainly)
    assert set(windowed.labels[~windowed.ignore]) & set(sure) == set(np.flatnonzero(cut.is_object)) & set(sure)


@partial(jax.jit, static_argnums=4)
def draw_corners(keys, scale, truth, room, at_object) -> jax.Array:
    """Draw a crop of `SIZE` with every key."""
    size = jnp.array(SIZE, jnp.float32)
    return jax.vmap(lambda key: augmentation.draw_corner(key, size, scale, truth, room, at_object))(keys)


@given(SEEDS)
def test_a_crop_lies_in_the_picture_and_holds_the_object_drawn(seed):
    rng = np.random.default_rng(seed)
    scale, room = rng.uniform(0.5, 2), rng.integers(6, 40, 2)
    low = rng.integers(0, 18, 2)
    box = np.concatenate([low, np.minimum(low + rng.integers(1, 12, 2), SIZE[::-1])]).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed % 1000), 16)
    for regions, at_object in ((0, 1.0), (1, 1.0), (0, 0.0)):
        truth = truth_of(box[None], regions=regions)
        corners = np.asarray(draw_corners(keys, jnp.float32(scale), truth, jnp.asarray(room, jnp.float32), at_object))
        free = np.maximum(np.round(np.array(SIZE) * np.float32(scale)) - room, 0)
        assert (corners == corners.round()).all() and (corners >= 0).all() and (corners <= free).all()
        if at_object and not regions:
            begin, end = box[1::-1] * scale, box[:1:-1] * scale
            fits = end - begin <= room - 1  # a crop of whole pixels
            inside = (corners <= begin + 0.5) & (
                corners + room >= end - 0.5
            )  # the picture's last pixel may be half one
            within = (corners >= begin - 1) & (corners + room <= end + 1)
            assert np.where(fits, inside, inside | within).all()


def test_every_crop_and_every_object_is_drawn_alike():
    room, keys = jnp.array([18.0, 24.0]), jax.random.split(jax.random.key(0), 4000)  # 5 rows x 4 columns to begin at
    corners = [[0, 0, 1, 1], [26, 21, 27, 22], [9, 9, 12, 12]]
    for truth, at_object in ((truth_of(np.zeros((3, 4)), regions=3), 1.0), (truth_of(corners, regions=1), 0.0)):
        found, counts = np.unique(draw_corners(keys, 1.0, truth, room, at_object), axis=0, return_counts=True)
        np.testing.assert_allclose(counts / 4000, 1 / 20, atol=0.015)
        assert (found.min(0) == 0).all() and (found.max(0) == (4, 3)).all() and len(found) == 20
    # Each object is in one corner of the picture, which then is in the crop.
    found, counts = np.unique(
        draw_corners(keys, 1.0, truth_of(corners, regions=1), room, 1.0), axis=0, return_counts=True
    )
    np.testing.assert_array_equal(found, [[0, 0], [4, 3]])
    np.testing.assert_allclose(counts / 4000, 0.5, atol=0.03)


def settings(**changes):
    """Return the section `dataset` of a small experiment in which everything is drawn."""
    config = sodad.get_config().dataset
    with config.ignore_type():
        config.update(
            stored_size=STORED, image_size=None, flip=0.5, vertical_flip=0.5, quarter_turns=0.75, train_size=(32, 64),
            scale_jitter=(0.5, 2.5), crop_at_object=0.5, colour_jitter=0.0, mean=(0.0,) * 3, std=(255.0,) * 3,
        )  # fmt: skip
        config.update(changes)
    return config


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"train_size": None, "quarter_turns": 0.0}, (32, 32)),
        ({"train_size": None, "quarter_turns": 0.0, "image_size": (40, 90)}, (64, 96)),
        ({"train_size": None, "image_size": (40, 90)}, (96, 96)),  # a square holds both orientations
        ({"train_size": (30, 70), "image_size": (40, 90)}, (32, 96)),
    ],
)
def test_shapes_are_whole_cells(changes, shape):
    chosen = settings(**changes)
    drawn = augmentation_of(chosen)
    assert training_shape(chosen) == shape == drawn.shape
    assert drawn.crop and drawn.resize  # since scales are drawn


KINDS = {
    "everything": {"stored_size": (48, 60), "train_size": (30, 41)},
    "no scales": {"stored_size": (48, 60), "train_size": (30, 41), "scale_jitter": (1.0, 1.0)},
    "no crop": {"stored_size": (48, 60), "train_size": None, "scale_jitter": (1.0, 1.0)},
    "scaled input": {"stored_size": (48, 60), "train_size": (96, 32), "image_size": (72, 90)},
}
PICTURES = 8


@pytest.fixture(scope="module", params=KINDS)
def prepared(request):
    """The function (batch, key) -> prepared batch, compiled once per kind, and its settings."""
    chosen = settings(**KINDS[request.param])
    return jax.jit(training_preparation(chosen)), chosen


def painted(chosen, seed: int, is_oriented: bool) -> Batch:
    """Return pictures with one bright rectangle each, upright or not."""
    rng = np.random.default_rng(seed)
    rows, columns = chosen.stored_size
    sizes = np.stack([rng.integers(36, rows + 1, PICTURES), rng.integers(40, columns + 1, PICTURES)], 1)
    images, boxes = np.zeros((PICTURES, rows, columns, 3), np.uint8), np.zeros((PICTURES, 1, 5), np.float32)
    y, x = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
    points = jnp.asarray(np.stack([x.ravel(), y.ravel()], 1), jnp.float32)
    for index in range(PICTURES):
        if is_oriented:
            w, h = np.sort(rng.uniform(6, 16, 2))[::-1]
            boxes[index, 0] = (*rng.uniform(10, sizes[index, ::-1] - 10), w, h, rng.uniform(-np.pi / 2, np.pi / 2))
        else:
            low = rng.integers(0, sizes[index, ::-1] - 14)
            upright = np.concatenate([low, low + rng.integers(4, 14, 2)])
            boxes[index, 0] = np.asarray(oriented.from_horizontal(upright.astype(np.float32)))
        mask = np.asarray(oriented.contain(jnp.asarray(boxes[index]), points))[:, 0]
        images[index][mask.reshape(rows, columns)] = 255
    hulls = oriented.enclose(boxes)
    some = np.ones((PICTURES, 1), bool)
    truth = GroundTruth(hulls, 0 * some.astype(np.int32), some, ~some, boxes if is_oriented else None)
    scale = 1.0 if chosen.image_size is None else 1.5
    numbers = np.arange(PICTURES, dtype=np.int32)
    scales = np.full(PICTURES, scale, np.float32)
    return Batch(images, sizes.astype(np.float32), scales, truth, numbers, numbers, 0 * numbers, numbers >= 0)


@pytest.mark.parametrize("is_oriented", [False, True])
@given(SEEDS)
def test_a_painted_rectangle_ends_where_its_box_ends(prepared, is_oriented, seed):
    prepare, chosen = prepared
    batch = painted(chosen, seed, is_oriented)
    got = jax.device_get(prepare(batch, jax.random.key(seed % 2**31)))
    np.testing.assert_array_equal(got.scales, batch.scales)
    truth, shape = got.ground_truth, got.images.shape[1:3]
    y, x = np.meshgrid(np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5, indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    for index in range(PICTURES):
        height, width = got.sizes[index]
        assert height <= shape[0] and width <= shape[1]
        bright = got.images[index, ..., 0].ravel() > 0.5
        assert not bright[(points[:, 1] > height) | (points[:, 0] > width)].any()
        if not truth.valid[index, 0]:
            assert is_oriented or not bright.any()
            continue
        box = truth.targets[index]
        if not is_oriented:
            assert (box > -1e-3).all() and (box < np.array([width, height, width, height]) + 1e-3).all()
        turned = box if is_oriented else np.asarray(oriented.from_horizontal(box))
        # Half a pixel at either end of a side; stored pixels, up to 3.75 wide, lie across turned sides by up to half a
        # diagonal, and bilinear reading rounds off the corners.
        beyond, short = 1.1, 1.1 + 0.45 * 3.75
        if is_oriented:
            beyond = short = 1.1 + np.sqrt(2) * turned[0, 2] / batch.ground_truth.targets[index, 0, 2]
        inner, outer = turned.copy(), turned.copy()
        inner[:, 2:4], outer[:, 2:4] = np.maximum(inner[:, 2:4] - short, 0), outer[:, 2:4] + beyond
        inside = (points[:, 0] < width) & (points[:, 1] < height)
        assert bright[oriented.contain(inner, points)[:, 0] & inside].all()
        assert not bright[~oriented.contain(outer, points)[:, 0]].any()


def test_colours_equal_the_loop_and_grey_stays_grey(rng):
    pixels, seen = rng.uniform(0, 255, (6, 8, 3)).astype(np.float32), (5, 7)
    factors = 1.3, 0.6, 1.2
    got = augmentation.change_colours(jnp.asarray(pixels), jnp.array(seen, jnp.float32), jnp.array(factors))
    greys = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in pixels[:5, :7].reshape(-1, 3)]
    mean = sum(greys) / len(greys)
    for place in np.ndindex(5, 7):
        red, green, blue = pixels[place]
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        for channel in range(3):
            value = grey + factors[0] * (pixels[place][channel] - grey)
            value = factors[2] * (mean + factors[1] * (value - mean))
            assert got[place][channel] == pytest.approx(min(max(value, 0), 255), abs=1e-2)
    grey = jnp.broadcast_to(jnp.asarray(pixels[..., :1]), pixels.shape)
    changed = np.asarray(augmentation.change_colours(grey, jnp.array(seen, jnp.float32), jnp.array(factors)))
    np.testing.assert_array_equal(changed, np.repeat(changed[..., :1], 3, -1))
    same = augmentation.change_colours(jnp.asarray(pixels), jnp.array(seen, jnp.float32), jnp.ones(3))
    np.testing.assert_allclose(same, pixels, atol=1e-3)


def test_a_negative_is_dark_where_the_picture_is_bright(rng):
    picture = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    view, truth = augmentation.View(jnp.float32(1), inverted=jnp.array(True)), truth_of(np.array([[1, 2, 3, 4]]))
    pixels, _, _ = augmentation.show(
        jnp.asarray(picture), jnp.array([6.0, 8.0]), truth, view, resize=False, shape=(6, 8)
    )
    np.testing.assert_array_equal(pixels, 255.0 - picture)


def test_draws_have_the_ranges_of_the_config():
    drawn = augmentation.Augmentation((32, 64), True, True, 0.25, 0.6, (0.5, 2.0), 0.5, 0.2, 0.3)
    truth, size = truth_of(np.array([[1, 2, 3, 4]])), jnp.array([40.0, 50.0])
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: augmentation.draw_view(key, size, jnp.float32(2), truth, drawn)))
    views = jax.device_get(draw(keys))
    logs = np.log2(views.scale / 2)
    assert -1 <= logs.min() < -0.98 and 0.98 < logs.max() <= 1 + 1e-6 and abs(logs.mean()) < 0.03
    assert 0.8 <= views.colours.min() < 0.81 and 1.19 < views.colours.max() <= 1.2
    assert views.inverted.mean() == pytest.approx(0.3, abs=0.03)
    assert views.transposed.mean() == pytest.approx(0.4, abs=0.03)  # two of the three turns
    assert views.across.mean() == pytest.approx(0.4, abs=0.03)
    kinds = np.unique(np.stack([views.transposed, views.across, views.down]), axis=1, return_counts=True)[1] / 4000
    # No turn .4 and each turn .2; of each a quarter upside down besides.
    np.testing.assert_allclose(np.sort(kinds), np.sort([0.3, 0.1] + [0.15, 0.05] * 3), atol=0.03)


def test_what_is_off_draws_nothing():
    drawn = augmentation.Augmentation((32, 64), False, False, 0.0, 0.0, (1.0, 1.0), 0.5, 0.0, 0.0)
    view = augmentation.draw_view(jax.random.key(0), jnp.ones(2), jnp.float32(2), truth_of(np.ones((1, 4))), drawn)
    assert view[1:] == (None,) * 6 and view.scale == 2


def test_views_do_not_depend_on_the_batch(prepared):
    """An image is seen alike wherever it is computed; another step sees it in another way."""
    prepare, chosen = prepared
    batch, key = painted(chosen, 0, True), jax.random.key(3)
    whole = jax.device_get(prepare(batch, key))
    order = np.array([5, 2, 7, 0, 1, 3, 6, 4])
    mixed = jax.device_get(prepare(jax.tree.map(lambda x: x[order], batch), key))
    jax.tree.map(np.testing.assert_array_equal, mixed, jax.tree.map(lambda x: x[order], whole))
    assert np.any(jax.device_get(prepare(batch, jax.random.key(4))).ground_truth.boxes != whole.ground_truth.boxes)


def test_the_mirror_image_is_drawn_as_before():
    """From left to right, whatever else is drawn."""
    batch = painted(settings(stored_size=(48, 60)), 0, False)
    off = {"vertical_flip": 0.0, "quarter_turns": 0.0, "scale_jitter": (1.0, 1.0), "stored_size": (64, 64)}
    images = np.pad(batch.images, [(0, 0), (0, 16), (0, 4), (0, 0)], mode="edge")
    batch, key = jax.tree.map(jnp.asarray, dataclasses.replace(batch, images=images)), jax.random.key(1)
    plainly = training_preparation(settings(**off, train_size=None))(batch, key)
    cropped = training_preparation(settings(**off, train_size=(64, 64)))(batch, key)
    jax.tree.map(np.testing.assert_array_equal, cropped, plainly)
    assert len(np.unique(augmentation.draw_flips(key, jnp.arange(PICTURES), 0.5))) == 2


@given(SEEDS)
def test_transposed_twice_and_moved_back_a_box_is_itself(seed):
    rng = np.random.default_rng(seed)
    for kind, boxes in ((horizontal, plain.some_boxes(rng, 9)), (oriented, reference.some_boxes(rng, 9))):
        offset, boxes = jnp.array([3.0, -8.0]), jnp.asarray(boxes)
        np.testing.assert_allclose(kind.shift(kind.shift(boxes, offset), -offset), boxes, atol=1e-4)
        twice = kind.transpose(kind.transpose(boxes))
        if kind is oriented:  # where the angle is on the border, it may be named differently
            there, back = (reference.polygons(np.asarray(each)) for each in (boxes, twice))
            assert shapely.hausdorff_distance(there, back).max() < 1e-3
        else:
            np.testing.assert_array_equal(twice, boxes)
