"""Plain NumPy references that several tests compare with, and the small inputs that they share."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from cfinet_jax.structures import GroundTruth


def some_boxes(rng: np.random.Generator, count: int, extent: float = 64.0, largest: float = 24.0) -> np.ndarray:
    """Draw boxes of all shapes `[count, 4]`; half lie on every fourth pixel, so that overlaps tie; some are empty."""
    corner = rng.uniform(0, extent - largest, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, largest, (count, 2))], 1)
    boxes[::2] = (boxes[::2] / 4).round() * 4
    return boxes.astype(np.float32)


def assert_leading_axes_are_kept(function: Callable, *arrays: np.ndarray) -> None:
    """Rows in two axes lead to what they lead to in one."""
    flat = np.asarray(function(*arrays))
    folded = function(*(array.reshape(2, -1, array.shape[-1]) for array in arrays))
    np.testing.assert_allclose(folded, flat.reshape(2, -1, *flat.shape[1:]), atol=1e-5)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the IoU of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / max(union, 1e-6)


def corners(box: np.ndarray) -> np.ndarray:
    """Return the corners [4, 2] of an oriented box `cx cy w h angle`."""
    x, y, w, h, angle = (float(value) for value in box)
    across, down = np.array([np.cos(angle), np.sin(angle)]) * w / 2, np.array([-np.sin(angle), np.cos(angle)]) * h / 2
    return np.array([x, y]) + [-across - down, across - down, across + down, down - across]


def polygon_area(points: np.ndarray) -> float:
    """Return the area of a polygon, whatever its direction."""
    x, y = np.asarray(points, float).reshape(-1, 2).T
    return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


def shared_area(subject: np.ndarray, window: np.ndarray) -> float:
    """Return the area that a polygon shares with a convex one, clockwise on the screen: cut along each of its sides."""
    points = [*np.asarray(subject, float)]
    for start, end in zip(window, np.roll(window, -1, axis=0), strict=True):
        along = end - start
        side = [float(along[0] * (y - start[1]) - along[1] * (x - start[0])) for x, y in points]
        kept = []
        for k, point in enumerate(points):
            if side[k - 1] * side[k] < 0:
                share = side[k - 1] / (side[k - 1] - side[k])
                kept.append(points[k - 1] + share * (point - points[k - 1]))
            if side[k] >= 0:
                kept.append(point)
        points = kept
        if not points:
            return 0.0
    return polygon_area(np.array(points))


def oriented_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the IoU of two oriented boxes, in float64."""
    shared = shared_area(corners(a), corners(b))
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of every pair, float32 so that ties stay ties."""
    return np.array([[iou(x, y) for y in b] for x in a], np.float32).reshape(len(a), len(b))


def shares(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return the share of each box inside each region, float32 `[boxes, regions]`."""
    low, high = np.maximum(boxes[:, None, :2], regions[:, :2]), np.minimum(boxes[:, None, 2:], regions[:, 2:])
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6)
    return (np.maximum(high - low, 0).prod(2) / areas[:, None]).astype(np.float32)


def similarity(name: str, a: np.ndarray, b: np.ndarray, constants: dict[str, float]) -> float:
    """Return a similarity of `SIMILARITIES` of two boxes, in float64; `b` is the object."""
    a, b = np.float64(a), np.float64(b)
    if name == "iou":
        return iou(a, b)
    centre = [(a[k] + a[k + 2] - b[k] - b[k + 2]) / 2 for k in (0, 1)]
    sides = [(a[k + 2] - a[k], b[k + 2] - b[k]) for k in (0, 1)]
    between_centres = centre[0] ** 2 + centre[1] ** 2
    squared = between_centres + sum((x - y) ** 2 for x, y in sides) / 4
    if name == "nwd":
        return np.exp(-np.sqrt(squared) / constants["constant"])
    if name == "dotd":
        return np.exp(-np.sqrt(between_centres) / constants["mean_side"])
    if name == "wasserstein":
        return 1 / (1 + squared / constants["unit"] ** 2)
    divergence = 0.0
    for offset, (x, y) in zip(centre, sides, strict=True):
        x, y = max(x, 1e-6), max(y, 1e-6)
        divergence += (x**2 / y**2 + 4 * offset**2 / y**2 + np.log(y**2 / x**2) - 1) / 2
    return 1 / (1 + divergence)


