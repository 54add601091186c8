"""Random textures and colours that the drawn things and what is behind them are made of."""

import colorsys

import cv2
import numpy as np


def vary_colour(
    rng: np.random.Generator, hue: float, saturation: float, value: float, spread: float = 0.025
) -> tuple[float, float, float]:
    """BGR colour, 0..1, near a hue (0..1, red is 0 and 1), a saturation and a value.

    The hue is at most ``spread`` off, the other two at most 0.1.
    """
    shift = rng.uniform(-1, 1, 3)
    saturation, value = np.clip([saturation, value] + 0.1 * shift[1:], 0, 1)
    return colorsys.hsv_to_rgb((hue + spread * shift[0]) % 1, saturation, value)[::-1]


def smooth_noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    cells: tuple[int, ...],
    stretch: float = 1.0,
) -> np.ndarray:
    """Random field (height, width), about -1..1, summed over grids of ``cells``, coarse to fine.

    ``stretch`` above 1 draws it out along the width, as in wood; below 1, along the height.
    """
    total = np.zeros((height, width), np.float32)
    for count in cells:
        rows, columns = (max(2, round(count * s)) for s in (stretch, 1 / stretch))
        grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        total += smooth * (cells[0] / count) ** 0.6
    return total


def draw_mottle(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float32 BGR (height, width, 3): two muted colours mixed by a slope and by grainy noise."""
    stretch = np.exp(rng.uniform(-1.3, 1.3))
    slope = rng.uniform(-0.5, 0.5, 2)
    mix = 0.5 + 0.4 * smooth_noise(rng, height, width, (3, 7, 15, 31, 63, 120), stretch)
    mix += slope[0] * np.linspace(-1, 1, width) + slope[1] * np.linspace(-1, 1, height)[:, None]
    grey = rng.uniform(0.15, 0.8, 2)[:, None]
    first, second = np.clip(grey + rng.uniform(-0.14, 0.14, (2, 3)), 0, 1).astype(np.float32)
    mix = np.clip(mix, 0, 1).astype(np.float32)[..., None]
    return first + (second - first) * mix
