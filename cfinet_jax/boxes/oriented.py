"""Oriented boxes `cx cy w h angle`: pixels and radians, clockwise on the screen; le90 unless another range is named.

le90 is w >= h and an angle from x to w in [-pi/2, pi/2). Other code has other ranges for the same rectangles, and
`normalise` leads to le90 from all of them. Arrays are NumPy's or JAX's and stay so: metrics need no JAX.
"""

import math
from typing import Any

from jaxtyping import Bool, Float

from cfinet_jax.boxes import MAX_LOG_RATIO

Array = Any  # NumPy's or JAX's
EPSILON = 1e-9  # a length or an area that is divided by is not below it
QUARTER = math.pi / 2
TURN = 2 * math.pi  # a larger angle is not in radians
CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1))  # in halves of w and h, clockwise on the screen
PAIRS = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3))  # of corners


def _columns(boxes: Float[Array, "*n k"]) -> Any:
    """Return the k columns of boxes, one array each."""
    return boxes.__array_namespace__().moveaxis(boxes, -1, 0)


def area(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n"]:
    """Return areas in square pixels."""
    _, _, w, h, _ = _columns(boxes)
    return w * h


def centre_size(boxes: Float[Array, "*n 5"]) -> tuple[Float[Array, "*n 2"], Float[Array, "*n 2"]]:
    """Return centres (x, y) and sizes (w, h) along the boxes' own axes."""
    return boxes[..., :2], boxes[..., 2:4]


def clip(boxes: Float[Array, "*n 5"], size: Float[Array, "2"]) -> Float[Array, "*n 5"]:
    """Move the centres of boxes into a picture of `size` (height, width).

    Cut off at the border they would no longer be rectangles, so size and angle stay.
    """
    xp = boxes.__array_namespace__()
    height, width = size
    x, y = xp.clip(boxes[..., 0], 0.0, width), xp.clip(boxes[..., 1], 0.0, height)
    return xp.concatenate([xp.stack([x, y], -1), boxes[..., 2:]], -1)


def flip(boxes: Float[Array, "*n 5"], width: Float[Array, ""]) -> Float[Array, "*n 5"]:
    """Mirror boxes left to right in a picture of `width` pixels."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = _columns(boxes)
    return normalise(xp.stack([width - x, y, w, h, -angle], -1))


def transpose(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 5"]:
    """Exchange x and y, as in a picture mirrored along its diagonal."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = _columns(boxes)
    return normalise(xp.stack([y, x, w, h, QUARTER - angle], -1))


def shift(boxes: Float[Array, "*n 5"], offset: Float[Array, "2"]) -> Float[Array, "*n 5"]:
    """Move boxes by `offset` (x, y)."""
    return boxes.__array_namespace__().concatenate([boxes[..., :2] + offset, boxes[..., 2:]], -1)


def resize(boxes: Float[Array, "*n 5"], scale: Float[Array, "*#n"] | float) -> Float[Array, "*n 5"]:
    """Multiply lengths by `scale`; angles stay."""
    xp = boxes.__array_namespace__()
    lengths = boxes[..., :4] * xp.asarray(scale, dtype=boxes.dtype)[..., None]
    return xp.concatenate([lengths, boxes[..., 4:]], -1)


def stretch(boxes: Float[Array, "*n 5"], factors: tuple[float, float]) -> Float[Array, "*n 5"]:
    """Multiply w and h by `factors`, about the centre."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = _columns(boxes)
    return normalise(xp.stack([x, y, w * factors[0], h * factors[1], angle], -1))


def normalise(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 5"]:
    """Return the same rectangles in le90, whatever the range of their angles and whichever side is longer."""
    upended = (boxes[..., 2] < boxes[..., 3]).astype(boxes.dtype)
    boxes = turn_back(boxes, -upended)
    xp = boxes.__array_namespace__()
    angle = boxes[..., 4:]
    angle = angle - math.pi * xp.floor((angle + QUARTER) / math.pi)
    # Rounding may leave it just outside, or on the excluded end.
    angle = xp.where(angle < math.pi - QUARTER, xp.maximum(angle, -QUARTER), -QUARTER)
    return xp.concatenate([boxes[..., :4], angle], -1)


def turn_back(boxes: Float[Array, "*n 5"], quarters: Float[Array, "*n"]) -> Float[Array, "*n 5"]:
    """Reduce angles by `quarters` quarter turns, exchanging w and h if odd: the same rectangles, named differently."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = _columns(boxes)
    odd = quarters % 2 == 1
    return xp.stack([x, y, xp.where(odd, h, w), xp.where(odd, w, h), angle - quarters * QUARTER], -1)


def to_polygon(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 8"]:
    """Return the corners x1 y1 ... x4 y4, clockwise on the screen."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = _columns(boxes)
    cos, sin = xp.cos(angle) / 2, xp.sin(angle) / 2
    return xp.stack(
        [place for i, j in CORNERS for place in (x + i * w * cos - j * h * sin, y + i * w * sin + j * h * cos)], -1
    )


def from_polygon(polygons: Float[Array, "*n 8"]) -> Float[Array, "*n 5"]:
    """Return the smallest rectangles around quadrilaterals x1 y1 ... x4 y4, whatever the order of their corners.

    One side of the smallest rectangle lies along a side of the convex hull, so along a line through two corners: all
    six lines are tried. OpenCV's minAreaRect does it for one polygon at a time, in float32 and on the host.
    """
    xp = polygons.__array_namespace__()
    points = polygons.reshape(*polygons.shape[:-1], 4, 2)
    origin = points.mean(-2, keepdims=True)
    points = points - origin
    lines = xp.stack([points[..., j, :] - points[..., i, :] for i, j in PAIRS], -2)
    lines = xp.where((lines**2).sum(-1, keepdims=True) > EPSILON**2, lines, xp.asarray([1.0, 0.0], dtype=lines.dtype))
    axes = lines / xp.sqrt((lines**2).sum(-1, keepdims=True))
    x, y = axes[..., 0], axes[..., 1]
    along = x[..., None, :] * points[..., :, None, 0] + y[..., None, :] * points[..., :, None, 1]
    across = x[..., None, :] * points[..., :, None, 1] - y[..., None, :] * points[..., :, None, 0]
    left, right, top, bottom = along.min(-2), along.max(-2), across.min(-2), across.max(-2)
    middle = (left + right) / 2, (top + bottom) / 2
    centre = x * middle[0] - y * middle[1], y * middle[0] + x * middle[1]
    around = xp.stack([*centre, right - left, bottom - top, xp.arctan2(y, x)], -1)
    best = xp.take_along_axis(around, xp.argmin(area(around), -1)[..., None, None], -2)[..., 0, :]
    return normalise(xp.concatenate([best[..., :2] + origin[..., 0, :], best[..., 2:]], -1))


def enclose(boxes: Float[Array, "*n 5"]) -> Float[Array, "*n 4"]:
    """Return the upright hulls x1 y1 x2 y2: the smallest upright boxes around oriented ones."""
    xp = boxes.__array_namespace__()
    x, y, w, h, angle = _columns(boxes)
    cos, sin = xp.abs(xp.cos(angle)) / 2, xp.abs(xp.sin(angle)) / 2
    across, down = w * cos + h * sin, w * sin + h * cos
    return xp.stack([x - across, y - down, x + across, y + down], -1)


def from_horizontal(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 5"]:
    """Convert upright boxes x1 y1 x2 y2 to oriented ones."""
    return normalise(_upright(boxes))


def _upright(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 5"]:
    """Convert upright boxes to w along x and an angle of 0, so not in le90 if they are tall."""
    xp = boxes.__array_namespace__()
    x1, y1, x2, y2 = _columns(boxes)
    return xp.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, xp.zeros_like(x1)], -1)


def intersection(a: Float[Array, "*#n 5"], b: Float[Array, "*#n 5"]) -> Float[Array, "*#n"]:
    """Return the area that paired (broadcast) boxes share; exactly 0 where a line parallel to a side separates them.

    By Green's theorem the area is the integral of x dy around `a`, with x and y clipped to `b`, in the axes of `b`. No
    crossings need to be found and sorted, and nothing jumps where boxes touch or sides coincide. In float32 the error
    of an IoU is at most 1e-6 for boxes of 1 : 100 and 1e-5 for boxes of 1 : 1,000, with sides from 1e-3 to 1e4.
    """
    (*centre, w, h, angle), (*origin, frame_w, frame_h, frame_angle) = _columns(a), _columns(b)
    x, y, angle = centre[0] - origin[0], centre[1] - origin[1], angle - frame_angle
    xp = x.__array_namespace__()
    smaller = xp.minimum(w * h, frame_w * frame_h)
    w, h, frame_w, frame_h = w / 2, h / 2, frame_w / 2, frame_h / 2  # halves from here on
    x, y = _turn(xp, x, y, -frame_angle)
    cos, sin = xp.cos(angle), xp.sin(angle)
    corners = [(x + i * w * cos - j * h * sin, y + i * w * sin + j * h * cos) for i, j in CORNERS]
    shared = sum(_integrate(xp, corners[k - 1], corners[k], frame_w, frame_h) for k in range(4))

    along, across = x * cos + y * sin, y * cos - x * sin
    cos, sin = xp.abs(cos), xp.abs(sin)
    apart = (xp.abs(x) > frame_w + w * cos + h * sin) | (xp.abs(y) > frame_h + w * sin + h * cos)
    apart |= (xp.abs(along) > w + frame_w * cos + frame_h * sin) | (xp.abs(across) > h + frame_w * sin + frame_h * cos)
    return xp.where(apart, 0.0, xp.clip(shared, 0.0, smaller))


def _turn(xp: Any, x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    """Turn points clockwise on the screen about the origin."""
    cos, sin = xp.cos(angle), xp.sin(angle)
    return x * cos - y * sin, x * sin + y * cos


def _integrate(xp: Any, start: tuple[Array, Array], end: tuple[Array, Array], half_w: Array, half_h: Array) -> Array:
    """Integrate x dy along a line, with y clipped to +-half_h and then x to +-half_w."""
    (x, y), (end_x, end_y) = start, end
    run, rise = end_x - x, end_y - y
    low, high = xp.clip(y, -half_h, half_h), xp.clip(end_y, -half_h, half_h)
    first = x + run * xp.clip(_divide(xp, low - y, rise), 0.0, 1.0)
    last = end_x + run * xp.clip(_divide(xp, high - end_y, rise), -1.0, 0.0)
    # Inside the strip the mean of x is that of the line's ends; for the share outside it is that of the clipped ends.
    held_first, held_last = xp.clip(first, -half_w, half_w), xp.clip(last, -half_w, half_w)
    held_mean = (held_first + held_last) / 2  # named: with the sum written twice XLA splits `iou` into 13 loops
    inside = _divide(xp, held_last - held_first, last - first)
    return (high - low) * (held_mean + inside * ((first + last) / 2 - held_mean))


def _divide(xp: Any, numerator: Array, denominator: Array) -> Array:
    """Divide; 0, without a gradient, where the numerator is 0 or the denominator is nearly 0."""
    # The terms in the gradient of a numerator clipped to 0 cancel; divided by a small number, their rounding would not.
    safe = (numerator != 0) & (xp.abs(denominator) > EPSILON)
    return xp.where(safe, numerator, 0.0) / xp.where(safe, denominator, 1.0)


def paired_iou(a: Float[Array, "*#n 5"], b: Float[Array, "*#n 5"]) -> Float[Array, "*#n"]:
    """Return the intersection over union of paired boxes, in [0, 1]."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / union.__array_namespace__().maximum(union, EPSILON)


def iou(a: Float[Array, "m 5"], b: Float[Array, "n 5"]) -> Float[Array, "m n"]:
    """Return the intersection over union of every pair, in [0, 1]."""
    return paired_iou(a[:, None], b[None])


def overlap_of_first(a: Float[Array, "m 5"], b: Float[Array, "n 5"]) -> Float[Array, "m n"]:
    """Return the share of each box of `a` that lies inside each box of `b`, in [0, 1]."""
    shared = intersection(a[:, None], b[None])
    return shared / shared.__array_namespace__().maximum(area(a), EPSILON)[:, None]


def contain(boxes: Float[Array, "n 5"], points: Float[Array, "m 2"]) -> Bool[Array, "m n"]:
    """Say whether each point (x, y) lies in each box."""
    x, y, w, h, angle = _columns(boxes)
    xp = boxes.__array_namespace__()
    along, across = _turn(xp, points[:, :1] - x, points[:, 1:] - y, -angle)
    return (xp.abs(along) <= w / 2) & (xp.abs(across) <= h / 2)


def encode(
    anchors: Float[Array, "*#n 5"], boxes: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """Return the deltas (dx, dy, dw, dh, radians) / stds from anchors to boxes; finite for empty boxes too.

    The offset is measured along the anchor's sides, and w is the side of the box closer in direction to the anchor's w,
    so that no angle exceeds pi/4: Oriented R-CNN (Xie et al. 2021) with the edge swap of its code.
    """
    difference = boxes - anchors
    xp = difference.__array_namespace__()
    anchors, boxes = xp.broadcast_arrays(anchors, boxes)
    seen = xp.concatenate([boxes[..., :4], difference[..., 4:]], -1)
    seen = turn_back(seen, xp.round(seen[..., 4] / QUARTER))
    size, anchor_size = xp.maximum(seen[..., 2:4], EPSILON), xp.maximum(anchors[..., 2:4], EPSILON)
    offset = xp.stack(_turn(xp, difference[..., 0], difference[..., 1], -anchors[..., 4]), -1)
    deltas = xp.concatenate([offset / anchor_size, xp.log(size / anchor_size), seen[..., 4:]], -1)
    return deltas / xp.asarray(stds, dtype=deltas.dtype)


def decode(
    anchors: Float[Array, "*#n 5"], deltas: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """Return the boxes to which deltas lead from anchors: the inverse of `encode`, sides growing at most 62.5 times."""
    xp = (anchors[..., :1] + deltas[..., :1]).__array_namespace__()
    deltas = deltas * xp.asarray(stds, dtype=deltas.dtype)
    offset = deltas[..., :2] * anchors[..., 2:4]
    centre = anchors[..., :2] + xp.stack(_turn(xp, offset[..., 0], offset[..., 1], anchors[..., 4]), -1)
    size = anchors[..., 2:4] * xp.exp(xp.clip(deltas[..., 2:4], -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return normalise(xp.concatenate([centre, size, anchors[..., 4:] + deltas[..., 4:]], -1))


def encode_horizontal(
    anchors: Float[Array, "*#n 4"], boxes: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """Encode boxes from upright anchors, the angle in turns instead of radians, as in rotated Faster R-CNN."""
    return encode(_upright(anchors), boxes, (*stds[:4], 2 * math.pi * stds[4]))


def decode_horizontal(
    anchors: Float[Array, "*#n 4"], deltas: Float[Array, "*#n 5"], stds: tuple[float, ...]
) -> Float[Array, "*#n 5"]:
    """Return the oriented boxes to which deltas lead from upright anchors: the inverse of `encode_horizontal`."""
    return decode(_upright(anchors), deltas, (*stds[:4], 2 * math.pi * stds[4]))
