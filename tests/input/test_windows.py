"""SODA-D's training windows: the numbers of the reference, and rules that hold for every picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.input.windows import (
    boxes_in_window,
    column_by_column,
    cut_window,
    fill,
    training_windows,
    window_origins,
)
from cfinet_jax.structures import CUT_OFF

GOLDEN = Path(__file__).parents[1] / "golden"
WINDOW, OVERLAP = (800, 800), (150, 150)
IGNORE = 10  # the category of regions


def load(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def raw_images() -> list[tuple[dict, np.ndarray, np.ndarray, list[int]]]:
    """Every image of the input with the boxes of its objects and regions, and the categories of the objects."""
    content = load("split_input")
    images = []
    for image in content["images"]:
        mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        categories = np.array([entry["category_id"] for entry in mine])
        boxes = np.array([entry["bbox"] for entry in mine])
        boxes[:, 2:] += boxes[:, :2]
        is_object = categories != IGNORE
        images.append((image, boxes[is_object], boxes[~is_object], categories[is_object].tolist()))
    return images


def origins_of(mode: str, image: dict, objects: np.ndarray, regions: np.ndarray) -> np.ndarray:
    size = (image["height"], image["width"])
    if mode == "train":
        return training_windows(size, objects, regions, WINDOW, OVERLAP)
    return column_by_column(window_origins(size, WINDOW, OVERLAP))


@pytest.mark.parametrize("mode", ["train", "val"])
def test_windows_and_their_boxes_equal_the_reference(mode):
    expected = load(f"split_expected_{mode}")
    windows, entries = [], []
    for image, objects, regions, categories in raw_images():
        for number, origin in enumerate(origins_of(mode, image, objects, regions)):
            window = len(windows)
            name = f"{Path(image['file_name']).stem}_{number}.jpg"
            windows.append((name, window, image["id"], origin[::-1].tolist()))
            for box, share, category in zip(*boxes_in_window(objects, origin, WINDOW), categories, strict=True):
                if share > 0:
                    entries.append((window, category, bool(share <= CUT_OFF), box))
    assert windows == [(w["file_name"], w["id"], w["ori_id"], w["start_coord"]) for w in expected["images"]]
    keys = ("image_id", "category_id", "ignore")
    # Within a window the reference lists the boxes as the input does.
    assert [entry[:3] for entry in entries] == [tuple(entry[key] for key in keys) for entry in expected["annotations"]]
    corners = np.array([entry[3] for entry in entries])
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    np.testing.assert_allclose(boxes, [entry["bbox"] for entry in expected["annotations"]], rtol=0, atol=1e-9)


def test_boxes_in_float32_give_the_same_windows():
    for image, objects, regions, _ in raw_images():
        exact = origins_of("train", image, objects, regions)
        single = objects.astype(np.float32), regions.astype(np.float32)
        np.testing.assert_array_equal(origins_of("train", image, *single), exact)
    box = np.array([[796.0, 3.1, 806.0, 9.7]], np.float32)
    assert boxes_in_window(box, np.zeros(2, int), WINDOW)[1] <= CUT_OFF  # four tenths


@pytest.mark.parametrize("mode", ["train", "val"])
def test_painted_regions_equal_the_reference(mode, golden):
    masks = golden("split_fill_masks")
    seen = set()
    for image, objects, regions, _ in raw_images():
        white = np.full((image["height"], image["width"], 3), 255, np.uint8)
        whole = white.copy()
        fill(whole, regions, objects)
        for number, origin in enumerate(origins_of(mode, image, objects, regions)):
            name = f"{mode}/{Path(image['file_name']).stem}_{number}.jpg"
            painted = np.unpackbits(masks[name]).reshape(WINDOW).astype(bool)
            np.testing.assert_array_equal(cut_window(whole, origin, WINDOW, "constant")[0][..., 0] == 0, painted)
            window = cut_window(white, origin, WINDOW, "constant")[0].copy()
            fill(window, *(boxes_in_window(boxes, origin, WINDOW)[0] for boxes in (regions, objects)))
            np.testing.assert_array_equal(window[..., 0] == 0, painted)
            seen.add(name)
    assert seen == {name for name in masks if name.startswith(mode)}


def test_a_small_picture_is_one_window_extended_by_black():
    boxes = np.array([[10.0, 20.0, 30.0, 40.0]])
    assert training_windows((500, 700), boxes, boxes[:0], WINDOW, OVERLAP).tolist() == [[0, 0]]
    window, size = cut_window(np.full((500, 700, 3), 9, np.uint8), np.zeros(2, int), WINDOW, "constant")
    assert size == (500, 700)
    assert (window[:500, :700] == 9).all() and not window[500:].any() and not window[:, 700:].any()


def test_only_the_annotated_part_is_covered():
    objects, regions = np.array([[10.0, 10.0, 990.9, 20.0]]), np.array([[5.0, 5.0, 6.0, 1200.7]])
    assert training_windows((3000, 4000), objects, regions, WINDOW, OVERLAP).tolist() == [[0, 0], [0, 195]]
    assert training_windows((3000, 992), objects, regions, WINDOW, OVERLAP).tolist() == [[0, 0], [0, 192]]
    assert len(training_windows((3000, 4000), objects[:0], regions, WINDOW, OVERLAP)) == 0
    assert len(training_windows((3000, 4000), objects[:0], regions[:0], WINDOW, OVERLAP)) == 0


@given(st.integers(0, 2**32 - 1))
def test_every_object_no_larger_than_the_overlap_is_whole_in_a_training_window(seed):
    rng = np.random.default_rng(seed)
    size = rng.integers(30, 400, 2)
    corner = rng.uniform(0, size[::-1] - 21, (rng.integers(1, 9), 2))
    objects = np.concatenate([corner, corner + rng.uniform(1, 20, corner.shape)], axis=1)
    origins = training_windows(tuple(size.tolist()), objects, objects[:0], (80, 80), (20, 20))
    shares = np.array([boxes_in_window(objects, origin, (80, 80))[1] for origin in origins])
    np.testing.assert_allclose(shares.max(axis=0), 1)
    assert (shares.max(axis=1) > 0).all() and len(np.unique(origins, axis=0)) == len(origins)
