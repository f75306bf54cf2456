"""Cells in the middle of objects: against painting object after object, and the reference's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.boxes.anchors import anchor_grid
from cfinet_jax.ops import centre_matching
from cfinet_jax.ops.centre_matching import CentreMatch
from cfinet_jax.structures import GroundTruth
from tests import plain

SIDES, STRIDES = ((24, 20), (12, 10), (6, 5)), (4, 8, 16)
TABLE_1 = [(0.2, 0.5), (0.5, 0.8), (0.8, 1.0)]  # centre and ignore ratio
seeds = st.integers(0, 2**32 - 1)


def grids_of(sides: tuple, scale: float = 2.0) -> tuple[jax.Array, ...]:
    strides = tuple(4 << level for level in range(len(sides)))
    return tuple(
        jnp.asarray(anchor_grid(side, stride, scale, (1.0,))) for side, stride in zip(sides, strides, strict=True)
    )


@functools.partial(jax.jit, static_argnums=(2, 3))
def match(grids: tuple[jax.Array, ...], truth: GroundTruth, centre: float, ignore: float) -> CentreMatch:
    return centre_matching.match_centres(
        grids,
        truth,
        strides=tuple(4 << level for level in range(len(grids))),
        anchor_scale=2.0,
        centre_ratio=centre,
        ignore_ratio=ignore,
    )


def painted(ours: CentreMatch) -> np.ndarray:
    """0, -1 where ignored, or the number of the object from 1 on."""
    assert not (ours.positive & ours.ignored).any()
    return np.where(ours.positive, ours.indices + 1, -np.asarray(ours.ignored, int))


def some_objects(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw objects of 2 to 64 pixels, elongated ones among them, anywhere on the maps."""
    sides = 2 ** rng.uniform(1, 6, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([80, 96]) - np.minimum(sides, 80))
    return np.concatenate([corner, corner + sides], 1).astype(np.float32)


@pytest.mark.parametrize(("centre", "ignore"), TABLE_1)
@given(seed=seeds)
def test_streamed_regions_equal_those_painted_one_after_the_other(centre, ignore, seed):
    objects = some_objects(np.random.default_rng(seed), 40)  # more than a chunk
    ours = match(grids_of(SIDES), plain.ground_truth(objects), centre, ignore)
    expected, nearby = plain.paint_middles(objects, SIDES, STRIDES, 2.0, centre, ignore)
    np.testing.assert_array_equal(painted(ours), expected)
    np.testing.assert_array_equal(ours.nearby, nearby)
    assert (expected > 0).any() and (expected < 0).any() and nearby.any()


def test_without_objects_nothing_is_claimed():
    ours = match(grids_of(SIDES), plain.ground_truth(np.zeros((0, 4)), size=70), 0.2, 0.5)
    assert not (ours.positive | ours.ignored | ours.nearby).any()
    assert (ours.indices == 0).all()


@given(seeds)
def test_padding_and_ignore_regions_are_not_objects(seed):
    objects = some_objects(np.random.default_rng(seed), 9)
    tight = plain.ground_truth(objects)
    others = plain.ground_truth(objects, size=70, regions=[[0, 0, 30, 30]])
    jax.tree.map(
        np.testing.assert_array_equal, match(grids_of(SIDES), tight, 0.2, 0.5), match(grids_of(SIDES), others, 0.2, 0.5)
    )


@given(seeds)
def test_an_object_alone_has_a_positive_cell(seed):
    rng = np.random.default_rng(seed)
    sides = 2 ** rng.uniform(0, 6, (1, 2))
    corner = rng.uniform(0, 64 - sides)
    truth = plain.ground_truth(np.concatenate([corner, corner + sides], 1))
    assert match(grids_of(SIDES), truth, 0.2, 0.5).positive.any()


def test_a_later_object_takes_the_cells_around_its_middle():
    """Two objects of 20 x 20 pixels, their middles a cell apart: the second ignores the first one's only cell."""
    first, second = [22, 22, 42, 42], [30, 22, 50, 42]
    here, there = (SIDES[0][0] * SIDES[0][1] + 4 * SIDES[1][1] + column for column in (4, 5))
    ours = match(grids_of(SIDES), plain.ground_truth([first, second]), 0.2, 0.5)
    assert ours.ignored[here] and not ours.positive[here]
    assert ours.positive[there] and ours.indices[there] == 1
    swapped = match(grids_of(SIDES), plain.ground_truth([second, first]), 0.2, 0.5)
    assert swapped.positive[here] and swapped.indices[here] == 1 and swapped.ignored[there]


@pytest.mark.parametrize(("side", "level"), [(2, 0), (8, 0), (11.3, 0), (11.4, 1), (16, 1), (23, 2), (60, 2)])
def test_the_level_is_that_of_the_anchor_nearest_in_size(side, level):
    box = jnp.array([[0.0, 0.0, side, side]])
    assert centre_matching.level_of(box, 8.0, 3).tolist() == [level]


def test_regions_agree_with_the_reference(golden):
    """But for the first two cells of each level, where flags of ignored cells are used as indices there."""
    data = golden("region_assigner")
    centre, ignore, scale = (round(float(x), 3) for x in data["params"])
    assert (centre, ignore, scale) == (0.2, 0.5, 2.0)
    checked = 0
    for number in range(int(data["n_cases"])):
        case = f"c{number:03d}"
        rows, columns = data[f"{case}_image_hw"].tolist()
        sides = tuple((-(-rows // stride), -(-columns // stride)) for stride in (4, 8, 16, 32))
        grids = grids_of(sides)
        found = painted(match(grids, plain.ground_truth(data[f"{case}_gt"], size=64), centre, ignore))
        compared = data[f"{case}_valid"] > 0
        border = int(data[f"{case}_allowed_border"])
        if border >= 0:  # where the case ignores anchors that leave the picture
            height, width = data[f"{case}_img_shape"]
            anchors = np.concatenate(grids)
            compared &= (anchors[:, :2] >= -border).all(1)
            compared &= (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)
        starts = np.cumsum([0, *(len(grid) for grid in grids[:-1])])
        compared[starts] = compared[starts + 1] = False
        expected = data[f"{case}_gt_inds"]
        np.testing.assert_array_equal(found[compared], expected[compared], err_msg=case)
        checked += (expected[compared] > 0).sum()
    assert checked > 100


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((0, 0, 10, 10), (2, 2, 8, 8)), ((4.2, 4.2, 4.4, 4.4), (4, 4, 4, 4)), ((-9, -9, -4, -4), (-8, -8, 0, 0)),
        ((-3, 2, -1, 8), (-3, 3, 0, 7)), ((1, 1, 4, 4), (2, 2, 3, 3)),
    ],
)  # fmt: skip
def test_central_cells_end_in_the_map_also_for_objects_left_of_it(box, cells):
    found = centre_matching.central_cells(jnp.array([box], jnp.float32), 0.6)
    np.testing.assert_array_equal(found, [cells])
