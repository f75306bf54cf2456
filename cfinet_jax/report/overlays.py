"""Pictures with detections and ground truth drawn on them."""

from collections.abc import Callable, Iterable

import cv2
import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8

from cfinet_jax.boxes import oriented
from cfinet_jax.metrics.results import box_of

Picture = UInt8[np.ndarray, "height width 3"]
Outline = Int32[np.ndarray, "4 2"]  # corners x y, in pixels of the canvas

CANVAS_SIDE = 2000  # pixels that small pictures are enlarged to,
MAX_ENLARGEMENT = 3  # but by no more than this
FONT, TEXT_SCALE, LINE_HEIGHT, SWATCH = cv2.FONT_HERSHEY_SIMPLEX, 0.42, 24, 16
WHITE, BLACK, PANEL = (255, 255, 255), (0, 0, 0), (32, 32, 32)
PALETTE = (  # colours of the classes, visible on dark, bright and grey pictures alike
    (255, 90, 60),
    (60, 200, 255),
    (255, 210, 40),
    (110, 230, 90),
    (235, 110, 255),
    (255, 150, 40),
    (90, 140, 255),
    (40, 220, 180),
    (255, 130, 180),
    (200, 170, 120),
)


def write_overlays(
    folder: epath.Path,
    pictures: Iterable[tuple[str, Picture, list[dict], list[dict]]],
    classes: dict[int, str],
    min_score: float,
) -> None:
    """Write `<name>.png` for each (name, image, detections, ground truth), drawn by `draw_overlay`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, detections, ground_truth in pictures:
        overlay = draw_overlay(image, detections, ground_truth, classes, min_score)
        _, png = cv2.imencode(".png", cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))
        (folder / f"{name}.png").write_bytes(png.tobytes())


def draw_overlay(
    image: Picture, detections: list[dict], ground_truth: list[dict], classes: dict[int, str], min_score: float
) -> Picture:
    """Draw detections in the colour of their class, dashed ground truth, hatched ignore regions, and a legend below.

    The picture is enlarged by a whole number, so that objects of 8 pixels can be seen.

    Args:
      image: R G B.
      detections: COCO results of this image, x y w h or oriented, in its pixels.
      ground_truth: COCO annotations of this image. Those with `ignore` or `iscrowd`, or of a category that is not in
        `classes`, are ignore regions.
      classes: category id -> name.
      min_score: least score of the detections that are drawn.
    """
    factor = int(np.clip(CANVAS_SIDE // max(image.shape[:2]), 1, MAX_ENLARGEMENT))
    canvas = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    colours = {category_id: PALETTE[k % len(PALETTE)] for k, category_id in enumerate(sorted(classes))}
    regions, objects = [], []
    for annotation in ground_truth:
        ignored = annotation.get("ignore") or annotation.get("iscrowd") or annotation["category_id"] not in classes
        (regions if ignored else objects).append(_outline(box_of(annotation), factor))
    shown = sorted((d for d in detections if d["score"] >= min_score), key=lambda d: d["score"])

    _hatch(canvas, regions)
    for detection in shown:
        around = _outline(detection["bbox"], factor, margin=1)
        cv2.polylines(canvas, [around], True, colours[detection["category_id"]], 2)
    _dash(canvas, objects)
    for detection in shown:
        text = f"{classes[detection['category_id']][:3]} {100 * detection['score']:.0f}"
        _tag(canvas, text, _outline(detection["bbox"], factor), colours[detection["category_id"]])
    seen = {entry["category_id"] for entry in [*shown, *ground_truth]}
    marks = {
        name: draw for name, draw, boxes in (("ground truth", _dash, objects), ("ignored", _hatch, regions)) if boxes
    }
    legend = _legend(canvas.shape[1], marks, {classes[k]: colour for k, colour in colours.items() if k in seen})
    return np.concatenate([canvas, legend])


def _outline(box: list[float], factor: int, margin: int = 0) -> Outline:
    """Return the corners of a box on the canvas, moved outwards by a margin in pixels of the canvas."""
    if len(box) == 5:
        x, y, width, height = (factor * side for side in box[:4])
        larger = np.array([x, y, width + 2 * margin, height + 2 * margin, box[4]])
        return oriented.to_polygon(larger).round().astype(np.int32).reshape(4, 2)
    x, y, width, height = (factor * side for side in box)
    return _rectangle(round(x) - margin, round(y) - margin, round(x + width) + margin, round(y + height) + margin)


def _rectangle(x1: int, y1: int, x2: int, y2: int) -> Outline:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.int32)


def _hatch(canvas: Picture, outlines: list[Outline]) -> None:
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for outline in outlines:
        cv2.fillConvexPoly(mask, outline, 1)
    rows, columns = np.nonzero(mask)
    canvas[rows, columns] = canvas[rows, columns] // 2 + 64
    stripes = (rows + columns) % 8 == 0
    canvas[rows[stripes], columns[stripes]] = 210


def _dash(canvas: Picture, outlines: list[Outline]) -> None:
    """Draw white dashes with black between them, visible on any background and over the colour of a detection."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.polylines(mask, outlines, True, 1)
    rows, columns = np.nonzero(mask)
    dashes = (rows + columns) // 4 % 2 == 0
    canvas[rows, columns] = np.where(dashes[:, None], WHITE, BLACK)


def _tag(canvas: Picture, text: str, outline: Outline, colour: tuple[int, int, int]) -> None:
    """Write black on colour above the box, or below it at the upper border of the picture."""
    (width, height), _ = cv2.getTextSize(text, FONT, TEXT_SCALE, 1)
    (x1, y1), (_, y2) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    x = max(min(x1 - 2, canvas.shape[1] - width - 4), 0)
    base = y1 - 4 if y1 > height + 8 else y2 + height + 6
    cv2.rectangle(canvas, (x, base - height - 2), (x + width + 3, base + 2), colour, cv2.FILLED)
    cv2.putText(canvas, text, (x + 2, base), FONT, TEXT_SCALE, BLACK, 1, cv2.LINE_AA)


def _legend(width: int, marks: dict[str, Callable], colours: dict[str, tuple[int, int, int]]) -> Picture:
    """Draw a strip of the given width that explains marks and colours."""
    places, x, y = [], 8, 4
    names = [*marks, *colours]
    for name in names:
        (text_width, _), _ = cv2.getTextSize(name, FONT, TEXT_SCALE, 1)
        if x > 8 and x + SWATCH + 6 + text_width > width:
            x, y = 8, y + LINE_HEIGHT
        places.append((x, y, x + SWATCH, y + SWATCH))
        x += SWATCH + 6 + text_width + 18
    strip = np.full((y + LINE_HEIGHT, width, 3), PANEL, np.uint8)
    for place, draw in zip(places, marks.values(), strict=False):
        draw(strip, [_rectangle(*place)])
    for (x1, y1, x2, y2), colour in zip(places[len(marks) :], colours.values(), strict=True):
        cv2.rectangle(strip, (x1, y1), (x2, y2), colour, 2)
    for name, (_, y1, x2, _) in zip(names, places, strict=True):
        cv2.putText(strip, name, (x2 + 6, y1 + 12), FONT, TEXT_SCALE, WHITE, 1, cv2.LINE_AA)
    return strip
