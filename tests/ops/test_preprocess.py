"""The picture on the device against a plain loop: resized, mirrored, normalised, zero around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.boxes import oriented
from cfinet_jax.ops import preprocess
from cfinet_jax.structures import Batch, GroundTruth
from tests import plain

MEAN, STD = (120.0, 110.0, 100.0), (50.0, 60.0, 70.0)


def prepare_loop(image: np.ndarray, size: np.ndarray, scale: float, flip: bool, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear with half-pixel centres, the border repeated; then mirrored, then normalised."""
    height, width = (round(float(extent) * scale) for extent in size)
    result = np.zeros((*shape, 3))
    for i in range(height):
        for j in range(width):
            y = np.clip((i + 0.5) / scale - 0.5, 0, image.shape[0] - 1)
            x = np.clip((j + 0.5) / scale - 0.5, 0, image.shape[1] - 1)
            pixel = plain.bilinear(image.astype(float), y, x)
            result[i, width - 1 - j if flip else j] = (pixel - MEAN) / STD
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("scale", "size", "shape"),
    [(1.5, (8, 6), (16, 12)), (1.5, (6, 4), (16, 12)), (0.75, (8, 6), (8, 8)), (1.0, (7, 5), (12, 10))]
    + [(1.5, (7, 5), (16, 12)), (0.75, (7, 5), (8, 8)), (0.6, (8, 6), (8, 8)), (1.3, (7, 6), (16, 12))],
)
def test_picture_equals_the_loop(rng, scale, size, shape, flip):
    image = rng.integers(0, 256, (8, 6, 3)).astype(np.uint8)
    image[size[0] :] = image[size[0] - 1]  # the host repeats the border
    image[:, size[1] :] = image[:, size[1] - 1 : size[1]]
    ours = preprocess.prepare_image(
        jnp.asarray(image), jnp.array(size, jnp.float32), jnp.array(scale), jnp.array(flip),
        resize=scale != 1.0, shape=shape, mean=MEAN, std=STD,
    )  # fmt: skip
    expected = prepare_loop(image, np.array(size), scale, flip, shape)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_boxes_are_scaled_then_mirrored():
    boxes = jnp.array([[10.0, 20.0, 30.0, 60.0]])
    size, scale = jnp.array([200.0, 100.0]), jnp.array(1.5)
    np.testing.assert_allclose(preprocess.prepare_boxes(boxes, size, scale, jnp.array(False)), [[15, 30, 45, 90]])
    np.testing.assert_allclose(preprocess.prepare_boxes(boxes, size, scale, jnp.array(True)), [[105, 30, 135, 90]])


@pytest.mark.parametrize(
    ("size", "scale", "rounded"),
    [((20, 101), 1.3, (26, 131)), ((33, 7), 0.75, (25, 5)), ((11, 9), 1.5, (16, 14)), ((5, 3), 0.3, (2, 1))],
)
def test_a_size_with_a_fraction_is_rounded_wherever_it_counts(size, scale, rounded):
    """The picture, the size that the detector is told and the edge at which boxes are mirrored agree."""
    batch = Batch(
        jnp.full((2, 33, 101, 3), 255, jnp.uint8), jnp.array([size] * 2, jnp.float32), jnp.full(2, scale, jnp.float32),
        jax.tree.map(lambda x: jnp.stack([x, x]), plain.ground_truth([[0, 1, 2, 3]])),
        *[jnp.zeros(2, jnp.int32)] * 3, jnp.ones(2, bool),
    )  # fmt: skip
    prepared = preprocess.prepare(
        batch, jnp.array([False, True]), resize=True, shape=(48, 144), mean=(0.0,) * 3, std=(255.0,) * 3
    )
    np.testing.assert_array_equal(prepared.sizes, [rounded] * 2)
    for image, box in zip(np.asarray(prepared.images), prepared.ground_truth.boxes[:, 0], strict=True):
        assert tuple(np.argwhere(image[..., 0] > 0.5).max(0) + 1) == rounded
        edge = box[0] if box[0] == 0 else rounded[1] - box[2]
        np.testing.assert_allclose([edge, *box[1::2]], [0, scale, 3 * scale], atol=1e-4)


def test_oriented_boxes_are_scaled_then_mirrored_and_back():
    boxes = jnp.array([[20.0, 40.0, 30.0, 10.0, 0.5]])
    size, scale = jnp.array([200.0, 100.0]), jnp.array(1.5)
    scaled = preprocess.prepare_boxes(boxes, size, scale, jnp.array(False))
    np.testing.assert_allclose(scaled, [[30, 60, 45, 15, 0.5]])
    mirrored = preprocess.prepare_boxes(boxes, size, scale, jnp.array(True))
    np.testing.assert_allclose(mirrored, [[120, 60, 45, 15, -0.5]])
    np.testing.assert_allclose(preprocess.restore_boxes(scaled, scale), boxes)


def test_oriented_boxes_and_their_hulls_stay_together():
    boxes = jnp.array([[[12.0, 10.0, 8.0, 4.0, 0.5]]] * 2)
    some, numbers = jnp.ones((2, 1), bool), jnp.zeros(2, jnp.int32)
    truth = GroundTruth(oriented.enclose(boxes), jnp.zeros((2, 1), jnp.int32), some, ~some, boxes)
    images, sizes = jnp.zeros((2, 20, 30, 3), jnp.uint8), jnp.array([[20.0, 26.0]] * 2)
    batch = Batch(images, sizes, jnp.full(2, 1.5), truth, numbers, numbers, numbers, numbers == 0)
    prepared = preprocess.prepare(
        batch, jnp.array([False, True]), resize=True, shape=(32, 64), mean=(0.0,) * 3, std=(1.0,) * 3
    ).ground_truth
    np.testing.assert_allclose(prepared.oriented[:, 0], [[18, 15, 12, 6, 0.5], [21, 15, 12, 6, -0.5]])
    np.testing.assert_allclose(prepared.boxes, oriented.enclose(prepared.oriented), atol=1e-4)


def test_a_box_keeps_its_object_when_flipped():
    """A bright object is where its box says, in either orientation, at any scale."""
    images = np.zeros((2, 20, 30, 3), np.uint8)
    images[:, 4:8, 3:9] = 255
    truth = plain.ground_truth([[3, 4, 9, 8]])
    batch = Batch(
        jnp.asarray(images), jnp.array([[20.0, 26.0]] * 2), jnp.array([2.0, 2.0]),
        jax.tree.map(lambda x: jnp.stack([x, x]), truth), *[jnp.zeros(2, jnp.int32)] * 3, jnp.ones(2, bool),
    )  # fmt: skip
    prepared = preprocess.prepare(
        batch, jnp.array([False, True]), resize=True, shape=(64, 64), mean=(0.0,) * 3, std=(255.0,) * 3
    )
    np.testing.assert_allclose(prepared.sizes, [[40, 52]] * 2)
    np.testing.assert_allclose(prepared.ground_truth.boxes[:, 0], [[6, 8, 18, 16], [34, 8, 46, 16]])
    for image, box in zip(np.asarray(prepared.images), np.asarray(prepared.ground_truth.boxes[:, 0]), strict=True):
        bright = np.argwhere(image[..., 0] > 0.5)
        np.testing.assert_allclose([*bright.min(0)[::-1], *bright.max(0)[::-1] + 1], box)