def paint_middles(
    boxes: np.ndarray, sides: tuple, strides: tuple, scale: float, centre: float, ignore: float
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the regions of one object after another onto the map of its level.

    Returns, for maps of `sides` (rows, columns), concatenated: 0, -1 where ignored or the number of the object from 1
    on; and whether the cell is in the ignore region of an object of the next level below or above.
    """
    maps, nearby = [np.zeros(side, int) for side in sides], [np.zeros(side, bool) for side in sides]

    def region(box: np.ndarray, level: int, ratio: float) -> tuple[slice, slice]:
        x1, y1, x2, y2 = np.float32(box) / strides[level]
        edge = (1 - ratio) / 2
        columns, rows = ((round((1 - edge) * a + edge * b), round(edge * a + (1 - edge) * b)) for a, b in
                         ((float(x1), float(x2)), (float(y1), float(y2))))  # fmt: skip
        return slice(max(rows[0], 0), max(rows[1], 0) + 1), slice(max(columns[0], 0), max(columns[1], 0) + 1)

    for number, box in enumerate(boxes, 1):
        size = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        level = int(np.clip(np.floor(np.log2(size / (scale * strides[0])) + 0.5), 0, len(strides) - 1))
        maps[level][region(box, level, ignore)] = -1
        maps[level][region(box, level, centre)] = number
        for other in {level - 1, level + 1} & set(range(len(strides))):
            nearby[other][region(box, other, ignore)] = True
    return np.concatenate([x.ravel() for x in maps]), np.concatenate([x.ravel() for x in nearby])


def bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """Read a map `[rows, columns, channels]` at one point; cells outside it are zero."""
    rows, columns = feature.shape[:2]
    total = np.zeros(feature.shape[2])
    for i in (int(np.floor(y)), int(np.floor(y)) + 1):
        for j in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= i < rows and 0 <= j < columns:
                total += (1 - abs(y - i)) * (1 - abs(x - j)) * feature[i, j]
    return total


def convolve(
    x: np.ndarray, kernel: np.ndarray, stride: int = 1, dilation: int = 1, padding: int | None = None
) -> np.ndarray:
    """Convolve `[batch, rows, columns, inputs]` with `[size, size, inputs, outputs]`, as torch defines it."""
    size = kernel.shape[0]
    padding = dilation * (size // 2) if padding is None else padding
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    reach = dilation * (size - 1) + 1
    rows, columns = ((extent - reach) // stride + 1 for extent in x.shape[1:3])
    y = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            window = x[:, top : top + reach : dilation, left : left + reach : dilation]
            y[:, i, j] = np.tensordot(window, kernel, 3)
    return y


def ground_truth(boxes: np.ndarray, labels: np.ndarray | None = None, size: int = 0, regions=()) -> GroundTruth:
    """Return objects, then ignore regions, padded to `size` by boxes that would match anything."""
    objects = np.asarray(boxes, np.float32).reshape(-1, 4)
    regions = np.asarray(regions, np.float32).reshape(-1, 4)
    count = len(objects) + len(regions)
    size = max(size, count)
    padding = np.tile(np.float32([-1e3, -1e3, 1e3, 1e3]), (size - count, 1))
    kept = np.zeros(size, np.int32)
    kept[: len(objects)] = 0 if labels is None else labels
    place = np.arange(size)
    return GroundTruth(
        jnp.asarray(np.concatenate([objects, regions, padding])),
        jnp.asarray(kept),
        jnp.asarray(place < count),
        jnp.asarray((place >= len(objects)) & (place < count)),
    )
