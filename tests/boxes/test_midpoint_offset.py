"""Midpoint offsets: a plain statement of the two corners, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.boxes import horizontal, midpoint_offset, oriented
from tests import oriented as reference
from tests import plain

STDS = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)
encode = jax.jit(lambda anchors, boxes: midpoint_offset.encode(anchors, boxes, STDS))
decode = jax.jit(lambda anchors, deltas: midpoint_offset.decode(anchors, deltas, STDS))


def level(corners: np.ndarray) -> bool:
    """Say whether no corner of a box is clearly the topmost, or none clearly the rightmost."""
    (y, other_y), (x, other_x) = np.sort(corners[:, 1])[:2], -np.sort(-corners[:, 0])[:2]
    return other_y - y < 0.11 or x - other_x < 0.11


@given(st.integers(0, 2**32 - 1))
def test_encode_equals_the_loop_and_decode_inverts_it(seed):
    rng = np.random.default_rng(seed)
    anchors, boxes = plain.some_boxes(rng, 16), reference.some_boxes(rng, 16)
    anchors[:, 2:] += 2
    deltas = np.asarray(encode(anchors, boxes))
    around = oriented.enclose(boxes)
    np.testing.assert_allclose(
        deltas[:, :4], horizontal.encode(jnp.asarray(anchors), jnp.asarray(around), STDS[:4]), atol=1e-5
    )
    corners = oriented.to_polygon(boxes).reshape(-1, 4, 2)
    for delta, of_box, (x1, y1, x2, y2) in zip(deltas, corners, around, strict=True):
        top, right = of_box[of_box[:, 1].argmin(), 0], of_box[of_box[:, 0].argmax(), 1]
        expected = [(top - (x1 + x2) / 2) / (x2 - x1) / 0.5, (right - (y1 + y2) / 2) / (y2 - y1) / 0.5]
        if not level(of_box):
            np.testing.assert_allclose(delta[4:], expected, atol=1e-3)
    decoded = np.asarray(decode(anchors, deltas))
    assert (decoded[:, 2] >= decoded[:, 3]).all()
    overlaps = oriented.paired_iou(np.float64(decoded), np.float64(boxes))
    assert overlaps.min() > 0.8
    assert overlaps[[not level(of_box) for of_box in corners]].min(initial=1) > 0.999


def test_leading_axes_are_kept(rng):
    anchors, boxes = jnp.asarray(plain.some_boxes(rng, 12) + np.float32([0, 0, 2, 2])), reference.some_boxes(rng, 12)
    plain.assert_leading_axes_are_kept(encode, anchors, boxes)
    plain.assert_leading_axes_are_kept(decode, anchors, encode(anchors, boxes))


@pytest.mark.parametrize("angle", [0.0, 1e-4, -1e-4, -np.pi / 2, 1e-4 - np.pi / 2, np.pi / 2 - 1e-4])
def test_of_level_corners_the_right_and_the_lower_one_count(angle):
    deltas = encode(np.float32([[0, 0, 20, 20]]), np.float32([[10, 10, 12, 6, angle]]))
    np.testing.assert_allclose(deltas[0, 4:], [1, 1], atol=1e-3)


@pytest.mark.parametrize("quarters", [0, -1])
@pytest.mark.parametrize("long", [20.0, 400.0, 1500.0])
@pytest.mark.parametrize(("lift", "is_level"), [(0.06, True), (-0.06, True), (0.2, False), (-0.2, False), (2.0, False)])
def test_a_box_is_level_by_its_long_side_however_long(quarters, long, lift, is_level):
    """The heights of two corners are compared in pixels: a long box that leans a little is not level."""
    angle = lift / long + quarters * np.pi / 2
    box = np.float64([[2000, 2000, long, 10, angle]])
    corners, centre = oriented.to_polygon(box).reshape(4, 2), box[0, :2]
    size = corners.max(0) - corners.min(0)
    top, right = corners[corners[:, 1].argmin(), 0], corners[corners[:, 0].argmax(), 1]
    expected = (np.array([top, right]) - centre) / size / 0.5
    deltas = encode(np.float32([[1900, 1900, 2100, 2100]]), np.float32(box))
    np.testing.assert_allclose(deltas[0, 4:], [1, 1] if is_level else expected, atol=0.02)


def test_a_parallelogram_becomes_a_rectangle_by_its_longer_diagonal():
    anchors, deltas = np.float32([[0, 0, 20, 10]]), np.float32([[0, 0, 0, 0, 0.5, 2]])  # a quarter; beyond the corner
    # Corners: (15, 0) and its opposite, (20, 10) and its opposite; half diagonals (5, -5) and (10, 5).
    longer = np.hypot(10, 5)
    up, right = np.array([5, -5]) / np.hypot(5, 5) * longer, np.array([10, 5])
    w, h = np.linalg.norm(right - up), np.linalg.norm(right + up)
    found = np.asarray(decode(anchors, deltas))[0]
    np.testing.assert_allclose(found[:4], [10, 5, max(w, h), min(w, h)], rtol=1e-4)
    np.testing.assert_allclose(np.tan(found[4]), (right + up)[1] / (right + up)[0], rtol=1e-4)


def test_empty_boxes_have_finite_values_and_gradients():
    anchors = jnp.array([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 5.0], [1.0, 1.0, 4.0, 4.0]])
    boxes = jnp.array([[1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 4.0, 0.0, 0.5], [1.0, 1.0, 4.0, 4.0, -1.0]])

    def everything(anchors, boxes):
        deltas = midpoint_offset.encode(anchors, boxes, STDS)
        return deltas.sum() + midpoint_offset.decode(anchors, deltas, STDS).sum()

    value, gradients = jax.jit(jax.value_and_grad(everything, (0, 1)))(anchors, boxes)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
