"""Oriented boxes against shapely, OpenCV and plain loops, and what must hold for all of them."""

import math
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.boxes import horizontal, oriented
from tests import oriented as reference
from tests import plain

STDS = (0.1, 0.1, 0.2, 0.2, 0.1)
seeds = st.integers(0, 2**32 - 1)
some_boxes = reference.some_boxes

iou = jax.jit(oriented.iou)
paired_iou = jax.jit(oriented.paired_iou)
encode = jax.jit(lambda anchors, boxes: oriented.encode(anchors, boxes, STDS))
decode = jax.jit(lambda anchors, deltas: oriented.decode(anchors, deltas, STDS))


def assert_le90(boxes: np.ndarray) -> None:
    """Assert that boxes are in le90, in their own precision."""
    quarter = boxes.dtype.type(math.pi / 2)
    assert (boxes[:, 2] >= boxes[:, 3]).all()
    assert ((boxes[:, 4] >= -quarter) & (boxes[:, 4] < quarter)).all()


def assert_same(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    """Assert that rectangles are the same, however they are written."""
    assert oriented.paired_iou(np.float64(ours), np.float64(theirs)).min() > 1 - tolerance


# Shared areas


@pytest.mark.parametrize("pairs", [reference.pairs, lambda rng, count: reference.hard_pairs(rng, count // 10, 1e3)])
def test_iou_equals_shapelys(rng, pairs):
    a, b = pairs(rng, 100_000)
    expected = reference.paired_ious(a, b)
    assert ((expected > 0.01) & (expected < 0.99)).mean() > 0.3
    np.testing.assert_allclose(paired_iou(a, b), expected, atol=3e-5)
    np.testing.assert_allclose(oriented.paired_iou(np.float64(a), np.float64(b)), expected, atol=1e-8)


def test_iou_of_hairs_equals_shapelys_in_float64(rng):
    a, b = reference.hard_pairs(rng, 10_000, 1e7)
    expected = reference.paired_ious(a, b)
    np.testing.assert_allclose(oriented.paired_iou(np.float64(a), np.float64(b)), expected, atol=1e-8)
    ours = np.asarray(paired_iou(a, b))
    assert ((ours >= 0) & (ours <= 1)).all()


@given(seeds)
def test_iou_of_every_pair_is_symmetric_and_bounded(seed):
    rng = np.random.default_rng(seed)
    a, b = some_boxes(rng, 12), some_boxes(rng, 9)
    overlaps = np.asarray(iou(a, b))
    np.testing.assert_allclose(overlaps, reference.ious(a, b), atol=1e-5)
    np.testing.assert_allclose(overlaps.T, iou(b, a), atol=1e-6)
    assert (overlaps >= 0).all() and (overlaps <= 1).all()
    np.testing.assert_allclose(np.diag(np.asarray(iou(a, a))), 1, atol=1e-6)


@given(seeds)
def test_iou_of_upright_boxes_is_that_of_horizontal_ones(seed):
    rng = np.random.default_rng(seed)
    a, b = plain.some_boxes(rng, 12), plain.some_boxes(rng, 9)
    a[:, 2:], b[:, 2:] = a[:, 2:] + 1, b[:, 2:] + 1
    ours = iou(oriented.from_horizontal(a), oriented.from_horizontal(b))
    np.testing.assert_allclose(ours, horizontal.iou(jnp.asarray(a), jnp.asarray(b)), atol=1e-5)


def test_boxes_apart_share_exactly_nothing(rng):
    a, b = some_boxes(rng, 300, extent=200), some_boxes(rng, 300, extent=200)
    b[0, :2] = 1e6
    apart = shapely.distance(reference.polygons(a)[:, None], reference.polygons(b)[None]) > 1e-3
    assert 0.5 < apart.mean() < 0.99
    assert (np.asarray(iou(a, b))[apart] == 0).all()


@pytest.mark.parametrize("point", [(10, 3), (0, 3), (10, 6), (5, 6), (0, 0), (10, 0)])
def test_a_point_on_the_border_lies_in_the_box(point):
    x, y = point
    box = np.float64([[5, 3, 10, 6, 0]])
    assert oriented.contain(box, np.float64([point])).all()
    outwards = np.float64([[x + np.sign(x - 5) * 0.01, y + np.sign(y - 3) * 0.01]])
    assert not oriented.contain(box, outwards).any()


def test_overlap_of_first_is_the_share_inside(rng):
    a, b = some_boxes(rng, 30, largest=10), some_boxes(rng, 20, largest=60)
    first, second = reference.polygons(a), reference.polygons(b)
    expected = shapely.area(shapely.intersection(first[:, None], second[None])) / shapely.area(first)[:, None]
    assert (expected > 0.5).any()
    np.testing.assert_allclose(jax.jit(oriented.overlap_of_first)(a, b), expected, atol=1e-5)


def test_points_lie_in_boxes(rng):
    boxes, points = some_boxes(rng, 30, largest=60), rng.uniform(0, 64, (50, 2)).astype(np.float32)
    apart = shapely.distance(shapely.points(points)[:, None], shapely.boundary(reference.polygons(boxes)))
    expected = shapely.contains(reference.polygons(boxes), shapely.points(points)[:, None])
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal((oriented.contain(boxes, points) == expected)[apart > 1e-3], True)


def test_gradients_are_those_of_differences(rng):
    a, b = reference.pairs(rng, 200)
    gradients = jax.jit(jax.grad(lambda a, b: oriented.paired_iou(a, b).sum(), (0, 1)))(a, b)
    boxes, step = np.concatenate([a, b], 1).astype(np.float64), 1e-6
    for k in range(10):
        up, down = (
            oriented.paired_iou(moved[:, :5], moved[:, 5:])
            for moved in (boxes + step * np.eye(10)[k], boxes - step * np.eye(10)[k])
        )
        expected, ours = (up - down) / (2 * step), gradients[k // 5][:, k % 5]
        np.testing.assert_allclose(ours, expected, rtol=1e-2, atol=1e-4)


def test_values_and_gradients_are_finite_everywhere(rng):
    a, b = reference.hard_pairs(rng, 700, 1e7)
    nothing = np.zeros_like(a)
    flat = a * np.float32([1, 1, 1, 0, 1])

    def everything(a, b):
        upright = oriented.enclose(a)
        pairs = oriented.paired_iou(a, b) + oriented.intersection(a, b)
        deltas, others = oriented.encode(a, b, STDS), oriented.encode_horizontal(upright, b, STDS)
        boxes = oriented.decode(a, deltas, STDS), oriented.decode_horizontal(upright, others, STDS)
        polygons = oriented.from_polygon(oriented.to_polygon(a))
        return sum(x.mean() for x in (pairs, deltas, others, *boxes, polygons, oriented.normalise(a)))

    differentiate = jax.jit(jax.value_and_grad(everything, (0, 1)))
    for x, y in ((a, b), (b, a), (a, a), (nothing, a), (a, nothing), (nothing, nothing), (flat, flat), (flat, b)):
        value, gradients = differentiate(x, y)
        assert np.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_numpy_stays_numpy_and_needs_no_jax(rng):
    a, b = some_boxes(rng, 5), some_boxes(rng, 4)
    polygons = oriented.to_polygon(a)
    for dtype in (np.float32, np.float64):
        x, y = a.astype(dtype), b.astype(dtype)
        results = [
            oriented.iou(x, y), oriented.overlap_of_first(x, y), oriented.normalise(x), oriented.enclose(x),
            oriented.from_polygon(polygons.astype(dtype)), oriented.flip(x, dtype(9)),
            oriented.encode(x, x, STDS), oriented.decode(x, x, STDS), oriented.clip(x, np.ones(2, dtype)),
        ]  # fmt: skip
        assert all(type(result) is np.ndarray and result.dtype == dtype for result in results)
    code = "import sys; sys.modules['jax'] = None; import cfinet_jax.boxes.oriented"
    subprocess.run([sys.executable, "-c", code], check=True)


# Other names of the same rectangle


@given(seeds)
def test_other_names_of_a_rectangle_are_normalised_to_the_same_box(seed):
    rng = np.random.default_rng(seed)
    boxes = some_boxes(rng, 64)
    assert_le90(boxes)
    for dtype in (np.float32, np.float64):
        boxes = oriented.normalise(boxes.astype(dtype))
        other = oriented.turn_back(boxes, rng.integers(-5, 6, len(boxes)).astype(dtype))
        back = oriented.normalise(other)
        assert_le90(back)
        assert_same(other, boxes)
        np.testing.assert_array_equal(back[:, :4], boxes[:, :4])
        turns = (back - boxes)[:, 4] / np.pi  # a square looks the same after a quarter turn
        expected = np.where(boxes[:, 2] == boxes[:, 3], (2 * turns).round() / 2, turns.round())
        np.testing.assert_allclose(turns, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalise_keeps_the_border(dtype):
    borders = dtype([k * math.pi / 4 for k in range(-9, 10)])
    angles = np.concatenate([borders, np.nextafter(borders, dtype(9)), np.nextafter(borders, dtype(-9))])
    for sides in ((4, 2), (2, 4)):
        boxes = np.concatenate([np.tile(dtype([7, 5, *sides]), (len(angles), 1)), angles[:, None]], 1)
        assert_le90(oriented.normalise(boxes))
        assert_same(oriented.normalise(boxes), boxes)


@given(seeds)
def test_polygons_lead_back_whatever_the_order_of_their_corners(seed):
    rng = np.random.default_rng(seed)
    boxes = some_boxes(rng, 32)
    corners = oriented.to_polygon(boxes).reshape(-1, 4, 2)
    np.testing.assert_allclose(shapely.area(shapely.polygons(corners)), oriented.area(boxes), rtol=1e-4)
    for mixed in (corners, corners[:, rng.permutation(4)]):
        found = np.asarray(jax.jit(oriented.from_polygon)(mixed.reshape(-1, 8)))
        assert_le90(found)
        assert_same(found, boxes, 1e-3)


def test_corners_go_clockwise_on_the_screen():
    box = np.float32([[10, 20, 4, 2, math.pi / 2 - 1e-6]])  # w points down
    np.testing.assert_allclose(oriented.to_polygon(box), [[11, 18, 11, 22, 9, 22, 9, 18]], atol=1e-4)


def test_the_smallest_rectangle_is_opencvs(rng):
    polygons = rng.uniform(0, 100, (500, 8)).astype(np.float32)
    polygons[:4] = np.float32([[5] * 8, [0, 0, 3, 3, 3, 3, 9, 9], [1, 2, 1, 2, 5, 2, 5, 8], [0, 0, 0, 4, 4, 4, 4, 4]])
    found = oriented.from_polygon(polygons.astype(np.float64))
    sizes = np.array([cv2.minAreaRect(polygon.reshape(4, 2))[1] for polygon in polygons])
    np.testing.assert_allclose(oriented.area(found), sizes.prod(1), rtol=1e-4, atol=1e-4)
    around, points = reference.polygons(found), shapely.points(polygons.reshape(-1, 4, 2))
    assert shapely.distance(around[4:, None], points[4:]).max() < 1e-6


def test_rectangles_of_opencv_lead_to_le90(rng):
    boxes = some_boxes(rng, 200).astype(np.float64)
    rectangles = [
        cv2.minAreaRect(polygon.astype(np.float32)) for polygon in oriented.to_polygon(boxes).reshape(-1, 4, 2)
    ]
    named = np.array([[*centre, *size, math.radians(angle)] for centre, size, angle in rectangles])
    assert_le90(oriented.normalise(named))
    assert_same(oriented.normalise(named), boxes)


@given(seeds)
def test_upright_boxes_enclose_and_lead_back(seed):
    rng = np.random.default_rng(seed)
    boxes = some_boxes(rng, 32)
    bounds = shapely.bounds(reference.polygons(boxes))
    np.testing.assert_allclose(oriented.enclose(boxes), bounds, atol=1e-4)
    upright = plain.some_boxes(rng, 32)
    as_oriented = oriented.from_horizontal(upright)
    assert_le90(as_oriented)
    np.testing.assert_allclose(oriented.enclose(as_oriented), upright, atol=1e-4)
    np.testing.assert_allclose(oriented.area(as_oriented), np.prod(upright[:, 2:] - upright[:, :2], 1), atol=1e-3)


# Moved with the picture


@given(seeds)
def test_flip_mirrors_the_corners_and_is_its_own_inverse(seed):
    boxes = some_boxes(np.random.default_rng(seed), 32)
    width = np.float32(77)
    flipped = np.asarray(jax.jit(oriented.flip)(boxes, width))
    assert_le90(flipped)
    mirrored = shapely.transform(reference.polygons(boxes), lambda points: points * (-1, 1) + (77, 0))
    assert shapely.hausdorff_distance(reference.polygons(flipped), mirrored).max() < 1e-4
    assert_same(oriented.flip(flipped, width), boxes)


def test_resizing_scales_all_but_the_angle():
    np.testing.assert_allclose(oriented.resize(np.float32([[3, 4, 2, 1, 0.5]]), 1.5), [[4.5, 6, 3, 1.5, 0.5]])


def test_clip_moves_the_centre_alone():
    boxes = jnp.array([[-5.0, 120.0, 40.0, 4.0, 0.3], [250.0, 50.0, 40.0, 4.0, 0.3]])
    clipped = oriented.clip(boxes, jnp.array([100.0, 200.0]))  # height, width
    np.testing.assert_allclose(clipped, [[0, 100, 40, 4, 0.3], [200, 50, 40, 4, 0.3]])


def test_stretch_is_about_the_centre_along_the_own_axes():
    stretched = oriented.stretch(np.float32([[3, 4, 6, 2, 0.5]]), (0.5, 2.0))
    np.testing.assert_allclose(stretched, [[3, 4, 4, 3, 0.5 - math.pi / 2]], rtol=1e-6)


def test_area_centre_and_size_of_one_box():
    box = jnp.array([[2.0, 10.0, 5.0, 3.0, 1.0]])
    centre, size = oriented.centre_size(box)
    np.testing.assert_allclose(oriented.area(box), [15.0])
    np.testing.assert_allclose(centre, [[2, 10]])
    np.testing.assert_allclose(size, [[5, 3]])


# Coders


def wrapped(angle: float) -> float:
    """Wrap an angle to [-pi/2, pi/2)."""
    return (angle + math.pi / 2) % math.pi - math.pi / 2


def encode_loop(anchor: np.ndarray, box: np.ndarray, turn: float) -> list[float]:
    """Encode a box, written in the way that needs the smaller turn; the angle is in units of `turn`."""
    x, y, w, h, angle = np.float64(box - anchor)[:2].tolist() + np.float64(box)[2:].tolist()
    first, second = wrapped(angle - anchor[4]), wrapped(angle - anchor[4] + math.pi / 2)
    w, h, angle = (w, h, first) if abs(first) < abs(second) else (h, w, second)
    cos, sin = math.cos(anchor[4]), math.sin(anchor[4])
    offset = (x * cos + y * sin) / anchor[2], (y * cos - x * sin) / anchor[3]
    return [*offset, math.log(w / anchor[2]), math.log(h / anchor[3]), angle / turn]


@given(seeds)
def test_encode_equals_the_loop_and_decode_inverts_it(seed):
    rng = np.random.default_rng(seed)
    anchors, boxes = some_boxes(rng, 16), some_boxes(rng, 17)[1:]
    anchors[:, 4] += np.float32(0.01)  # nothing at exactly an eighth of a turn, where both names are as good
    deltas = np.asarray(encode(anchors, boxes))
    expected = [encode_loop(anchor, box, 1.0) for anchor, box in zip(anchors, boxes, strict=True)]
    np.testing.assert_allclose(deltas * STDS, expected, rtol=1e-4, atol=1e-4)
    decoded = np.asarray(decode(anchors, deltas))
    assert_le90(decoded)
    assert_same(decoded, boxes, 1e-3)


@given(seeds)
def test_the_coder_of_upright_anchors_equals_the_loop_and_leads_back(seed):
    rng = np.random.default_rng(seed)
    anchors, boxes = plain.some_boxes(rng, 16), some_boxes(rng, 16)
    anchors[:, 2:] += 2
    boxes[:, 4] += np.float32(0.01)
    deltas = np.asarray(jax.jit(lambda a, b: oriented.encode_horizontal(a, b, STDS))(anchors, boxes))
    corners = anchors[:, :2], anchors[:, 2:]
    upright = np.concatenate([np.add(*corners) / 2, np.subtract(*corners[::-1]), np.zeros((16, 1))], 1)
    expected = [encode_loop(anchor, box, 2 * math.pi) for anchor, box in zip(upright, boxes, strict=True)]
    np.testing.assert_allclose(deltas * STDS, expected, rtol=1e-4, atol=1e-4)
    decoded = np.asarray(jax.jit(lambda a, d: oriented.decode_horizontal(a, d, STDS))(anchors, deltas))
    assert_le90(decoded)
    assert_same(decoded, boxes, 1e-3)


def test_decode_limits_the_growth_of_a_side():
    anchors = np.float32([[0, 0, 2, 2, 0]])
    np.testing.assert_allclose(decode(anchors, np.float32([[0, 0, 100, -100, 0]]))[0, 2:4], [125, 0.032], rtol=1e-4)


def test_leading_axes_are_kept(rng):
    boxes, others = some_boxes(rng, 12).astype(np.float64), some_boxes(rng, 12).astype(np.float64)
    for function in (
        oriented.area, oriented.to_polygon, oriented.enclose,
        lambda x: oriented.from_polygon(oriented.to_polygon(x)), lambda x: oriented.from_horizontal(x[..., :4]),
        lambda x: oriented.flip(x, np.float64(9)), lambda x: oriented.resize(x, 2.0),
        lambda x: oriented.stretch(x, (2.0, 3.0)), lambda x: oriented.clip(x, np.float64([30, 40])),
    ):  # fmt: skip
        plain.assert_leading_axes_are_kept(function, boxes)
    for function in (
        oriented.paired_iou,
        lambda a, b: oriented.encode(a, b, STDS),
        lambda a, b: oriented.decode(a, b, STDS),
        lambda a, b: oriented.encode_horizontal(oriented.enclose(a), b, STDS),
        lambda a, b: oriented.decode_horizontal(oriented.enclose(a), b, STDS),
    ):
        plain.assert_leading_axes_are_kept(function, boxes, others)


def test_one_anchor_serves_many_boxes(rng):
    anchors, boxes = some_boxes(rng, 3)[:, None], some_boxes(rng, 4)[None]
    deltas = oriented.encode(anchors, boxes, STDS)
    np.testing.assert_array_equal(deltas[1, 2], oriented.encode(anchors[1], boxes[0, 2:3], STDS)[0])
    assert oriented.decode(anchors, deltas, STDS).shape == (3, 4, 5)
