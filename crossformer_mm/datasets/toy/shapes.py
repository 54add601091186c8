"""Draws single everyday things as caricatures: for each kind a picture and a soft outline.

A thing is drawn on a square ``_Patch`` in its own coordinates: u to the right, v down, both
-1..1 at half its size, so that every kind fits the unit circle. Colours are BGR, 0..1.
"""

from dataclasses import dataclass

import numpy as np

from crossformer_mm.datasets.toy.texture import vary_colour

WHITE, CREAM, DARK = (0.93, 0.94, 0.94), (0.72, 0.85, 0.93), (0.12, 0.11, 0.13)


@dataclass
class Shape:
    """A drawn thing: its BGR colour (n, n, 3) and how much it covers each pixel (n, n), 0..1."""

    kind: str
    colour: np.ndarray
    cover: np.ndarray


class _Patch:
    def __init__(self, rng, size, tilt):
        side = int(np.ceil(size)) + 2
        grid = (np.arange(side, dtype=np.float32) - (side - 1) / 2) * (2 / size)
        cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
        self.rng, self.pixel = rng, 2 / size
        self.u = cos * grid[None, :] + sin * grid[:, None]
        self.v = cos * grid[:, None] - sin * grid[None, :]
        self.r, self.angle = np.hypot(self.u, self.v), np.arctan2(self.v, self.u)
        self.colour = np.zeros((side, side, 3), np.float32)

    def cover(self, distance):
        """1 where distance is negative, 0 where it is positive, blended over one pixel between."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def fill(self, colour, distance=-9.0):
        cover = np.asarray(self.cover(distance), np.float32)[..., None]
        self.colour += (np.float32(colour) - self.colour) * cover

    def disc(self, u, v, radius):
        return np.hypot(self.u - u, self.v - v) - radius

    def bar(self, u, v, half_width, half_height):
        return np.maximum(abs(self.u - u) - half_width, abs(self.v - v) - half_height)

    def hue(self, hue, saturation=0.85, value=0.85):
        return vary_colour(self.rng, hue, saturation, value)


# Each of these paints the patch and returns the distance to the thing's outline, negative inside.


def _stop_sign(p):
    outline = np.max([abs(p.u * np.cos(a) + p.v * np.sin(a)) for a in np.pi / 4 * np.arange(4)], 0)
    p.fill(WHITE)
    p.fill(p.hue(0.99, 0.9, 0.75), outline - 0.83)
    for u in (-0.52, -0.17, 0.17, 0.52):
        p.fill(WHITE, p.bar(u, 0, 0.12, 0.24))
        p.fill(p.hue(0.99, 0.9, 0.75), p.bar(u, p.rng.uniform(-0.15, 0.15), 0.04, 0.1))
    return outline - 0.92


def _umbrella(p):
    first = p.rng.uniform()
    p.fill(p.hue(first, value=0.75))
    ribs = p.u / np.sqrt(np.maximum(1 - p.v**2, 0.05))
    p.fill(p.hue(first + p.rng.choice([0, 0.4]), 0.4, 0.95), np.cos(1.5 * np.pi * ribs) * 0.4)
    dome = np.maximum(p.disc(0, 0.05, 0.95), p.v - 0.05 - 0.09 * abs(np.cos(2.5 * np.pi * p.u)))
    stick = p.bar(0, 0.38, 0.05, 0.38)
    hook = np.maximum(abs(p.disc(0.14, 0.76, 0.14)) - 0.05, 0.76 - p.v)
    handle = np.minimum(stick, hook)
    p.fill(DARK, np.maximum(handle, -dome))
    return np.minimum(dome, handle)


def _kite(p):
    first = p.rng.uniform()
    widest = -0.3
    right, below = p.u > 0, p.v > widest
    p.fill(p.hue(first))
    p.fill(p.hue(first + p.rng.uniform(0.25, 0.6)), np.where(right == below, -1.0, 1.0))
    p.fill(DARK, np.minimum(abs(p.u), abs(p.v - widest)) - 0.035)
    height = np.where(below, (p.v - widest) / 1.27, (widest - p.v) / 0.67)
    return 0.6 * (abs(p.u) / 0.68 + height - 1)


def _banana(p):
    p.fill(p.hue(0.145, 0.8, 0.9))
    p.fill(p.hue(0.135, 0.85, 0.75), -p.disc(0, -0.31, 0.79))
    for u, v in p.rng.uniform((-0.6, 0.05), (0.6, 0.5), (5, 2)):
        p.fill(p.hue(0.09, 0.8, 0.35), p.disc(u, v, p.rng.uniform(0.02, 0.06)))
    p.fill(p.hue(0.09, 0.7, 0.25), 0.74 - abs(p.u))
    return np.maximum(p.disc(0, -0.25, 0.85), -p.disc(0, -0.73, p.rng.uniform(0.87, 0.93)))


def _pizza(p):
    half_angle = p.rng.uniform(0.36, 0.43)
    tip_distance = p.disc(0, 0.93, 0)
    p.fill(p.hue(0.12, 0.65, 0.92))
    for u, v in ((-0.3, -0.35), (0.28, -0.3), (0, 0.0), (0.05, 0.42)):
        u, v = (u, v) + p.rng.uniform(-0.06, 0.06, 2)
        p.fill(p.hue(0.01, 0.85, 0.65), p.disc(u, v, p.rng.uniform(0.13, 0.17)))
    for u, v in p.rng.uniform((-0.5, -0.6), (0.5, 0.3), (5, 2)):
        p.fill(p.hue(0.3, 0.8, 0.4), p.disc(u, v, 0.05))
    p.fill(p.hue(0.075, 0.7, 0.55), 1.5 - tip_distance)
    sides = abs(p.u) * np.cos(half_angle) - (0.93 - p.v) * np.sin(half_angle)
    return np.maximum(sides, tip_distance - 1.75)


def _donut(p):
    hole = p.rng.uniform(0.28, 0.38)
    middle, half_width = (0.95 + hole) / 2, (0.95 - hole) / 2
    ring = abs(p.r - middle) - half_width
    p.fill(p.hue(0.085, 0.6, 0.75))
    wave = 0.05 * np.sin(p.rng.integers(5, 9) * p.angle + p.rng.uniform(0, 6))
    icing = ((0.93, 0.55, 0.9), (0.05, 0.7, 0.32), (0.92, 0.2, 0.95))[p.rng.integers(3)]
    p.fill(p.hue(*icing), ring + 0.1 + wave)
    for angle in p.rng.uniform(0, 2 * np.pi, 12):
        radius = middle + p.rng.uniform(-0.6, 0.6) * half_width
        dot = p.disc(radius * np.cos(angle), radius * np.sin(angle), 0.05)
        p.fill(p.hue(p.rng.uniform(), 0.8, 0.95), dot)
    return ring


def _clock(p):
    p.fill(p.hue(p.rng.uniform(), 0.5, 0.25))
    p.fill(p.hue(0.13, 0.1, 0.9), p.r - 0.82)
    off_hour = abs((p.angle * 6 / np.pi + 0.5) % 1 - 0.5) * np.pi / 6
    p.fill(DARK, np.maximum(off_hour * p.r - 0.035, abs(p.r - 0.68) - 0.09))
    for length, half_width in ((0.48, 0.06), (0.68, 0.04)):
        angle = p.rng.uniform(0, 2 * np.pi)
        along = p.u * np.cos(angle) + p.v * np.sin(angle)
        across = p.u * np.sin(angle) - p.v * np.cos(angle)
        p.fill(DARK, np.maximum(abs(across) - half_width, abs(along - length / 2) - length / 2))
    return p.r - 0.95


def _book(p):
    half_width = p.rng.uniform(0.52, 0.64)
    hue = p.rng.uniform()
    p.fill(p.hue(hue, 0.7, 0.5))
    p.fill(p.hue(hue, 0.8, 0.3), p.u + half_width - 0.16)
    p.fill(CREAM, half_width - 0.1 - p.u)
    p.fill(DARK, np.maximum(half_width - 0.1 - p.u, abs(p.u - half_width + 0.05) - 0.012))
    for v in (-0.48, -0.3, -0.12, 0.45):
        p.fill(CREAM, p.bar(0.03, v, half_width * p.rng.uniform(0.35, 0.6), 0.045))
    return p.bar(0, 0, half_width, 0.76)


_DRAWERS = {  # kind: (drawer, largest tilt in radians)
    "stop sign": (_stop_sign, 0.35),
    "umbrella": (_umbrella, 0.6),
    "kite": (_kite, 0.9),
    "banana": (_banana, np.pi),
    "pizza": (_pizza, np.pi),
    "donut": (_donut, np.pi),
    "book": (_book, np.pi),
    "clock": (_clock, np.pi),
}
KINDS = tuple(_DRAWERS)


def draw_shape(rng: np.random.Generator, kind: str, size: float, light: float) -> Shape:
    """Draw one thing about ``size`` pixels across, randomly turned, shaped and coloured.

    ``light`` is the direction in radians from which it is lit. KeyError: not one of ``KINDS``.
    """
    drawer, largest_tilt = _DRAWERS[kind]
    patch = _Patch(rng, size, rng.uniform(-largest_tilt, largest_tilt))
    distance = drawer(patch)
    grid = np.linspace(-1, 1, len(patch.r), dtype=np.float32)
    shade = 1 + 0.22 * (np.cos(light) * grid[None, :] + np.sin(light) * grid[:, None])
    grain = rng.normal(1, 0.03, shade.shape)
    rim = 1 - 0.3 * np.exp(-((distance / 0.12) ** 2))
    colour = patch.colour * (shade * grain * rim)[..., None]
    return Shape(kind, np.clip(colour, 0, 1), patch.cover(distance))
