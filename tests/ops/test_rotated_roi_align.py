"""Rotated RoIAlign against a plain loop, and against RoIAlign where a box is upright."""

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax.boxes import horizontal, oriented
from cfinet_jax.ops.roi_align import pyramid_levels, roi_align
from cfinet_jax.ops.rotated_roi_align import rotated_roi_align
from tests import plain
from tests.oriented import some_boxes

STRIDES = (4, 8)


def pool_loop(feature: np.ndarray, box: np.ndarray, stride: int, size: int, grid: int) -> np.ndarray:
    """One box of one map, sample by sample."""
    limit = np.array(feature.shape[:2])
    x, y, w, h = box[:4] / stride
    cos, sin = np.cos(box[4]), np.sin(box[4])
    pooled = np.zeros((size, size, feature.shape[2]))
    for row, column, i, j in np.ndindex(size, size, grid, grid):
        down, along = ((row + (i + 0.5) / grid) / size - 0.5) * h, ((column + (j + 0.5) / grid) / size - 0.5) * w
        point = np.array([y + along * sin + down * cos, x + along * cos - down * sin]) - 0.5
        if (point >= -1).all() and (point <= limit).all():
            pooled[row, column] += plain.bilinear(feature, *np.clip(point, 0, limit - 1)) / grid**2
    return pooled


def make_pyramid(rng: np.random.Generator) -> list[np.ndarray]:
    """Two levels of a picture of 32 x 40 pixels."""
    return [rng.normal(size=(8, 10, 2)).astype(np.float32), rng.normal(size=(4, 5, 2)).astype(np.float32)]


def test_pooling_equals_the_loop(rng):
    pyramid, boxes = make_pyramid(rng), some_boxes(rng, 12, extent=40)
    boxes[-1, :2] = -60
    levels = np.arange(12, dtype=np.int32) % 2
    ours = jax.jit(lambda p, b, k: rotated_roi_align(p, b, k, STRIDES, size=3, grid=2))(pyramid, boxes, levels)
    expected = [pool_loop(pyramid[level], box, STRIDES[level], 3, 2) for box, level in zip(boxes, levels, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_upright_boxes_are_pooled_as_ever(rng):
    pyramid = make_pyramid(rng)
    corner = rng.uniform(-5, 20, (10, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(13, 23, (10, 2))], 1).astype(np.float32)  # two samples per bin
    upright = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], np.zeros((10, 1))], 1)
    levels = np.zeros(10, np.int32)
    expected = jax.jit(lambda p, b, k: roi_align(p, b, k, STRIDES, size=3, max_grid=2))(pyramid, boxes, levels)
    found = jax.jit(lambda p, b, k: rotated_roi_align(p, b, k, STRIDES, size=3, grid=2))(
        pyramid, upright.astype(np.float32), levels
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_map_gets_what_was_read_and_boxes_get_no_gradient(rng):
    boxes = jnp.asarray([[16, 16, 12, 6, 0.7], [20, 14, 0, 0, -0.3], [1e6, 1e6, 9, 3, 0.1]], jnp.float32)

    def total(feature, boxes):
        return rotated_roi_align([feature], boxes, jnp.zeros(3, jnp.int32), (4,), size=2, grid=2).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(jnp.ones((10, 10, 1)), boxes)
    np.testing.assert_allclose(value, 8, rtol=1e-5)  # the third box is outside
    np.testing.assert_allclose(gradients[0].sum(), 8, rtol=1e-5)
    np.testing.assert_array_equal(gradients[1], 0)


def test_levels_go_by_the_area_of_the_box(rng):
    sides = np.float32([10, 56, 111, 112, 500])
    square = np.stack([0 * sides, 0 * sides, sides, sides], 1)
    turned = np.stack([sides, sides, 2 * sides, sides / 2, 0 * sides + 0.4], 1)
    expected = pyramid_levels(horizontal.area(jnp.asarray(square)), 56.0, 4)
    np.testing.assert_array_equal(pyramid_levels(oriented.area(jnp.asarray(turned)), 56.0, 4), expected)
