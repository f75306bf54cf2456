"""Backgrounds of the generated scenes: functions (rng, size) -> float32 [size, size, 3] in grey levels."""

import cv2
import numpy as np


def noise(rng: np.random.Generator, size: int, cells: tuple[int, ...], channels: int = 1) -> np.ndarray:
    """Draw smooth noise of about unit deviation, float32 [size, size, channels]: one octave per number of cells."""
    total = np.zeros((size, size, channels), np.float32)
    for level, n in enumerate(cells):
        octave = rng.standard_normal((n, n, channels), dtype=np.float32) / (level + 1)
        total += cv2.resize(octave, (size, size)).reshape(size, size, channels)
    return total


def tone(rng: np.random.Generator) -> np.ndarray:
    """Draw a muted colour that leaves room for brighter and darker things."""
    return (rng.uniform(75, 180) + rng.uniform(-30, 30, 3)).astype(np.float32)


def cloudy(rng: np.random.Generator, size: int) -> np.ndarray:
    return tone(rng) + 13 * noise(rng, size, (4, 9, 20, 45, 100), channels=3)


def gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    corners = tone(rng) + rng.uniform(-45, 45, (2, 2, 1)).astype(np.float32)
    return cv2.resize(corners, (size, size)) + 6 * noise(rng, size, (10, 60))


def asphalt(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw grained ground with dashed lane marks and cracks."""
    base = tone(rng)
    ground = base + 5 * noise(rng, size, (6, 40, 160))
    marks = np.zeros((size, size), np.float32)
    slant, pitch = rng.uniform(-0.6, 0.6), rng.uniform(50, 110)
    dash, width = rng.uniform(15, 45), int(rng.integers(2, 6))
    for x in np.arange(-size * abs(slant), size * (1 + abs(slant)), pitch):
        for y in np.arange(rng.uniform(-dash, 0), size, 2 * dash):
            ends = [(x + slant * y, y), (x + slant * (y + dash), y + dash)]
            cv2.polylines(marks, [np.rint(ends).astype(np.int32)], False, 1.0, width)
    for _ in range(rng.integers(2, 7)):
        crack = np.cumsum(rng.normal(0, 14, (12, 2)), axis=0) + rng.uniform(0, size, 2)
        cv2.polylines(marks, [np.rint(crack).astype(np.int32)], False, -0.8, 1)
    return ground + rng.choice([-1, 1]) * rng.uniform(35, 65) * marks[..., None]


def bricks(rng: np.random.Generator, size: int) -> np.ndarray:
    height, width = int(rng.integers(9, 26)), int(rng.integers(14, 56))
    joint, shift = int(rng.integers(1, 3)), width // 2 * int(rng.integers(2))
    y, x = np.arange(size), np.arange(size)
    rows = y // height
    x = x + shift * (rows[:, None] % 2)
    shades = rng.normal(0, 15, (size // height + 1, size // width + 3)).astype(np.float32)
    wall = shades[rows[:, None], x // width]
    wall[(y % height < joint)[:, None] | (x % width < joint)] = rng.choice([-1, 1]) * rng.uniform(22, 40)
    wall += 5 * noise(rng, size, (8, 80))[..., 0]
    return tone(rng) + wall[..., None]


def foliage(rng: np.random.Generator, size: int) -> np.ndarray:
    base = tone(rng)
    leaves = base + 8 * noise(rng, size, (5, 12), channels=3)
    count = int(rng.integers(250, 500))
    centres, axes = rng.integers(0, size, (count, 2)).tolist(), rng.integers(2, 11, (count, 2)).tolist()
    angles, shades = (
        rng.integers(0, 180, count).tolist(),
        base + rng.normal(0, 24, (count, 1)) + rng.normal(0, 7, (count, 3)),
    )
    for centre, radii, angle, shade in zip(centres, axes, angles, shades.tolist(), strict=True):
        cv2.ellipse(leaves, centre, radii, angle, 0, 360, shade, -1)
    return leaves + 4 * noise(rng, size, (120,))


TEXTURES = (cloudy, gradient, asphalt, bricks, foliage)


def stretch_wires(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw wires, posts and kerbs right across the image, so that objects are not islands on a plain background."""
    size, ground = len(image), np.array(cv2.mean(image)[:3])
    for _ in range(rng.integers(5, 11)):
        start, stop = rng.uniform(0, size, 2)
        ends = np.array([(start, 0), (stop, size)] if rng.random() < 0.5 else [(0, start), (size, stop)])
        shade = np.clip(ground + rng.choice([-1, 1]) * rng.uniform(60, 110), 0, 255).tolist()
        cv2.polylines(image, [np.rint(ends).astype(np.int32)], False, shade, int(rng.integers(1, 4)))


def texture(seed: int, size: int) -> np.ndarray:
    """Return the background that belongs to `seed`, float32 [size, size, 3]."""
    rng = np.random.default_rng((1, seed))
    image = TEXTURES[rng.integers(len(TEXTURES))](rng, size)
    stretch_wires(rng, image)
    return image
