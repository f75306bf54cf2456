"""Oriented boxes `cx cy w h angle`: pixels and radians, clockwise on the screen; le90 unless another range is named.

le90 is w >= h and an angle from x to w in [-pi/2, pi/2). Other code has other ranges for the same rectangles, and
`normalise` leads to le90 from all of them. Arrays are NumPy's or JAX's and stay so: metrics need no JAX.
"""

import math
from typing import Any

from jaxtyping import Float

from cfinet_jax.boxes import MAX_LOG_RATIO

Array = Any  # NumPy's or JAX's
EPSILON = 1e-9  # a length or an area that is divided by is not below it
QUARTER = math.pi / 2
CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1))  # in halves of w and h, clockwise on the screen
PAIRS = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3))  # of corners


def area(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n"]:
    """Area in square pixels."""
    return boxes[..., 2] * boxes[..., 3]


def centre_size(boxes: Float[Array, "*n 5"]) -> tuple[Float[Array, "*n 2"], Float[Array, "*n 2"]]:
    """Centres (x, y) and sizes (w, h) along the boxes' own axes."""
    return boxes[..., :2], boxes[..., 2:4]


def clip(boxes: Float[Array, "*n 5"], size: Float[Array, "2"]) -> Float[Array, "*n 5"]:
    """Boxes whose centres are moved into a picture of `size` (height, width).

    Cut off at the border they would not be rectangles, so that size and angle stay.
    """
    xp = boxes.__array_namespace__()
    height, width = size
    x, y = xp.clip(boxes[..., 0], 0.0, width), xp.clip(boxes[..., 1], 0.0, height)
    return xp.concatenate([xp.stack([x, y], -1), boxes[..., 2:]], -1)


def flip(boxes: Float[Array, "*n 5"], width: Float[Array, ""]) -> Float[Array, "*n 5"]:
    """Boxes of a picture of `width` seen in a mirror."""
    x, y, w, h, angle = (boxes[..., k] for k in range(5))
    return normalise(boxes.__array_namespace__().stack([width - x, y, w, h, -angle], -1))


def resize(boxes: Float[Array, "*n 5"], scale: Float[Array, ""] | float) -> Float[Array, "*n 5"]:
    """Boxes of a picture that is scaled; unlike lengths, angles stay."""
    return boxes.__array_namespace__().concatenate([boxes[..., :4] * scale, boxes[..., 4:]], -1)


def stretch(boxes: Float[Array, "*n 5"], factors: tuple[float, float]) -> Float[Array, "*n 5"]:
    """Boxes whose w and h are multiplied, about their centres."""
    x, y, w, h, angle = (boxes[..., k] for k in range(5))
    return normalise(boxes.__array_namespace__().stack([x, y, w * factors[0], h * factors[1], angle], -1))


def normalise(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 5"]:
    """The same boxes in le90, whatever range their angles have, and whichever side is the longer."""
    upended = (boxes[..., 2] < boxes[..., 3]).astype(boxes.dtype)
    return _wrap(_turn_back(boxes, -upended), -QUARTER)


def to_opencv(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 5"]:
    """The same boxes as OpenCV names them from 4.5.1 on ("oc"): an angle in (0, pi/2], either side the longer."""
    xp = boxes.__array_namespace__()
    boxes = _turn_back(boxes, xp.ceil(boxes[..., 4] / QUARTER) - 1)
    return xp.concatenate([boxes[..., :4], xp.minimum(boxes[..., 4:], QUARTER)], -1)


def to_le135(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 5"]:
    """The same boxes in le135: w >= h and an angle in [-pi/4, 3 pi/4)."""
    return _wrap(normalise(boxes), -QUARTER / 2)


def _turn_back(boxes: Float[Array, "*n 5"], quarters: Float[Array, "*n"]) -> Float[Array, "*n 5"]:
    """The same boxes with angles less by quarter turns, an odd number of which exchanges w and h."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = (boxes[..., k] for k in range(5))
    odd = quarters % 2 == 1
    return xp.stack([x, y, xp.where(odd, h, w), xp.where(odd, w, h), angle - quarters * QUARTER], -1)


def _wrap(boxes: Float[Array, "*n 5"], start: float) -> Float[Array, "*n 5"]:
    """The same boxes with angles in [start, start + pi)."""
    xp = boxes.__array_namespace__()
    angle = boxes[..., 4:]
    angle = angle - math.pi * xp.floor((angle - start) / math.pi)
    # Rounding may leave it just outside, or on the excluded end.
    angle = xp.where(angle < start + math.pi, xp.maximum(angle, start), start)
    return xp.concatenate([boxes[..., :4], angle], -1)


def to_polygon(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 8"]:
    """The corners x1 y1 ... x4 y4, clockwise on the screen."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = (boxes[..., k] for k in range(5))
    cos, sin = xp.cos(angle) / 2, xp.sin(angle) / 2
    return xp.stack(
        [place for i, j in CORNERS for place in (x + i * w * cos - j * h * sin, y + i * w * sin + j * h * cos)], -1
    )


def from_polygon(polygons: Float[Array, "*n 8"]) -> Float[Array, "*n 5"]:
    """The smallest rectangles around quadrilaterals x1 y1 ... x4 y4, whatever the order of their corners.

    One side of it lies along a side of the hull, so along a line through two corners. OpenCV's minAreaRect, which finds
    the same for one polygon at a time, knows neither many nor float64 nor devices.
    """
    xp = polygons.__array_namespace__()
    points = polygons.reshape(*polygons.shape[:-1], 4, 2)
    origin = points.mean(-2, keepdims=True)
    points = points - origin
    lines = xp.stack([points[..., j, :] - points[..., i, :] for i, j in PAIRS], -2)
    lines = xp.where((lines**2).sum(-1, keepdims=True) > EPSILON**2, lines, xp.asarray([1.0, 0.0], dtype=lines.dtype))
    axes = lines / xp.sqrt((lines**2).sum(-1, keepdims=True))
    x, y = (axes[..., None, :, k] for k in (0, 1))
    along = x * points[..., :, None, 0] + y * points[..., :, None, 1]
    across = x * points[..., :, None, 1] - y * points[..., :, None, 0]
    found = xp.stack([along.min(-2), along.max(-2), across.min(-2), across.max(-2), axes[..., 0], axes[..., 1]], -1)
    size = found[..., 1:4:2] - found[..., 0:4:2]
    best = xp.argmin(size[..., 0] * size[..., 1], -1)[..., None, None]
    left, right, top, bottom, x, y = (xp.take_along_axis(found, best, -2)[..., 0, k] for k in range(6))
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    centre = origin[..., 0, :] + xp.stack([x * middle_x - y * middle_y, y * middle_x + x * middle_y], -1)
    sides_angle = xp.stack([right - left, bottom - top, xp.arctan2(y, x)], -1)
    return normalise(xp.concatenate([centre, sides_angle], -1))


def enclose(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 4"]:
    """The smallest upright boxes x1 y1 x2 y2 around oriented ones."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = (boxes[..., k] for k in range(5))
    cos, sin = xp.abs(xp.cos(angle)) / 2, xp.abs(xp.sin(angle)) / 2
    across, down = w * cos + h * sin, w * sin + h * cos
    return xp.stack([x - across, y - down, x + across, y + down], -1)


def from_horizontal(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 5"]:
    """Upright boxes x1 y1 x2 y2 as oriented ones."""
    return normalise(_upright(boxes))


def _upright(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 5"]:
    """Upright boxes with w along x and an angle of 0, so not in le90 where they are tall."""
    xp = boxes.__array_namespace__()
    x1, y1, x2, y2 = (boxes[..., k] for k in range(4))
    return xp.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, xp.zeros_like(x1)], -1)


def intersection(a: Float[Array, "*#n 5"], b: Float[Array, "*#n 5"]) -> Float[Array, "*#n"]:
    """Area shared by boxes of equal (broadcast) position; exactly 0 where a line parallel to a side separates them.

    By Green's theorem it is the integral of x dy around `a` with x and y held within `b`, in the axes of `b`. There are
    no crossings to find and to sort, and nothing jumps where boxes touch or sides coincide.
    """
    difference = a - b
    xp = difference.__array_namespace__()
    x, y = _turn(xp, difference[..., 0], difference[..., 1], -b[..., 4])
    cos, sin = xp.cos(difference[..., 4]), xp.sin(difference[..., 4])
    w, h, half_w, half_h = a[..., 2] / 2, a[..., 3] / 2, b[..., 2] / 2, b[..., 3] / 2
    right, down = (w * cos, w * sin), (-h * sin, h * cos)  # halves of the sides of `a`
    corners = [(x + i * right[0] + j * down[0], y + i * right[1] + j * down[1]) for i, j in CORNERS]
    shared = sum(_integrate(xp, corners[k - 1], corners[k], half_w, half_h) for k in range(4))

    along, across = _turn(xp, x, y, -difference[..., 4])
    cos, sin = xp.abs(cos), xp.abs(sin)
    apart = (xp.abs(x) > half_w + w * cos + h * sin) | (xp.abs(y) > half_h + w * sin + h * cos)
    apart |= (xp.abs(along) > w + half_w * cos + half_h * sin) | (xp.abs(across) > h + half_w * sin + half_h * cos)
    shared = xp.clip(shared, 0.0, xp.minimum(area(a), area(b)))
    return xp.where(apart, 0.0, shared)


def _turn(xp: Any, x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    """Points turned clockwise on the screen about the origin."""
    cos, sin = xp.cos(angle), xp.sin(angle)
    return x * cos - y * sin, x * sin + y * cos


def _integrate(xp: Any, start: tuple[Array, Array], end: tuple[Array, Array], half_w: Array, half_h: Array) -> Array:
    """The integral of x dy along a line, y held within +-half_h and then x within +-half_w."""
    (x, y), run, rise = start, end[0] - start[0], end[1] - start[1]
    low, high = xp.clip(y, -half_h, half_h), xp.clip(end[1], -half_h, half_h)
    first, last = (x + run * xp.clip(_divide(xp, held - y, rise), 0.0, 1.0) for held in (low, high))
    # The mean of x held within a strip: outside it is that of the held ends, for a share of the line its own.
    held_first, held_last = xp.clip(first, -half_w, half_w), xp.clip(last, -half_w, half_w)
    inside = _divide(xp, held_last - held_first, last - first)
    held_mean = (held_first + held_last) / 2
    return (high - low) * (held_mean + inside * ((first + last) / 2 - held_mean))


def _divide(xp: Any, numerator: Array, denominator: Array) -> Array:
    """The quotient, with finite gradients; 0 where it divides by next to nothing."""
    safe = xp.abs(denominator) > EPSILON
    return xp.where(safe, numerator, 0.0) / xp.where(safe, denominator, 1.0)


def paired_iou(a: Float[Array, "*#n 5"], b: Float[Array, "*#n 5"]) -> Float[Array, "*#n"]:
    """Intersection over union of boxes of equal position, in [0, 1]."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / union.__array_namespace__().maximum(union, EPSILON)


def iou(a: Float[Array, "m 5"], b: Float[Array, "n 5"]) -> Float[Array, "m n"]:
    """Intersection over union of every pair, in [0, 1]."""
    return paired_iou(a[:, None], b[None])


def overlap_of_first(a: Float[Array, "m 5"], b: Float[Array, "n 5"]) -> Float[Array, "m n"]:
    """Share of each box of `a` that lies inside each box of `b`, in [0, 1]."""
    shared = intersection(a[:, None], b[None])
    return shared / shared.__array_namespace__().maximum(area(a), EPSILON)[:, None]


def encode(
    anchors: Float[Array, "*#n 5"], boxes: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """Deltas (dx, dy, dw, dh, radians) / stds that lead from anchors to boxes; finite for empty boxes too.

    The offset is measured along the anchor's sides, and w is the side of the box that lies nearer to the anchor's w, so
    that no angle exceeds pi/4: Oriented R-CNN (Xie et al. 2021) with the edge swap of its code.
    """
    difference = boxes - anchors
    xp = difference.__array_namespace__()
    anchors, boxes = xp.broadcast_arrays(anchors, boxes)
    seen = xp.concatenate([boxes[..., :4], difference[..., 4:]], -1)
    seen = _turn_back(seen, xp.round(seen[..., 4] / QUARTER))
    size, anchor_size = xp.maximum(seen[..., 2:4], EPSILON), xp.maximum(anchors[..., 2:4], EPSILON)
    offset = xp.stack(_turn(xp, difference[..., 0], difference[..., 1], -anchors[..., 4]), -1)
    deltas = xp.concatenate([offset / anchor_size, xp.log(size / anchor_size), seen[..., 4:]], -1)
    return deltas / xp.asarray(stds, dtype=deltas.dtype)


def decode(
    anchors: Float[Array, "*#n 5"], deltas: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """The boxes to which deltas lead from anchors: the inverse of `encode`, sides limited to 62.5 times."""
    xp = (anchors[..., :1] + deltas[..., :1]).__array_namespace__()
    deltas = deltas * xp.asarray(stds, dtype=deltas.dtype)
    offset = deltas[..., :2] * anchors[..., 2:4]
    centre = anchors[..., :2] + xp.stack(_turn(xp, offset[..., 0], offset[..., 1], anchors[..., 4]), -1)
    size = anchors[..., 2:4] * xp.exp(xp.clip(deltas[..., 2:4], -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return normalise(xp.concatenate([centre, size, anchors[..., 4:] + deltas[..., 4:]], -1))


def encode_horizontal(
    anchors: Float[Array, "*#n 4"], boxes: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """`encode` from upright anchors, the angle in turns instead of radians, as in rotated Faster R-CNN."""
    return encode(_upright(anchors), boxes, (*stds[:4], 2 * math.pi * stds[4]))


def decode_horizontal(
    anchors: Float[Array, "*#n 4"], deltas: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """The oriented boxes to which deltas lead from upright anchors: the inverse of `encode_horizontal`."""
    return decode(_upright(anchors), deltas, (*stds[:4], 2 * math.pi * stds[4]))
