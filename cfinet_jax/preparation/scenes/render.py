"""Render a road scene with small objects, distractors and regions to ignore, determined by its seeds."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cfinet_jax.preparation.scenes.templates import CLASSES, DISTRACTORS, OBJECTS, Family, Template, template
from cfinet_jax.preparation.scenes.textures import texture

SIZE = 320  # pixels, height and width of a scene
SUPERSAMPLING = 4
FIRST_SEED = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # splits never share a seed
OUTLINE = 0.5  # pixels of outline around the strokes
TEMPLATES = 200  # templates per family and split
CONTRAST = 75  # minimum difference in brightness between body and background, and detail and body
ANY_CLASS = -1  # label of a region in which objects of every class are ignored

RIM = np.ones((2 * round(OUTLINE * SUPERSAMPLING) + 1,) * 2, np.uint8)


class Scene(NamedTuple):
    """A picture, its ground truth and the seeds that it was made from."""

    image: np.ndarray  # uint8 [SIZE, SIZE, 3], R G B
    boxes: np.ndarray  # float32 [objects, 4], x1 y1 x2 y2 in pixels
    labels: np.ndarray  # int64 [objects], ANY_CLASS for regions
    ignore: np.ndarray  # bool [objects], True for regions
    scene_seed: int
    texture_seed: int
    template_seeds: tuple[int, ...]


def brightness(colour: np.ndarray) -> float:
    """Return the luma of a colour, 0 to 255."""
    return float(colour @ (0.299, 0.587, 0.114))


def contrasting(rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Draw a colour clearly brighter or darker than the other."""
    level = brightness(other)
    darker, brighter = max(level - CONTRAST, 0), max(255 - level - CONTRAST, 0)
    target = rng.uniform(0, darker + brighter)
    if target > darker:
        target += level + CONTRAST - darker
    colour = rng.uniform(-110, 110, 3)
    return np.clip(colour + target - brightness(colour), 0, 255)


def palette(rng: np.random.Generator, background: np.ndarray) -> dict[str, list[float]]:
    """Draw the colours of one instance, independently of its class, so that colour gives nothing away."""
    body = contrasting(rng, background)
    detail = contrasting(rng, body)
    outline = rng.uniform(0, 45) if brightness(body) > 127 else rng.uniform(210, 255)
    colours = {"body": body, "detail": detail, "dim": 0.6 * body + 0.4 * detail, "lamp": detail}
    return {role: colour.tolist() for role, colour in colours.items()} | {"outline": [outline] * 3}


