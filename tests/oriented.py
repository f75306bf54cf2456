"""Oriented boxes for tests, and their IoU by shapely."""

import numpy as np
import shapely


def some_boxes(rng: np.random.Generator, count: int, extent: float = 64.0, largest: float = 24.0) -> np.ndarray:
    """Draw boxes of all shapes and angles in le90 `[count, 5]`; half are multiples of 4 pixels and of pi / 8."""
    sides = np.sort(rng.uniform(1, largest, (count, 2)))[:, ::-1]
    boxes = np.concatenate(
        [rng.uniform(0, extent, (count, 2)), sides, rng.uniform(-np.pi / 2, np.pi / 2, (count, 1))], 1
    )
    steps = np.array([4, 4, 4, 4, np.pi / 8])
    boxes[::2] = np.maximum((boxes[::2] / steps).round(), (0, 0, 1, 1, -4)) * steps
    boxes[:, 4] -= np.pi * (boxes[:, 4] >= np.pi / 2)
    return boxes.astype(np.float32)


def pairs(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs that mostly overlap, float32."""
    a, b = some_boxes(rng, count, largest=45), some_boxes(rng, count, largest=45)
    b[:, :2] = a[:, :2] + rng.normal(0, 10, (count, 2))
    return a, b.astype(np.float32)


def hard_pairs(rng: np.random.Generator, count: int, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw identical, touching, nested, crossed, slid, nearly equal and unrelated pairs, float32.

    Sides are from 1e-3 to 1e4, at most 1 : `aspect`; angles at the borders of every range.
    """

    def sides() -> np.ndarray:
        longer = np.exp(rng.uniform(np.log(1e-3), np.log(1e4), count))
        return np.stack([longer, np.maximum(longer / np.exp(rng.uniform(0, np.log(aspect), count)), 1e-3)], 1)

    angles = rng.choice([-np.pi / 2, np.pi / 2 - 1e-7, 0, np.pi / 4, -np.pi / 4, 1e-4, 1.0], (count, 1))
    a = np.concatenate([rng.uniform(-100, 100, (count, 2)), sides(), angles], 1)
    along = np.concatenate([np.cos(angles), np.sin(angles)], 1) * a[:, 2:3]
    kinds = np.stack([a] * 7)
    _, touching, nested, crossed, slid, near, unrelated = kinds
    touching[:, :2] += along
    nested[:, 2:4] *= rng.uniform(0.1, 1, (count, 2))
    crossed[:, 4:] += rng.uniform(-np.pi / 2, np.pi / 2, (count, 1))
    slid[:, :2] += along * rng.uniform(0, 1, (count, 1))
    near[:, :2] += rng.normal(0, 0.5, (count, 2)) * a[:, 2:4]
    near[:, 4:] += rng.normal(0, 0.1, (count, 1))
    unrelated[:, 2:4], unrelated[:, 4:] = sides(), rng.uniform(-np.pi / 2, np.pi / 2, (count, 1))
    b = kinds[np.arange(count) % 7, np.arange(count)]
    return a.astype(np.float32), b.astype(np.float32)


def polygons(boxes: np.ndarray) -> np.ndarray:
    """Return the boxes as shapely polygons, in float64."""
    upright = shapely.box(*np.moveaxis(np.concatenate([-boxes[:, 2:4], boxes[:, 2:4]], 1).astype(float) / 2, 1, 0))
    corners = shapely.get_coordinates(upright).reshape(-1, 5, 2)
    cos, sin = np.cos(boxes[:, 4].astype(float)), np.sin(boxes[:, 4].astype(float))
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)  # x to the right, y down: clockwise
    return shapely.polygons(np.einsum("nij,nkj->nki", turn, corners) + boxes[:, None, :2])


def paired_ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of paired boxes."""
    first, second = polygons(a), polygons(b)
    shared = shapely.area(shapely.intersection(first, second))
    return shared / (shapely.area(first) + shapely.area(second) - shared)


def ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of every pair."""
    m, n = len(a), len(b)
    return paired_ious(np.repeat(a, n, 0), np.tile(b, (m, 1))).reshape(m, n)
