"""Draws things in front of a texture, and says which pixels show which thing."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator


def _arc(
    x: int, y: int, width: int, height: int, start: int = 0, end: int = 360, step: int = 10
) -> np.ndarray:
    return np.array(cv2.ellipse2Poly((x, y), (width, height), 0, start, end, step))


def _box(x: int, y: int, width: int, height: int) -> np.ndarray:
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


# Parts of each kind from back to front: hue (from 2 on: off the thing's own, which is random),
# saturation, value, and outlines in hundredths of half its size. One within another is a hole.
_PARTS: list[tuple] = [
    ("stop sign", 0, 0, 0.9, _arc(0, 0, 98, 98, 22, 382, 45)),
    ("stop sign", 0.99, 0.9, 0.75, _arc(0, 0, 86, 86, 22, 382, 45), _box(-60, -20, 120, 40)),
    ("umbrella", 0, 0.1, 0.1, _box(-5, 0, 10, 80), *(_arc(14, 80, r, r, 0, 180) for r in (9, 19))),
    ("umbrella", 2.0, 0.85, 0.75, _arc(0, 10, 96, 96, 180, 360)),
    ("umbrella", 2.4, 0.4, 0.95, *(_arc(0, 10, r, 96, 180, 360) for r in (60, 20))),
    ("kite", 2.0, 0.85, 0.85, np.array([(0, -98), (66, -30), (0, 98), (-66, -30)])),
    ("kite", 2.4, 0.85, 0.85, np.array([(0, -98), (66, -30), (-66, -30), (0, 98)])),
    ("banana", 0.14, 0.8, 0.9, np.r_[_arc(0, 0, 95, 95, 0, 180), _arc(0, 0, 95, 45, 0, 180)[::-1]]),
    ("pizza", 0.1, 0.75, 0.8, np.vstack([_arc(0, 95, 188, 188, 246, 294, 8), (0, 95)])),
    ("pizza", 0.01, 0.85, 0.6, *(_arc(x, y, 17, 17) for x, y in ((-28, -33), (26, -28), (0, 20)))),
    ("donut", 0.085, 0.6, 0.75, _arc(0, 0, 95, 95), _arc(0, 0, 33, 33)),
    ("donut", 0.93, 0.55, 0.9, _arc(0, 0, 84, 84), _arc(0, 0, 43, 43)),
    ("book", 2.0, 0.7, 0.4, _box(-58, -76, 116, 152)),
    ("book", 0.13, 0.2, 0.9, _box(46, -72, 12, 144), *(_box(-35, y, 60, 10) for y in (-50, -30))),
    ("clock", 2.0, 0.5, 0.25, _arc(0, 0, 96, 96)),
    ("clock", 0.13, 0.1, 0.9, _arc(0, 0, 82, 82), _box(-6, -48, 12, 50), _box(6, -8, 54, 10)),
]
KINDS: tuple[str, ...] = tuple(dict.fromkeys(kind for kind, *_ in _PARTS))


def random_things(
    rng: Generator,
    shape: tuple[int, int],
    count: int | np.integer,
    kinds: Sequence[str] = KINDS,
    sizes: tuple[float, float] = (0.12, 0.5),
    places: tuple[float, float] = (0.03, 0.97),
) -> list[tuple]:
    """Choose (kind, size, x, y) of ``count`` things; the limits are shares of the image's sides."""
    drawn = (kinds[number] for number in rng.integers(len(kinds), size=count))
    spots = rng.uniform(*places, (count, 2)) * shape[::-1]
    return list(zip(drawn, rng.uniform(*sizes, count) * min(shape), *spots.T, strict=True))


def draw_scene(rng: Generator, image: np.ndarray, groups: list) -> tuple[np.ndarray, list]:
    """Draw lists of things, the last in front, on ``image``, float BGR 0..1 (height, width, 3).

    Returns the picture, uint8, and for each list a bool mask (height, width) of what is visible.
    """
    masks: list[np.ndarray] = []
    for group in groups:
        front = np.any([_draw_thing(rng, image, *thing) for thing in group], axis=0)
        masks = [mask & ~front for mask in masks] + [front]
    image *= rng.uniform(0.85, 1.1) + 0.2 * draw_noise(rng, image.shape[:2], (2, 3))[..., None]
    picture: np.ndarray = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.8))
    picture += rng.normal(0, rng.uniform(0.01, 0.025), picture.shape)
    # Without slivers
    masks = [cv2.medianBlur(mask.astype(np.uint8), 3) > 0 for mask in masks]
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8), masks


def _draw_thing(
    rng: Generator, image: np.ndarray, kind: str, size: float, x: float, y: float
) -> np.ndarray:
    """Draw it with a dark rim and a shadow, and return its mask, uint8 (height, width)."""
    matrix: np.ndarray = cv2.getRotationMatrix2D((0, 0), rng.uniform(-45, 45), 16 * size / 200)
    matrix[:, 0] *= rng.uniform(0.8, 1)  # narrower
    matrix[:, 2] = 16 * x, 16 * y
    own_hue, mask = rng.uniform(), np.zeros(image.shape[:2], np.uint8)
    for _, hue, saturation, value, *outlines in (part for part in _PARTS if part[0] == kind):
        colour = _vary_colour(rng, hue + own_hue * (hue >= 2), saturation, value)
        lines = [cv2.transform(1.0 * o[:, None], matrix).astype(np.int32) for o in outlines]
        cv2.fillPoly(image, lines, colour.tolist(), shift=4)  # in sixteenths of a pixel
        cv2.fillPoly(mask, lines, 1, shift=4)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.5 + 0.05 * size)
    image *= np.where(mask, 0.6 + 0.5 * soft, 1 - 0.5 * soft)[..., None]
    return mask


def _vary_colour(rng: Generator, hue: float, saturation: float, value: float) -> np.ndarray:
    hsv = np.clip((hue % 1, saturation, value) + rng.uniform(-1, 1, 3) * (0.025, 0.1, 0.1), 0, 1)
    return np.array(colorsys.hsv_to_rgb(*hsv)[::-1])


def draw_noise(rng: Generator, shape: tuple[int, int], cells: Sequence[int]) -> np.ndarray:
    """Random field, -1..1 of ``shape`` (height, width), of ``cells`` down and across."""
    return cv2.resize(rng.uniform(-1, 1, cells), shape[::-1], interpolation=cv2.INTER_CUBIC)


def draw_texture(rng: Generator, shape: tuple[int, int], look: Sequence = ()) -> np.ndarray:
    """Draw a surface of hue, saturation, contrast and cells: BGR 0..1 (height, width, 3)."""
    hue, saturation, contrast, *cells = look or (rng.uniform(), 0.2, 0.3, *rng.integers(2, 25, 2))
    tone = draw_noise(rng, shape, cells) + draw_noise(rng, shape, [3 * n for n in cells]) / 2
    colour = _vary_colour(rng, hue, saturation, rng.uniform(0.35, 0.8))
    return np.clip(colour * (1 + contrast * tone[..., None]), 0, 1)
