"""The anchor grid against the reference's and against a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.boxes import horizontal
from cfinet_jax.boxes.anchors import anchor_grid, best_overlap, octave_shapes


def test_grid_agrees_with_the_reference(golden):
    data = golden("anchors")
    for case in range(int(data["n_cases"])):
        for level, stride in enumerate((4, 8, 16, 32)):
            rows, columns = data[f"c{case}_size_l{level}"]
            ours = anchor_grid((int(rows), int(columns)), stride, 2.0, (1.0,))
            np.testing.assert_array_equal(ours, data[f"c{case}_anchors_l{level}"])


def test_grid_equals_the_loop():
    stride, scale, ratios = 8, 3.0, (0.5, 1.0, 2.0)
    expected = []
    for i in range(3):
        for j in range(5):
            for ratio in ratios:
                width = scale * stride / ratio**0.5
                height = width * ratio
                x, y = j * stride, i * stride
                expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    np.testing.assert_allclose(anchor_grid((3, 5), stride, scale, ratios), expected, rtol=1e-6, atol=1e-5)


def test_ratio_is_height_over_width_and_area_is_kept():
    for ratio in (0.5, 1.0, 2.0):
        (x1, y1, x2, y2) = anchor_grid((1, 1), 16, 2.0, (ratio,))[0]
        np.testing.assert_allclose((y2 - y1) / (x2 - x1), ratio, rtol=1e-5)
        np.testing.assert_allclose((y2 - y1) * (x2 - x1), 32.0**2, rtol=1e-5)


@pytest.mark.parametrize("stride", [4, 16])
@pytest.mark.parametrize(("scale", "ratios"), [(2.0, (1.0,)), (3.0, (0.5, 1.0, 2.0)), (0.7, (4.0,))])
def test_the_best_anchor_is_that_of_the_whole_grid(rng, stride, scale, ratios):
    shape = (96 // stride, 128 // stride)
    corners, sizes = rng.uniform(-10, 120, (200, 2)), rng.uniform(1, 60, (200, 2))  # some beyond the grid
    boxes = np.concatenate([corners, corners + sizes], axis=1)
    grid = anchor_grid(shape, stride, scale, ratios)
    expected = horizontal.iou(jnp.asarray(boxes, jnp.float32), jnp.asarray(grid)).max(1)
    np.testing.assert_allclose(best_overlap(boxes, shape, stride, scale, ratios), expected, atol=1e-5)


def test_an_object_that_is_an_anchor_overlaps_it_wholly():
    grid = anchor_grid((3, 5), 8, 2.0, (0.5, 2.0))
    np.testing.assert_allclose(best_overlap(grid, (3, 5), 8, 2.0, (0.5, 2.0)), 1, rtol=1e-5)
    assert best_overlap(np.zeros((0, 4)), (3, 5), 8, 2.0, (1.0,)).shape == (0,)


def test_shapes_of_an_octave_stretch_a_square_to_every_size_and_ratio():
    square = jnp.array([[2.0, 2.0, 10.0, 10.0]])
    shapes = octave_shapes(3, (0.5, 1.0, 2.0))
    expected = [(size / ratio**0.5, size * ratio**0.5) for size in (8, 8 * 2 ** (1 / 3), 8 * 2 ** (2 / 3))
                for ratio in (0.5, 1, 2)]  # fmt: skip
    for shape, sides in zip(shapes, expected, strict=True):
        centre, size = horizontal.centre_size(horizontal.stretch(square, shape))
        np.testing.assert_allclose(centre, [[6, 6]], rtol=1e-6)
        np.testing.assert_allclose(size, [sides], rtol=1e-5)
