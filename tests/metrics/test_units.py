"""Boxes of another format are recognised from all boxes of a file, and correct boxes are never suspected."""

import numpy as np
import pytest

from cfinet_jax.metrics.units import MIN_BOXES, suspect_units, tell_areas, tell_reach

CORNERS, CENTRES, SHARES = "corners (x1 y1 x2 y2)", "centres (cx cy width height)", "shares of the picture"


def scene(number: int, least: float, most: float, size=(100, 80), place=(1.0, 1.0), seed=0):
    """Draw boxes x y w h inside their pictures; sides and place are shares of the size."""
    rng = np.random.default_rng(seed)
    sizes = np.tile(np.array(size, float), (number, 1))
    sides = rng.uniform(least, most, (number, 2)) * sizes
    return np.hstack([rng.uniform(0, 1, (number, 2)) * (sizes - sides) * place, sides]), sizes


def as_corners(boxes):
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def as_centres(boxes):
    return np.hstack([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]])


def as_shares(boxes, sizes):
    return boxes / np.tile(sizes, 2)


SMALL, LARGE = scene(200, 0.01, 0.1), scene(200, 0.3, 0.7)
UPPER = scene(300, 0.02, 0.06, (4000, 3000), (1.0, 0.4))
OTHER = {  # boxes, sizes, and the start of the name of their format
    "corners of small objects": (as_corners(SMALL[0]), SMALL[1], CORNERS),
    "corners of large objects": (as_corners(LARGE[0]), LARGE[1], CORNERS),
    "corners in the upper half": (as_corners(UPPER[0]), UPPER[1], CORNERS),
    "corners of just enough": (as_corners(SMALL[0])[:MIN_BOXES], SMALL[1][:MIN_BOXES], CORNERS),
    "corners, a quarter of them correct": (np.vstack([as_corners(SMALL[0])[50:], SMALL[0][:50]]), SMALL[1], CORNERS),
    "centres of large objects": (as_centres(LARGE[0]), LARGE[1], CENTRES),
    "centres of objects at the border": (
        as_centres(np.array([[80.0, 9, 20, 9]] * 12)),
        np.full((12, 2), 100.0),
        CENTRES,
    ),
    "shares": (as_shares(*SMALL), SMALL[1], SHARES),
    "shares as corners": (as_corners(as_shares(*SMALL)), SMALL[1], SHARES),
    "shares, one a little beyond": (as_shares(*LARGE) * 1.001, LARGE[1], SHARES),
}


@pytest.mark.parametrize("row", OTHER)
def test_other_formats_are_recognised(row):
    boxes, sizes, expected = OTHER[row]
    assert (suspect_units(boxes, sizes) or "nothing").startswith(expected)


ROUNDED = np.array([[60.0, 50, 42, 31]] * 3)
UNCLIPPED = SMALL[0] + np.random.default_rng(1).normal(0, 5, SMALL[0].shape) * [1, 1, 0, 0]
CORRECT = {
    "nothing": (np.zeros((0, 4)), np.zeros((0, 2))),
    "small objects": SMALL,
    "large objects": LARGE,
    "whole pictures": (np.array([[0, 0, 100, 80.0]] * 50), np.array([[100, 80.0]] * 50)),
    "whole pictures, rounded up": (np.array([[0, 0, 101, 81.0]] * 50), np.array([[100, 80.0]] * 50)),
    "few that leave by rounding": (ROUNDED, np.array([[100, 80.0]] * 3)),
    "many that leave by a pixel in 100": (np.array([[1.0, 1, 100, 80]] * 40), np.array([[100, 80.0]] * 40)),
    "few in the first pixel": (np.array([[0, 0, 1, 1.0]] * 9), np.array([[100, 80.0]] * 9)),
    "larger than their pictures": (np.array([[1, 2, 150, 120.0]] * 40), np.array([[100, 80.0]] * 40)),
    "predictions that are not clipped": (UNCLIPPED, SMALL[1]),
    "sizes of pictures unknown": (as_corners(SMALL[0]), np.ones((200, 2))),
    "sides that are no numbers": (np.full((20, 4), np.nan), np.full((20, 2), 9.0)),
}


SIDES = np.array([[10.0, 8]] * 12)
AREAS = {  # sides of boxes, their areas and whether these are told
    "of a larger picture": (SIDES, SIDES.prod(1) * 100, True),
    "shares of the picture": (SIDES, SIDES.prod(1) / 1e4, True),
    "none": (SIDES, np.zeros(12), True),
    "most of a larger picture": (SIDES, [8000.0] * 7 + [80.0] * 5, True),
    "some of a larger picture": (SIDES, [8000.0] * 5 + [80.0] * 7, False),
    "masks": (SIDES, SIDES.prod(1) / 3, False),
    "both ends counted": (SIDES, (SIDES + 1).prod(1), False),
    "few": (SIDES[:9], [8000.0] * 9, False),
    "below a pixel": (SIDES / 20, (SIDES / 20).prod(1), False),
    "no box": (SIDES[:0], [], False),
}


@pytest.mark.parametrize("row", AREAS)
def test_areas_that_do_not_fit_their_boxes_are_told(row, capsys):
    sides, areas, told = AREAS[row]
    entries = [{"bbox": [3, 4, *of_one], "area": area} for of_one, area in zip(sides, areas, strict=True)]
    tell_areas("own.json", entries)
    assert ("own.json: " in capsys.readouterr().out) == told


@pytest.mark.parametrize("row", CORRECT)
def test_correct_boxes_are_not_suspected(row):
    assert suspect_units(*CORRECT[row]) is None


REACHES = {  # boxes, sizes of their pictures, and whether it is told that the boxes keep to one end
    "percentages": (100 * as_shares(*SMALL), 20 * SMALL[1], True),
    "copies of half the size": (LARGE[0], 2 * LARGE[1], True),
    "all in the upper half": (*UPPER, False),
    "few": (SMALL[0][:9], SMALL[1][:9] * 9, False),
    "correct": (*SMALL, False),
    "sizes of pictures unknown": (SMALL[0], np.zeros((200, 2)), False),
}


@pytest.mark.parametrize("row", REACHES)
def test_boxes_of_smaller_copies_are_told(row, capsys):
    boxes, sizes, told = REACHES[row]
    tell_reach("own.json", boxes, sizes)
    assert ("own.json: no box reaches beyond" in capsys.readouterr().out) == told
