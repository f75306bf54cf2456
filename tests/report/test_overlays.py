"""Overlays: every kind of box, the legend, and files."""

import cv2
import numpy as np
import pytest

from cfinet_jax.report.overlays import PALETTE, draw_overlay, write_overlays

CLASSES = {3: "car", 7: "person"}


def scene(height: int = 100, width: int = 150) -> np.ndarray:
    return np.random.default_rng(0).integers(90, 110, (height, width, 3), dtype=np.uint8)


def box(category_id: int, x: float, y: float, side: float, **extra) -> dict:
    return {"category_id": category_id, "bbox": [x, y, side, side], **extra}


def overlay(detections=(), ground_truth=(), min_score=0.3) -> np.ndarray:
    return draw_overlay(scene(), list(detections), list(ground_truth), CLASSES, min_score)


def test_small_pictures_are_enlarged_and_get_a_legend():
    picture = overlay()
    assert picture.shape[1] == 450 and picture.shape[0] > 300 and picture.dtype == np.uint8
    assert draw_overlay(scene(40, 2500), [], [], CLASSES, 0.3).shape[1] == 2500


def test_strong_detections_have_the_colour_of_their_class():
    picture = overlay([box(3, 20, 40, 8, score=0.9), box(7, 60, 40, 8, score=0.8)])
    assert tuple(picture[3 * 48 + 1, 3 * 24]) == PALETTE[0] and tuple(picture[3 * 48 + 1, 3 * 64]) == PALETTE[1]
    weak = box(3, 20, 40, 8, score=0.29)
    np.testing.assert_array_equal(overlay([weak]), overlay())
    assert (overlay([weak], min_score=0.2)[:300] != overlay()[:300]).any()


def test_ground_truth_is_dashed_over_its_detection():
    edge = overlay([box(3, 20, 40, 8, score=0.9)], [box(3, 20, 40, 8)])[3 * 48, 3 * 20 : 3 * 28 + 1]
    assert {tuple(pixel) for pixel in edge.tolist()} == {(255, 255, 255), (0, 0, 0)}


@pytest.mark.parametrize("region", [box(3, 50, 30, 30, ignore=1), box(3, 50, 30, 30, iscrowd=1), box(99, 50, 30, 30)])
def test_regions_are_hatched(region):
    changed = (overlay([], [region])[:300] != overlay()[:300]).any(axis=-1)
    assert changed[95:175, 155:235].mean() > 0.9 and not changed[:, :149].any()
    stripes = (overlay([], [region])[95:175, 155:235] == 210).all(axis=-1).mean()
    assert 0.1 < stripes < 0.2


def test_boxes_at_and_beyond_the_border_are_drawn():
    picture = overlay([box(3, -5, -5, 20, score=0.9)], [box(7, 140, 90, 30), box(99, 145, -10, 20)])
    assert picture.shape == overlay([box(3, 5, 5, 20, score=0.9)], [box(7, 40, 9, 30)]).shape


def test_overlays_are_written_and_inputs_stay_unchanged(tmp_path):
    image, detections, ground_truth = scene(), [box(3, 20, 40, 8, score=0.9)], [box(7, 60, 60, 8)]
    write_overlays(tmp_path / "overlays", [("first", image, detections, ground_truth)], CLASSES, 0.3)
    written = cv2.imread(str(tmp_path / "overlays" / "first.png"))
    np.testing.assert_array_equal(written[..., ::-1], draw_overlay(scene(), detections, ground_truth, CLASSES, 0.3))
    np.testing.assert_array_equal(image, scene())


def test_oriented_boxes_are_drawn_at_their_angle():
    """There is a diagonal line of pixels, and nothing at the corners of the upright box around it."""
    found = {"category_id": 3, "bbox": [60, 50, 40, 6, np.pi / 4], "score": 0.9}
    region = {"category_id": 99, "bbox": [86, 36, 28, 28], "rbox": [100, 50, 34, 6, -np.pi / 4]}
    changed = (overlay([found], [region])[:300] != overlay()[:300]).any(axis=-1)
    assert changed[3 * 50 - 12 : 3 * 50 + 12, 3 * 60 - 12 : 3 * 60 + 12].any()
    assert not changed[3 * 60 : 3 * 66, 3 * 44 : 3 * 52].any()  # below, to the left
    assert changed[3 * 50, 3 * 100] and not changed[3 * 38 : 3 * 42, 3 * 86 : 3 * 92].any()
