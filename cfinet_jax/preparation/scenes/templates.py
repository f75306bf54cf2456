"""Parametrised outlines of the things in a scene, which differ in structure and never in colour.

Coordinates are in units of the thing's height: y runs from 0 (top) to 1, x from 0 to the aspect ratio.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CLASSES = ("people", "bicycle", "vehicle", "traffic-sign", "traffic-light", "warning-cone")


class Stroke(NamedTuple):
    """A filled polygon (`width` 0) or a line of some width, in one colour of the instance's palette."""

    role: str  # body | detail | dim | lamp
    points: np.ndarray
    width: float = 0.0


class Template(NamedTuple):
    """A shape that instances of any size and colour are drawn from."""

    aspect: float  # width / height
    strokes: tuple[Stroke, ...]


Family = Callable[[np.random.Generator], Template]


def polygon(role: str, *points: tuple[float, float]) -> Stroke:
    return Stroke(role, np.array(points))


def rectangle(role: str, x1: float, y1: float, x2: float, y2: float) -> Stroke:
    return polygon(role, (x1, y1), (x2, y1), (x2, y2), (x1, y2))


def line(role: str, width: float, *points: tuple[float, float]) -> Stroke:
    return Stroke(role, np.array(points), width)


def circle(x: float, y: float, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 25)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def disc(role: str, x: float, y: float, radius: float) -> Stroke:
    return Stroke(role, circle(x, y, radius))


def ring(role: str, x: float, y: float, radius: float, width: float) -> Stroke:
    return Stroke(role, circle(x, y, radius - width / 2), width)


def people(rng: np.random.Generator) -> Template:
    aspect, head = rng.uniform(0.40, 0.50), rng.uniform(0.12, 0.15)
    middle, waist, shoulder = aspect / 2, rng.uniform(0.55, 0.64), rng.uniform(0.13, 0.17)
    stride, limb = rng.uniform(0.5, 1.0) * (middle - 0.06), rng.uniform(0.10, 0.13)
    neck = 2 * head
    return Template(aspect, (
        line("detail", limb, (middle, waist - 0.05), (middle - stride, 1 - limb / 2)),
        line("detail", limb, (middle, waist - 0.05), (middle + stride, 1 - limb / 2)),
        line("body", limb * 0.8, (middle - shoulder, neck + 0.08), (limb / 2, waist)),
        line("body", limb * 0.8, (middle + shoulder, neck + 0.08), (aspect - limb / 2, waist)),
        polygon("body", (middle - shoulder, neck), (middle + shoulder, neck),
                (middle + 0.1, waist + 0.03), (middle - 0.1, waist + 0.03)),
        disc("detail", middle, head, head),
    ))  # fmt: skip


def bicycle(rng: np.random.Generator) -> Template:
    radius, rim = rng.uniform(0.30, 0.35), rng.uniform(0.10, 0.13)
    aspect, tube = 2 * radius + rng.uniform(0.90, 1.25), rng.uniform(0.09, 0.11)
    back, front, axle = radius, aspect - radius, 1 - radius
    pedal, seat = (back + front) / 2 - 0.08, (back + 0.14, 0.22)
    bars = (front - rng.uniform(0.10, 0.18), 0.12)
    return Template(aspect, (
        ring("body", back, axle, radius, rim),
        ring("body", front, axle, radius, rim),
        line("body", tube, (back, axle), seat, (pedal, axle), (back, axle)),
        line("body", tube, (pedal, axle), bars, (front, axle)),
        line("body", tube, seat, bars),
        line("body", tube, (seat[0] - 0.14, 0.16), (seat[0] + 0.14, 0.16)),
        line("body", tube, bars, (bars[0] + 0.16, 0.08)),
    ))  # fmt: skip


def vehicle(rng: np.random.Generator) -> Template:
    aspect, belt, wheel = rng.uniform(1.5, 1.95), rng.uniform(0.38, 0.5), rng.uniform(0.17, 0.21)
    floor, hood, boot = 1 - wheel, rng.uniform(0.15, 0.35) * aspect, rng.uniform(0.0, 0.2) * aspect
    slope = rng.uniform(0.05, 0.2)
    left, right, pillar = boot + slope, aspect - hood - slope, rng.uniform(0.4, 0.6)
    post = left + pillar * (right - left)
    return Template(aspect, (
        polygon("body", (0, belt), (boot, belt), (left, 0), (right, 0), (aspect - hood, belt),
                (aspect, belt + 0.08), (aspect, floor), (0, floor)),
        polygon("detail", (left + 0.03, 0.1), (post - 0.06, 0.1), (post - 0.06, belt), (left - 0.05, belt)),
        polygon("detail", (post + 0.06, 0.1), (right - 0.03, 0.1), (right + 0.05, belt), (post + 0.06, belt)),
        disc("detail", 0.22 * aspect, 1 - wheel, wheel),
        disc("detail", 0.78 * aspect, 1 - wheel, wheel),
        disc("body", 0.22 * aspect, 1 - wheel, wheel * 0.35),
        disc("body", 0.78 * aspect, 1 - wheel, wheel * 0.35),
    ))  # fmt: skip


