"""Windows cover every pixel; their detections are merged as the released code merges them, in any order."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cfinet_jax.input.windows import cut_window, window_origins
from cfinet_jax.metrics.merging import in_image, merge, stitch
from cfinet_jax.metrics.results import Found
from cfinet_jax.structures import Detections, Proposals
from tests import plain

SIDES = st.integers(1, 60)


@st.composite
def layouts(draw):
    """Size of a picture, window and overlap."""
    window = draw(st.tuples(st.integers(2, 30), st.integers(2, 30)))
    overlap = tuple(draw(st.integers(0, side - 1)) for side in window)
    return draw(st.tuples(SIDES, SIDES)), window, overlap


@given(layouts())
def test_windows_cover_every_pixel_and_overlap(layout):
    size, window, overlap = layout
    origins = window_origins(*layout)
    seen = np.zeros(size, int)
    for row, column in origins:
        assert (row, column) == (0, 0) or (row + window[0] <= max(size[0], window[0]))
        seen[row : row + window[0], column : column + window[1]] += 1
    assert seen.all()
    for axis in (0, 1):
        starts = np.unique(origins[:, axis])
        assert (np.diff(starts) <= window[axis] - overlap[axis]).all()
        assert starts[-1] == max(size[axis] - window[axis], 0)
    assert len(np.unique(origins, axis=0)) == len(origins)


def test_windows_of_sodad_and_a_refused_overlap():
    origins = window_origins((3000, 4000), (800, 800), (150, 150))
    assert np.unique(origins[:, 0]).tolist() == [0, 650, 1300, 1950, 2200]
    assert np.unique(origins[:, 1]).tolist() == [0, 650, 1300, 1950, 2600, 3200]
    for overlap in ((20, 0), (0, -1), (-1, 0)):
        with pytest.raises(ValueError, match="cannot overlap"):
            window_origins((100, 100), (20, 20), overlap)


@given(layouts())
def test_a_window_shows_its_part_of_the_picture(layout):
    size, window, _ = layout
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    for origin in window_origins(*layout):
        part, (height, width) = cut_window(picture, origin, window)
        assert part.shape == (*window, 3)
        row, column = origin
        np.testing.assert_array_equal(part[:height, :width], picture[row : row + height, column : column + width])
        np.testing.assert_array_equal(part[height:], np.broadcast_to(part[height - 1], part[height:].shape))


def rows(found: Found) -> list[tuple]:
    return sorted(zip(found.labels.tolist(), found.scores.tolist(), map(tuple, found.boxes.tolist()), strict=True))


def test_merging_agrees_with_the_reference(golden):
    data = golden("merge")
    for image in np.unique(data["patch_image_id"]):
        patches = np.flatnonzero(data["patch_image_id"] == image)
        windows = []
        for patch in patches:
            mine = data["patch_index"] == patch
            windows.append(Found(data["det"][mine, :4], data["det"][mine, 4], data["label"][mine]))
        merged = merge(windows, data["patch_start"][patches][:, ::-1], float(data["nms_iou_thr"]))
        of_image = data["merged_image_id"] == image
        detections = data["merged_det"][of_image]
        assert rows(merged) == rows(Found(detections[:, :4], detections[:, 4], data["merged_label"][of_image]))
        assert (np.diff(merged.scores) <= 0).all()


def test_only_valid_rows_of_an_image_are_taken():
    boxes, scores, valid = np.zeros((2, 3, 4)), np.arange(6.0).reshape(2, 3), np.array([[0, 0, 0], [1, 0, 1]], bool)
    for seen, labels in (
        (Detections(boxes, scores, np.full((2, 3), 7), valid), [7, 7]),
        (Proposals(boxes, scores, valid), [0, 0]),
    ):
        found = in_image(seen, 1)
        assert found.scores.tolist() == [3, 5] and found.labels.tolist() == labels and found.boxes.shape == (2, 4)


@pytest.mark.parametrize("numbers", [4, 5])
def test_nothing_merges_to_nothing(numbers):
    empty = Found(np.zeros((0, numbers), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    merged = [merge([empty], np.zeros((1, 2), int), 0.5)]
    if numbers == 4:
        merged += [merge([], np.zeros((0, 2), int), 0.5), stitch([empty], np.zeros((1, 2), int), (8, 8))]
    assert all(found.boxes.shape == (0, numbers) and not len(found.scores) + len(found.labels) for found in merged)


@st.composite
def scattered(draw):
    """Objects of a picture, no larger than the overlap, and the layout of its windows."""
    shared = draw(st.integers(8, 20))
    window = (shared + draw(st.integers(4, 30)), shared + draw(st.integers(4, 30)))
    size = (draw(st.integers(20, 120)), draw(st.integers(20, 120)))
    boxes = []
    for _ in range(draw(st.integers(1, 8))):
        height, width = (draw(st.integers(2, min(shared, side))) for side in size)
        y, x = (draw(st.integers(0, side - extent)) for side, extent in zip(size, (height, width), strict=True))
        boxes.append([x, y, x + width, y + height])
    return size, window, (shared, shared), np.array(boxes, np.float32)


def seen_from(origin, window, boxes, whole: bool) -> Found:
    """The objects in a window, cut by its border; only the whole ones if asked."""
    limits = np.tile([origin[1], origin[0]], 2) + np.array([0, 0, window[1], window[0]])
    cut = np.clip(boxes, np.tile(limits[:2], 2), np.tile(limits[2:], 2))
    kept = (cut[:, 2:] > cut[:, :2]).all(1) & ((cut == boxes).all(1) | (not whole))
    share = (cut[:, 2:] - cut[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    scores = (0.5 + 0.4 * share - 0.001 * np.arange(len(boxes))).astype(np.float32)
    move = np.tile([origin[1], origin[0]], 2)
    return Found((cut - move)[kept].astype(np.float32), scores[kept], np.arange(len(boxes), dtype=np.int32)[kept])


@given(scattered())
def test_objects_no_larger_than_the_overlap_survive_slicing(case):
    size, window, overlap, boxes = case
    origins = window_origins(size, window, overlap)
    whole = merge([seen_from(origin, window, boxes, True) for origin in origins], origins, 0.5)
    order = np.argsort(whole.labels)
    np.testing.assert_array_equal(whole.labels[order], np.arange(len(boxes)))
    np.testing.assert_array_equal(whole.boxes[order], boxes)
    everything = merge([seen_from(origin, window, boxes, False) for origin in origins], origins, 0.5)
    found = {(label, *box) for label, box in zip(everything.labels.tolist(), everything.boxes.tolist(), strict=True)}
    assert {(label, *box) for label, box in enumerate(boxes.tolist())} <= found


@given(scattered())
def test_stitching_keeps_every_object_once_however_close_to_others(case):
    size, window, overlap, boxes = case
    origins = window_origins(size, window, overlap)
    stitched = stitch([seen_from(origin, window, boxes, True) for origin in origins], origins, window)
    order = np.argsort(stitched.labels)
    np.testing.assert_array_equal(stitched.labels[order], np.arange(len(boxes)))
    np.testing.assert_array_equal(stitched.boxes[order], boxes)
    assert (np.diff(stitched.scores) <= 0).all()


@given(scattered(), st.randoms(use_true_random=False))
def test_the_order_of_windows_does_not_matter(case, random):
    size, window, overlap, boxes = case
    origins = window_origins(size, window, overlap)
    windows = [seen_from(origin, window, boxes, False) for origin in origins]
    rng = np.random.default_rng(random.randrange(1000))
    windows = [
        Found(w.boxes, w.scores + rng.uniform(0, 1e-4, len(w.scores)).astype(np.float32), w.labels) for w in windows
    ]
    scores = np.concatenate([w.scores for w in windows])
    assume(len(np.unique(scores)) == len(scores))
    order = rng.permutation(len(origins))
    assert rows(merge(windows, origins, 0.5)) == rows(merge([windows[k] for k in order], origins[order], 0.5))


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.8])
def test_oriented_boxes_are_merged_as_a_greedy_loop_does(rng, overlap):
    windows, origins = [], np.array([[0, 0], [0, 40], [30, 0]])
    for origin in origins:
        sides = np.sort(rng.uniform(6, 30, (40, 2)))[:, ::-1]
        boxes = np.hstack([rng.uniform(0, 60, (40, 2)), sides, rng.uniform(-np.pi / 2, np.pi / 2, (40, 1))])
        same = np.array([50, 45, 24, 10, 0.4]) + rng.normal(0, 0.02, (10, 5))  # in every window
        boxes[::4] = same - [*origin[::-1], 0, 0, 0]
        windows.append(Found(boxes.astype(np.float32), rng.random(40, np.float32), rng.integers(0, 2, 40)))
    merged = merge(windows, origins, overlap)
    everything = [
        (float(score), int(label), box + np.float32([*origin[::-1], 0, 0, 0]))
        for found, origin in zip(windows, origins, strict=True)
        for box, score, label in zip(*found, strict=True)
    ]
    kept = []
    for score, label, box in sorted(everything, key=lambda entry: -entry[0]):
        if all(label != other or plain.oriented_iou(box, better) <= overlap for _, other, better in kept):
            kept.append((score, label, box))
    assert rows(merged) == sorted((label, score, tuple(box.tolist())) for score, label, box in kept)
    assert (np.diff(merged.scores) <= 0).all() and len(kept) < len(everything)


BOX, FAR = [10, 10, 30, 30], [200, 200, 220, 220]
LEVEL = [[5, 5, 25, 5], [5, 9, 25, 9], [5, 5, 5, 5]]
KEPT = {  # boxes x1 y1 x2 y2 best first, their classes, and the places of those kept
    "points in one place": ([[5, 5, 5, 5]] * 3, [0, 0, 0], [0, 1, 2]),
    "lines": (LEVEL, [0, 0, 0], [0, 1, 2]),
    "lines on a box": ([BOX, [10, 20, 30, 20], BOX], [0, 0, 0], [0, 1]),
    "a box of negative sides": ([[9, 9, 2, 2], BOX, [9, 9, 2, 2]], [1, 1, 1], [0, 1, 2]),
    "one place, two classes": ([BOX, BOX, BOX], [0, 1, 0], [0, 1]),
    # Offsets by class, as OpenCV has them, would move the first box onto the last:
    "apart by the offset of a class": ([[-21, -21, -1, -1], FAR, [-21, -21, -1, -1]], [1, 0, 0], [0, 1, 2]),
    "all below zero": ([[-30, -30, -10, -10], [-39, -39, -19, -19]], [0, 1], [0, 1]),
    "the same box below zero": ([[-30, -30, -10, -10]] * 2, [3, 3], [0]),
    "classes of negative number": ([BOX, BOX], [-1, -1], [0]),
}


@pytest.mark.parametrize("row", KEPT)
def test_boxes_kept_by_merging(row):
    boxes, labels, expected = KEPT[row]
    scores = np.linspace(0.9, 0.1, len(boxes)).astype(np.float32)
    found = Found(np.array(boxes, np.float32), scores, np.array(labels, np.int32))
    np.testing.assert_array_equal(merge([found], np.zeros((1, 2), int), 0.5).scores, scores[expected])


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.8])
def test_upright_boxes_are_merged_as_a_greedy_loop_does(rng, overlap):
    low, labels = rng.uniform(-60, 60, (120, 2)), rng.integers(0, 3, 120)
    boxes = np.hstack([low, low + rng.uniform(6, 30, (120, 2))]).astype(np.float32)
    scores = rng.permutation(120).astype(np.float32)
    kept = []
    for place in np.argsort(-scores):
        if all(labels[place] != labels[better] or plain.iou(boxes[place], boxes[better]) <= overlap for better in kept):
            kept.append(int(place))
    merged = merge([Found(boxes, scores, labels)], np.zeros((1, 2), int), overlap)
    np.testing.assert_array_equal(merged.boxes, boxes[kept])
