"""The adaptive convolution against the reference's numbers, a plain loop and an ordinary convolution."""

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax.boxes.anchors import anchor_grid
from cfinet_jax.ops.deformable import deformable_conv, grouped_conv, offset_points, tap_points
from tests import plain

TAPS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]


def grid_of(rows: int, columns: int) -> np.ndarray:
    """Cells (row, column) as points `[rows * columns, 2]`."""
    return np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)


def test_taps_sit_on_the_box_row_by_row():
    points = tap_points(jnp.array([[8.0, 16.0, 24.0, 48.0]]), 8)  # x 1..3, y 2..6 in cells
    expected = [(y, x) for y in (2, 4, 6) for x in (1, 2, 3)]
    np.testing.assert_allclose(points[:, 0], expected)


def test_taps_agree_with_the_offsets_of_the_reference(golden):
    data = golden("anchor_offset")
    for case in range(int(data["n_cases"])):
        for level, stride in enumerate(data["strides"]):
            rows, columns = data[f"c{case}_size_l{level}"]
            for boxes, offset in zip(data[f"c{case}_boxes_l{level}"], data[f"c{case}_offset_l{level}"], strict=True):
                regular = grid_of(rows, columns)[None] + np.array(TAPS)[:, None]
                ours = np.asarray(tap_points(jnp.asarray(boxes), int(stride))) - regular
                np.testing.assert_allclose(ours.transpose(1, 0, 2).reshape(-1, 18), offset, rtol=1e-4, atol=1e-4)


def test_an_unmoved_anchor_of_scale_two_gives_an_ordinary_convolution(rng):
    x, kernel = rng.normal(size=(5, 6, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    points = tap_points(jnp.asarray(anchor_grid((5, 6), 8, 2.0, (1.0,))), 8)
    expected = plain.convolve(x[None], kernel)[0]
    np.testing.assert_allclose(jax.jit(deformable_conv)(x, kernel, points), expected, rtol=1e-4, atol=1e-4)


def test_convolution_at_arbitrary_points_equals_the_loop(rng):
    x, kernel = rng.normal(size=(4, 5, 2)).astype(np.float32), rng.normal(size=(3, 3, 2, 3)).astype(np.float32)
    points = rng.uniform(-2, 6, (9, 20, 2)).astype(np.float32)
    expected = np.zeros((20, 3))
    for tap in range(9):
        for cell in range(20):
            expected[cell] += plain.bilinear(x, *points[tap, cell]) @ kernel[tap // 3, tap % 3]
    ours = jax.jit(deformable_conv)(x, kernel, points).reshape(20, 3)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def compare_with_the_reference(data: dict, prefix: str, points: np.ndarray, of_offset: np.ndarray) -> None:
    """Values and gradients of all images at `points` `[images, 9, cells, 2]`; of the points it is `of_offset`."""
    x = jnp.asarray(data[f"{prefix}_x"].transpose(0, 2, 3, 1))
    kernel = jnp.asarray(data[f"{prefix}_weight"].transpose(2, 3, 1, 0))
    y, pull = jax.vjp(jax.vmap(deformable_conv, (0, None, 0)), x, kernel, jnp.asarray(points, jnp.float32))
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(y, data[f"{prefix}_y"].transpose(0, 2, 3, 1), **close)
    of_x, of_kernel, of_points = pull(jnp.asarray(data[f"{prefix}_gy"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(of_x, data[f"{prefix}_gx"].transpose(0, 2, 3, 1), **close)
    np.testing.assert_allclose(of_kernel, data[f"{prefix}_gweight"].transpose(2, 3, 1, 0), **close)
    limit = np.array(x.shape[1:3])
    bend = ((points == -1) | (points == limit)).any(-1, keepdims=True)  # there the reference takes it for outside
    np.testing.assert_allclose(np.where(bend, 0, of_points), np.where(bend, 0, of_offset), **close)


def test_adaptive_convolution_and_its_gradients_agree_with_the_reference(golden):
    data = golden("deform_conv")
    points = [tap_points(jnp.asarray(boxes), int(data["a_stride"])) for boxes in data["a_boxes"]]
    cells = points[0].shape[1]
    of_offset = data["a_goffset"].reshape(2, cells, 9, 2).transpose(0, 2, 1, 3)
    compare_with_the_reference(data, "a", np.stack(points), of_offset)


def test_convolution_with_given_offsets_agrees_with_the_reference(golden):
    data = golden("deform_conv")
    rows, columns = data["c_x"].shape[2:]
    offsets, of_offset = (
        data[f"c_{name}"].reshape(2, 9, 2, rows * columns).transpose(0, 1, 3, 2) for name in ("offset", "goffset")
    )
    compare_with_the_reference(data, "c", grid_of(rows, columns) + np.array(TAPS)[:, None] + offsets, of_offset)


def test_learnt_offsets_and_their_gradients_agree_with_the_reference(golden):
    data = golden("deform_conv")
    x, offsets = (data[f"c_{name}"].transpose(0, 2, 3, 1) for name in ("x", "offset"))
    kernel = jnp.asarray(data["c_weight"].transpose(2, 3, 1, 0))

    def convolve(x, offsets):
        return grouped_conv(x, kernel, offset_points(offsets, 1))

    y, pull = jax.vjp(jax.vmap(convolve), jnp.asarray(x), jnp.asarray(offsets))
    of_x, of_offsets = pull(jnp.asarray(data["c_gy"].transpose(0, 2, 3, 1)))
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(y, data["c_y"].transpose(0, 2, 3, 1), **close)
    np.testing.assert_allclose(of_x, data["c_gx"].transpose(0, 2, 3, 1), **close)
    expected = data["c_goffset"].transpose(0, 2, 3, 1)
    points = np.asarray(jax.vmap(lambda each: offset_points(each, 1)[0])(offsets))  # image, tap, cell, y and x
    on_the_edge = (points == -1).any(-1).transpose(0, 2, 1).repeat(2, -1).reshape(expected.shape)
    assert 0 < on_the_edge.sum() < 30  # there the value has a kink, and the reference takes the slope outside
    np.testing.assert_allclose(np.where(on_the_edge, 0, of_offsets), np.where(on_the_edge, 0, expected), **close)


def test_groups_of_channels_have_their_own_offsets(rng):
    x, kernel = rng.normal(size=(3, 4, 6)).astype(np.float32), rng.normal(size=(3, 3, 6, 2)).astype(np.float32)
    offsets = rng.normal(size=(3, 4, 3 * 18)).astype(np.float32)
    expected = np.zeros((3, 4, 2))
    for row, column in grid_of(3, 4):
        for channel in range(6):
            group = channel // 2
            for tap, (down, right) in enumerate(TAPS):
                moved = offsets[row, column, 18 * group + 2 * tap :][:2]
                read = plain.bilinear(x[..., channel, None], row + down + moved[0], column + right + moved[1])
                expected[row, column] += read @ kernel[tap // 3, tap % 3, channel, None]
    ours = jax.jit(lambda *a: grouped_conv(a[0], a[1], offset_points(a[2], 3)))(x, kernel, offsets)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