def traffic_sign(rng: np.random.Generator) -> Template:
    rim, length, bar = rng.uniform(0.10, 0.14), rng.uniform(0.24, 0.30), rng.uniform(0.13, 0.18)
    tilt = rng.choice([0.0, np.pi / 4, -np.pi / 4])
    dx, dy = length * np.cos(tilt), length * np.sin(tilt)
    return Template(1.0, (
        disc("body", 0.5, 0.5, 0.5),
        ring("detail", 0.5, 0.5, 0.5, rim),
        line("detail", bar, (0.5 - dx, 0.5 - dy), (0.5 + dx, 0.5 + dy)),
    ))  # fmt: skip


def traffic_light(rng: np.random.Generator) -> Template:
    aspect, bevel = rng.uniform(0.40, 0.50), rng.uniform(0.0, 0.1)
    radius, lit = rng.uniform(0.115, 0.135), rng.integers(3)
    housing = polygon("body", (bevel, 0), (aspect - bevel, 0), (aspect, bevel), (aspect, 1 - bevel),
                      (aspect - bevel, 1), (bevel, 1), (0, 1 - bevel), (0, bevel))  # fmt: skip
    lamps = (disc("lamp" if i == lit else "dim", aspect / 2, 0.18 + 0.32 * i, radius) for i in range(3))
    return Template(aspect, (housing, *lamps))


def warning_cone(rng: np.random.Generator) -> Template:
    aspect, tip, base = rng.uniform(0.82, 1.02), rng.uniform(0.05, 0.10), rng.uniform(0.10, 0.14)
    middle, foot = aspect / 2, rng.uniform(0.30, 0.36) * aspect

    def band(top: float, bottom: float) -> Stroke:
        upper, lower = (tip + (foot - tip) * y / (1 - base) for y in (top, bottom))
        return polygon("detail", (middle - upper, top), (middle + upper, top),
                       (middle + lower, bottom), (middle - lower, bottom))  # fmt: skip

    first, thick = rng.uniform(0.22, 0.30), rng.uniform(0.15, 0.19)
    second = first + thick + rng.uniform(0.12, 0.16)
    return Template(aspect, (
        polygon("body", (middle - tip, 0), (middle + tip, 0), (middle + foot, 1 - base), (middle - foot, 1 - base)),
        rectangle("body", 0, 1 - base, aspect, 1),
        band(first, first + thick),
        band(second, second + thick),
    ))  # fmt: skip


def common_aspect(rng: np.random.Generator) -> float:
    """Draw an aspect ratio that objects have too, so that it does not give a distractor away."""
    return rng.choice([0.45, 0.95, 1.7]) * rng.uniform(0.88, 1.14)


def bar(rng: np.random.Generator) -> Template:
    aspect = common_aspect(rng)
    return Template(aspect, (
        rectangle("body", 0, 0, aspect, 1),
        rectangle("detail", 0.3 * aspect, 0.25, 0.6 * aspect, 0.75),
    ))  # fmt: skip


def cross(rng: np.random.Generator) -> Template:
    aspect, width = common_aspect(rng), rng.uniform(0.15, 0.3)
    return Template(aspect, (
        line("body", width, (width / 2, 0.5), (aspect - width / 2, 0.5)),
        line("detail" if rng.random() < 0.5 else "body", width, (aspect / 2, width / 2), (aspect / 2, 1 - width / 2)),
    ))  # fmt: skip


def blob(rng: np.random.Generator) -> Template:
    aspect = common_aspect(rng)
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radii = rng.uniform(0.6, 1.0, (12, 1)) * (aspect / 2, 0.5)
    outline = (aspect / 2, 0.5) + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    spot = disc("detail", aspect * rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.7), 0.15 * min(aspect, 1))
    return Template(aspect, (Stroke("body", outline), spot))


def zigzag(rng: np.random.Generator) -> Template:
    aspect, width = common_aspect(rng), rng.uniform(0.10, 0.16)
    points = rng.uniform(width / 2, 1 - width / 2, (rng.integers(2, 5), 2)) * (aspect, 1)
    return Template(aspect, (Stroke("body", points, width),))


def shard(rng: np.random.Generator) -> Template:
    aspect = common_aspect(rng)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 6)))
    corners = 0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return Template(aspect, (
        Stroke("body", corners * (aspect, 1)),
        Stroke("detail", (0.5 * corners + 0.5 * corners.mean(axis=0)) * (aspect, 1)),
    ))  # fmt: skip


def hoop(rng: np.random.Generator) -> Template:
    width = rng.uniform(0.12, 0.25)
    inside = (disc("detail", 0.5, 0.5, 0.5),) if rng.random() < 0.5 else ()
    return Template(1.0, (*inside, ring("body", 0.5, 0.5, 0.5, width)))


OBJECTS = (people, bicycle, vehicle, traffic_sign, traffic_light, warning_cone)  # in the order of CLASSES
DISTRACTORS = (bar, cross, blob, zigzag, shard, hoop)


@functools.cache
def template(make: Family, seed: int) -> Template:
    """Return the template that `make` draws from `seed`."""
    return make(np.random.default_rng((2, seed)))
