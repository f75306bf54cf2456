"""Detections as arrays and as JSON in COCO's results format."""

import json
import tracemalloc

import numpy as np
import pytest

from cfinet_jax.metrics.results import Columns, columns, columns_of_image, entries, joined, write_coco


def some(count: int) -> Columns:
    random = np.random.default_rng(0)
    boxes = random.uniform(0, 4000, (count, 4))
    return columns_of_image(boxes, random.random(count, np.float32), random.integers(1, 10, count), 7)


def test_corners_become_sides():
    found = columns_of_image(np.array([[1, 2, 4.0004, 8]], np.float32), np.array([0.5], np.float32), np.array([3]), 9)
    assert list(entries(found)) == [{"image_id": 9, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}]
    nothing = columns_of_image(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, int), 10)
    assert len(joined([nothing, found, nothing]).scores) == 1 and list(entries(nothing)) == []


@pytest.mark.parametrize("count", [0, 1, 5000])  # 5000: more than one chunk
def test_written_detections_are_read_back(tmp_path, count):
    found, path = some(count), tmp_path / "detections.json"
    write_coco(found, path)
    content = json.loads(path.read_text())
    assert content == list(entries(found))
    for again, column in zip(columns(content), found, strict=True):
        np.testing.assert_array_equal(again, column)


def test_writing_many_takes_no_more_memory(tmp_path):
    found = some(50_000)  # as Python objects about 25 MB
    tracemalloc.start()
    try:
        write_coco(found, tmp_path / "detections.json")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_detections_below_a_score_can_be_dropped():
    found = some(100)
    sure = found.at_least(0.5)
    assert (sure.scores >= 0.5).all() and len(sure.scores) == (found.scores >= 0.5).sum()
    assert set(sure.boxes[:, 0]) <= set(found.boxes[:, 0])
