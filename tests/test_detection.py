"""Several views of a picture find what one finds, in its place, once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.boxes import kinds
from cfinet_jax.detection import detection, mirror, view_of
from cfinet_jax.errors import UserError
from cfinet_jax.metrics.merging import in_image
from cfinet_jax.metrics.merging import merge as merge_on_host
from cfinet_jax.ops import nms
from cfinet_jax.structures import Detections, Proposals, without_truth
from tests import tiny

SIZE = 40, 50  # of the pictures, inside windows of 64 x 64
VIEWS = "plain", "flip", "vertical", "scale:1.5", "flip:1.5", "vertical:0.5"
BOXES = {
    4: [[4.0, 6.0, 20.0, 16.0], [30.0, 20.0, 42.0, 36.0]],
    5: [[12.0, 11.0, 16.0, 6.0, 0.4], [34.0, 28.0, 9.0, 5.0, -1.2]],
}


class Finder:
    """Stands for a detector: finds the brightest pixel, and boxes that depend on where the picture is said to be."""

    def __init__(self, most: int) -> None:
        self.roi_head = type("Head", (), {"max_detections": most})

    def apply(self, variables, batch, method):
        assert method == "detect"

        def of_image(image):
            place = jnp.stack(jnp.unravel_index(image[..., 0].argmax(), image.shape[:2]))[::-1].astype(jnp.float32)
            box = jnp.concatenate([place, place + 1])[None]
            return box

        boxes = jax.vmap(of_image)(batch.images)
        ones = jnp.ones(boxes.shape[:2])
        found = Detections(boxes, ones * 0.9, jnp.zeros(ones.shape, jnp.int32), ones > 0)
        return found, Proposals(boxes, ones, ones > 0)


def config_of(*views: str):
    config = tiny.tiny_config()
    config.dataset.update(stored_size=tiny.SHAPE, mean=(0.0,) * 3, std=(1.0,) * 3)
    config.prediction.views = views
    return config


@pytest.mark.parametrize("view", VIEWS)
def test_a_pixel_is_found_in_its_place_in_every_view(view):
    image = np.zeros((1, *tiny.SHAPE, 3), np.uint8)
    image[0, 10:12, 32:34] = 200  # two pixels, so that half of them is one
    batch = without_truth(jnp.asarray(image), jnp.array([SIZE], jnp.float32), jnp.ones(1))
    found, proposals = detection(Finder(1), config_of(view))({}, batch)
    middle = (found.boxes[0, 0, :2] + found.boxes[0, 0, 2:]) / 2
    np.testing.assert_allclose(middle, (33, 11), atol=1)
    np.testing.assert_array_equal(proposals.boxes, found.boxes)


@pytest.mark.parametrize("axis", [0, 1])
def test_mirror_images_are_those_of_numpy_and_their_own_inverse(axis, rng):
    image = np.zeros((*tiny.SHAPE, 3), np.float32)
    image[: SIZE[0], : SIZE[1]] = rng.normal(size=(*SIZE, 3))
    expected = np.zeros_like(image)
    expected[: SIZE[0], : SIZE[1]] = np.flip(image[: SIZE[0], : SIZE[1]], axis)
    turned = mirror(jnp.asarray(image), jnp.array(SIZE, jnp.float32), axis)
    np.testing.assert_array_equal(turned, expected)
    np.testing.assert_array_equal(mirror(turned, jnp.array(SIZE, jnp.float32), axis), image)


@pytest.mark.parametrize("numbers", [4, 5])
@pytest.mark.parametrize("axis", [0, 1])
def test_boxes_are_mirrored_with_the_picture(numbers, axis):
    boxes, size = jnp.array(BOXES[numbers]), jnp.array(SIZE, jnp.float32)
    turned = kinds.mirror(boxes, size, axis)
    hull, hulls = np.asarray(kinds.enclose(turned)), np.array(kinds.enclose(boxes))
    side = SIZE[axis]
    places = [1, 3] if axis == 0 else [0, 2]
    hulls[:, places] = side - hulls[:, places[::-1]]
    np.testing.assert_allclose(hull, hulls, atol=1e-4)
    np.testing.assert_allclose(kinds.mirror(turned, size, axis), boxes, atol=1e-5)


@pytest.mark.parametrize("numbers", [4, 5])
@pytest.mark.parametrize("most", [4, 100])
def test_detections_are_merged_as_those_of_windows(numbers, most, rng):
    count = 60
    boxes = np.concatenate([rng.uniform(0, 30, (count, 2)), rng.uniform(8, 20, (count, 2))], 1).astype(np.float32)
    boxes = np.concatenate([boxes, rng.uniform(-1.5, 1.5, (count, 1))], 1) if numbers == 5 else boxes
    boxes[:, 2:4] = np.sort(boxes[:, 2:4])[:, ::-1] if numbers == 5 else boxes[:, :2] + boxes[:, 2:4]
    found = Detections(
        jnp.asarray(boxes, jnp.float32),
        jnp.asarray(rng.permutation(count) / count, jnp.float32),
        jnp.asarray(rng.integers(0, 3, count), jnp.int32),
        jnp.asarray(rng.random(count) < 0.8),
    )
    batch = jax.tree.map(lambda x: np.asarray(x)[None], found)
    expected = merge_on_host([in_image(batch, 0)], np.zeros((1, 2), int), 0.3)
    got = jax.tree.map(np.asarray, nms.merge(found, 0.3, most))
    assert len(got.scores) == min(most, count) and 4 < len(expected.scores) < found.valid.sum()
    shown = slice(0, min(most, len(expected.scores)))
    np.testing.assert_array_equal(got.scores[got.valid], expected.scores[shown])
    np.testing.assert_array_equal(got.labels[got.valid], expected.labels[shown])
    np.testing.assert_allclose(got.boxes[got.valid], expected.boxes[shown])


def test_views_are_merged_into_as_many_detections_as_one_view_has():
    image = np.zeros((2, *tiny.SHAPE, 3), np.uint8)
    image[:, 10:12, 32:34] = 200
    batch = without_truth(jnp.asarray(image), jnp.array([SIZE] * 2, jnp.float32), jnp.ones(2))
    config = config_of("plain", "flip", "vertical")
    config.prediction.merge_overlap = 0.1
    found, _ = detection(Finder(1), config)({}, batch)
    alone, _ = detection(Finder(1), config_of("plain"))({}, batch)
    assert found.boxes.shape == alone.boxes.shape
    np.testing.assert_array_equal(found.boxes, alone.boxes)


@pytest.mark.parametrize("name", ["upside down", "scale", "flip:0", "flip:nan", "flip:x", "scale:11", ""])
def test_a_view_that_does_not_exist_is_refused(name):
    with pytest.raises(UserError, match=f"prediction.views has {name!r}: choose from plain, flip"):
        view_of(name)
