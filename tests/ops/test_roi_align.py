"""RoIAlign against a plain loop and the reference's numbers, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax.boxes import horizontal
from cfinet_jax.ops.roi_align import pyramid_levels, roi_align
from tests import plain


def pool_loop(feature: np.ndarray, box: np.ndarray, stride: int, size: int, max_grid: int) -> np.ndarray:
    """One box of one map, by the definition of the adaptive sampling grid."""
    limit = np.array(feature.shape[:2])
    start = box[1::-1] / stride - 0.5
    extent = np.maximum((box[2:] - box[:2])[::-1] / stride, 0)
    grid = np.minimum(np.ceil(extent / size), max_grid).astype(int)
    pooled = np.zeros((size, size, feature.shape[2]))
    for row in range(size):
        for column in range(size):
            for i in range(grid[0]):
                for j in range(grid[1]):
                    inside = (np.array([i, j]) + 0.5) / grid
                    point = start + (np.array([row, column]) + inside) * extent / size
                    if (point >= -1).all() and (point <= limit).all():
                        pooled[row, column] += plain.bilinear(feature, *np.clip(point, 0, limit - 1)) / grid.prod()
    return pooled


def test_pooling_equals_the_loop(rng):
    pyramid = [rng.normal(size=(8, 10, 2)).astype(np.float32), rng.normal(size=(4, 5, 2)).astype(np.float32)]
    boxes = np.float32([
        [3, 5, 21, 30], [0, 0, 40, 32], [-9, -7, 12, 15], [30, 25, 55, 44], [10, 10, 10, 20], [20, 8, 15, 12],
        [-60, -60, -40, -40], [2, 3, 5, 31],
    ])  # fmt: skip
    levels = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int32)
    ours = jax.jit(lambda p, b, k: roi_align(p, b, k, (4, 8), size=3, max_grid=3))(pyramid, boxes, levels)
    expected = [pool_loop(pyramid[level], box, (4, 8)[level], 3, 3) for box, level in zip(boxes, levels, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_an_empty_box_reads_nothing_with_a_finite_gradient():
    boxes = jnp.array([[4.0, 4.0, 4.0, 4.0], [9.0, 4.0, 3.0, 2.0]])

    def total(feature, boxes):
        return roi_align([feature], boxes, jnp.zeros(2, jnp.int32), (4,), size=2, max_grid=2).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(jnp.ones((5, 5, 1)), boxes)
    assert value == 0
    assert all((np.asarray(gradient) == 0).all() for gradient in gradients)


def test_boxes_get_no_gradient(rng):
    feature, box = jnp.asarray(rng.normal(size=(6, 6, 1)), jnp.float32), jnp.array([[3.3, 2.1, 17.0, 15.2]])
    gradient = jax.grad(lambda b: roi_align([feature], b, jnp.zeros(1, jnp.int32), (4,), size=2, max_grid=4).sum())
    np.testing.assert_array_equal(gradient(box), np.zeros((1, 4)))


def test_levels_grow_by_the_octave_of_the_side():
    boxes = jnp.array([[0.0, 0.0, side, side] for side in (0, 10, 55, 56, 111, 112, 223, 224, 447, 448, 3000)])
    assert pyramid_levels(horizontal.area(boxes), 56.0, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_levels_agree_with_the_reference(golden):
    data = golden("roi_levels")
    boxes = jnp.asarray(data["rois"][:, 1:])
    np.testing.assert_array_equal(
        pyramid_levels(horizontal.area(boxes), float(data["finest_scale"]), 4), data["levels"]
    )


def compare_with_the_reference(
    maps: list[np.ndarray], gradients: list[np.ndarray], rois: np.ndarray, strides: tuple[int, ...], y: np.ndarray,
    gy: np.ndarray,
) -> None:  # fmt: skip
    """Pools the rois of every image from its maps `[channels, rows, columns]`, and pulls `gy` back."""
    levels = pyramid_levels(horizontal.area(jnp.asarray(rois[:, 1:])), 56.0, len(strides))
    of_level = np.array(strides)[np.asarray(levels)]
    max_grid = int(np.ceil((rois[:, 3:] - rois[:, 1:3]).max(1) / of_level / 7).max())  # what the widest box needs

    @jax.jit
    def pool(pyramid):
        return roi_align(pyramid, jnp.asarray(rois[:, 1:]), levels, strides, size=7, max_grid=max_grid)

    for image in range(maps[0].shape[0]):
        own = rois[:, 0] == image
        pooled, pull = jax.vjp(pool, [jnp.asarray(x[image].transpose(1, 2, 0)) for x in maps])
        close = {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(np.asarray(pooled)[own], y[own].transpose(0, 2, 3, 1), **close)
        upstream = np.where(own[:, None, None, None], gy.transpose(0, 2, 3, 1), 0)
        for ours, expected in zip(pull(jnp.asarray(upstream))[0], gradients, strict=True):
            np.testing.assert_allclose(ours, expected[image].transpose(1, 2, 0), **close)


def test_adaptive_pooling_agrees_with_the_reference(golden):
    data = golden("roi_align")
    stride = int(1 / data["spatial_scale"])
    compare_with_the_reference(
        [data["feat"]], [data["sr0_gfeat"]], data["rois"], (stride,), data["sr0_y"], data["sr0_gy"]
    )


def test_pooling_from_four_levels_agrees_with_the_reference(golden):
    data = golden("roi_align")
    maps, gradients = ([data[f"ml_{name}_l{level}"] for level in range(4)] for name in ("feat", "gfeat"))
    compare_with_the_reference(maps, gradients, data["ml_rois"], (4, 8, 16, 32), data["ml_y"], data["ml_gy"])