def draw(
    rng: np.random.Generator, shape: Template, side: float, colours: dict[str, list[float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a template with sqrt(width * height) of about `side` pixels.

    Returns:
      colour uint8 [h, w, 3] multiplied by alpha, alpha float32 [h, w, 1], and the tight box of alpha in it.
    """
    height = max((side - 2 * OUTLINE) / math.sqrt(shape.aspect), 4.0)
    angle, mirror = math.radians(rng.uniform(-7, 7)), rng.choice([-1.0, 1.0])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) * ([mirror], [1.0])
    reach = math.ceil(height * math.hypot(shape.aspect, 1) / 2 + 2 * OUTLINE) + 1
    extent = 2 * reach * SUPERSAMPLING
    middle = extent / 2 + rng.uniform(0, SUPERSAMPLING, 2)
    scale = height * SUPERSAMPLING

    mask, colour = np.zeros((extent, extent), np.uint8), np.zeros((extent, extent, 3), np.uint8)
    corners = np.concatenate([each.points for each in shape.strokes]) - (shape.aspect / 2, 0.5)
    corners = np.rint((corners @ turn * scale + middle) * 16).astype(np.int32)  # sixteenths: shift=4 below
    strokes, begin = [], 0
    for role, points, width in shape.strokes:
        strokes.append((colours[role], [corners[begin : begin + len(points)]], round(width * scale)))
        begin += len(points)
    for _, points, width in strokes:
        stroke(mask, points, 255, width)
    mask = cv2.dilate(mask, RIM)
    colour[mask > 0] = colours["outline"]
    for shade, points, width in strokes:
        stroke(colour, points, shade, width)
    x, y, w, h = cv2.boundingRect(mask)
    box = np.array([x, y, x + w, y + h], np.float32) / SUPERSAMPLING
    size = (2 * reach, 2 * reach)
    alpha = cv2.resize(mask, size, interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    return cv2.resize(colour, size, interpolation=cv2.INTER_AREA), alpha, box


def stroke(canvas: np.ndarray, points: list[np.ndarray], shade: int | list[float], width: int) -> None:
    """Draw a line of `width` canvas pixels, or fill the polygon if it is 0."""
    if width:
        cv2.polylines(canvas, points, False, shade, max(width, 2), shift=4)
    else:
        cv2.fillPoly(canvas, points, shade, shift=4)


def crowded(box: np.ndarray, taken: list[np.ndarray], share: float = 0.15) -> bool:
    """Whether the box shares more than `share` of its own or the other's area with a box already taken."""
    x1, y1, x2, y2 = box.tolist()
    for other in taken:
        left, top, right, bottom = other.tolist()
        width, height = min(x2, right) - max(x1, left), min(y2, bottom) - max(y1, top)
        smaller = min((x2 - x1) * (y2 - y1), (right - left) * (bottom - top))
        if width > 0 and height > 0 and width * height > share * smaller:
            return True
    return False


def paste(
    rng: np.random.Generator,
    image: np.ndarray,
    shape: Template,
    side: float,
    area: Sequence[float] | np.ndarray,
    taken: list[np.ndarray],
) -> np.ndarray | None:
    """Draw a template at random in `area` (x1 y1 x2 y2) beside the boxes `taken`; return its box, None without room."""
    x1, y1, x2, y2 = area
    place = rng.uniform((x1 + 3, y1 + 3), (x2 - 3, y2 - 3)).astype(int)
    near = image[max(place[1] - 12, 0) : place[1] + 12, max(place[0] - 12, 0) : place[0] + 12]
    colour, alpha, box = draw(rng, shape, side, palette(rng, np.array(cv2.mean(near)[:3])))
    low, high = np.array([x1, y1]) - np.floor(box[:2]), np.array([x2, y2]) - np.ceil(box[2:])
    for _ in range(20):
        corner = np.clip(place - len(alpha) // 2, low, high).astype(int)
        placed = box + np.tile(corner, 2)
        if not crowded(placed, taken):
            blend(image, colour, alpha, corner)
            return placed
        place = rng.uniform((x1, y1), (x2, y2)).astype(int)
    return None


def blend(image: np.ndarray, colour: np.ndarray, alpha: np.ndarray, corner: np.ndarray) -> None:
    """Lay a drawing over the image with its upper left pixel at `corner` (x, y), clipped by the image."""
    begin = np.maximum(-corner, 0)
    end = np.minimum(len(alpha), SIZE - corner)
    part = (slice(begin[1], end[1]), slice(begin[0], end[0]))
    target = image[corner[1] + begin[1] : corner[1] + end[1], corner[0] + begin[0] : corner[0] + end[0]]
    target *= 1 - alpha[part]
    target += colour[part]


def draw_region(rng: np.random.Generator, image: np.ndarray, pick: Callable[[Family], Template]) -> np.ndarray:
    """Fill a random rectangle with blurred tiny objects that nobody could label; return its box."""
    width, height = rng.integers(45, 90, 2)
    x, y = rng.integers(0, SIZE - width), rng.integers(0, SIZE - height)
    box = np.array([x, y, x + width, y + height], np.float32)
    taken: list[np.ndarray] = []
    for _ in range(int(width * height / 150)):
        placed = paste(rng, image, pick(OBJECTS[rng.integers(len(OBJECTS))]), rng.uniform(5, 7), box, taken)
        if placed is not None:
            taken.append(placed)
    part = image[y : y + height, x : x + width]
    part[...] = cv2.GaussianBlur(part, (0, 0), 1.1)
    return box


def render_scene(split: str, index: int) -> Scene:
    """Render picture number `index` of a split: 'train', 'val' or 'test'."""
    seed = FIRST_SEED[split] + index
    rng = np.random.default_rng((0, seed))
    image = texture(seed, SIZE)
    template_seeds: list[int] = []

    def pick(family: Family) -> Template:
        template_seeds.append(FIRST_SEED[split] + int(rng.integers(TEMPLATES)))
        return template(family, template_seeds[-1])

    empty = rng.random() < 0.03
    count = 0 if empty else int(rng.integers(4, 15))
    taken, labels = [], []
    if not empty and rng.random() < 0.2:
        taken.append(draw_region(rng, image, pick))
        labels.append(ANY_CLASS)
    everywhere = (0, 0, SIZE, SIZE)
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        box = paste(rng, image, pick(OBJECTS[label]), draw_side(rng), everywhere, taken)
        if box is not None:
            taken.append(box)
            labels.append(label)
    boxes = np.array(taken, np.float32).reshape(-1, 4)
    for _ in range(int(rng.integers(4, 15))):
        family = DISTRACTORS[rng.integers(len(DISTRACTORS))]
        box = paste(rng, image, pick(family), draw_side(rng), everywhere, taken)
        if box is not None:
            taken.append(box)
    image += rng.uniform(1, 4) * rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
    labels = np.array(labels, np.int64)
    np.clip(image, 0, 255, out=image)
    return Scene(image.astype(np.uint8), boxes, labels, labels == ANY_CLASS,
                 seed, seed, tuple(template_seeds))  # fmt: skip


def draw_side(rng: np.random.Generator) -> float:
    """Draw the side of an instance in pixels: log-normal, clipped to 8..32."""
    return float(np.clip(14.4 * math.exp(rng.normal(0, 0.35)), 8, 32))
