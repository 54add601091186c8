"""Draws what is behind the things of a scene: regions of sky, grass, wall and other stuff.

Each region has a texture of its own kind, in a colour that varies: many kinds are now brighter and
now darker than their neighbours, so that telling them apart takes both colour and texture.
"""

import numpy as np

from crossformer_mm.datasets.toy.texture import draw_mottle, smooth_noise, vary_colour

OTHER = "other"  # what no kind of stuff describes
OTHER_SHARE = 0.4  # of the images
_VIEWS = (  # from top to bottom
    ("wall", "floor"),
    ("wall", "floor"),
    ("wall", "grass", "road"),
    ("wall", "road"),
    ("sky", "wall", "road"),
    ("sky", "sea"),
    ("sky", "sea", "sand"),
    ("sky", "mountain", "sea", "sand"),
    ("sky", "mountain", "sand"),
    ("sky", "mountain", "grass"),
    ("sky", "mountain", "grass", "road"),
    ("sky", "grass", "floor"),
)


def draw_stuff(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Draw two to four regions of stuff above each other, and sometimes a patch that is none.

    Returns the picture, float32 BGR 0..1 (height, width, 3), and (kind, bool mask (height, width))
    of each region from back to front: a region hides those before it where they overlap. The patch
    has the kind ``OTHER``.
    """
    kinds = _VIEWS[rng.integers(len(_VIEWS))]
    image = np.zeros((height, width, 3), np.float32)
    regions = list(zip(kinds, _stacked(rng, kinds, height, width), strict=True))
    if rng.uniform() < OTHER_SHARE:
        regions.append((OTHER, _blob(rng, height, width)))
    for kind, mask in regions:
        image[mask] = _drawer(kind)(rng, height, width)[mask]
    return np.clip(image, 0, 1), regions


def _drawer(kind):
    return draw_mottle if kind == OTHER else _DRAWERS[kind][0]


def _stacked(rng, kinds, height, width):
    """A mask for each kind: all below its wobbly upper edge, which for the first is the image's."""
    shares = rng.uniform(1, 2, len(kinds)).cumsum()
    yield np.ones((height, width), bool)
    for kind, share in zip(kinds[1:], shares / shares[-1], strict=False):
        wobble = _DRAWERS[kind][1] * smooth_noise(rng, 1, width, (3, 7, 15))
        slope = rng.uniform(-0.5, 0.5) * _DRAWERS[kind][1] * np.linspace(-1, 1, width)
        yield _down(height) >= share + wobble + slope


def _blob(rng, height, width):
    x, y = rng.uniform(0.1, 0.9, 2) * (width, height)
    radius = rng.uniform(0.12, 0.22) * min(height, width)
    distance = np.hypot(np.arange(width) - x, np.arange(height)[:, None] - y)
    return distance < radius * (1 + 0.35 * smooth_noise(rng, height, width, (4, 8)))


def _down(height):
    """0 at the top to 1 at the bottom, as a column."""
    return np.linspace(0, 1, height, dtype=np.float32)[:, None]


def _mix(first, second, amount):
    """From colour or picture ``first`` where ``amount`` (height, width) is 0 to ``second`` at 1."""
    amount = np.clip(amount, 0, 1).astype(np.float32)[..., None]
    return np.float32(first) * (1 - amount) + np.float32(second) * amount


def _grain(rng, height, width):
    return rng.standard_normal((height, width), np.float32)


# Each of these returns a picture, float32 BGR (height, width, 3), full of one kind of stuff.


def _sky(rng, height, width):
    clear = vary_colour(rng, 0.59, rng.uniform(0.15, 0.6), rng.uniform(0.5, 0.9))
    pale = vary_colour(rng, 0.57, 0.12, rng.uniform(0.6, 0.95))
    cover = 0.15 + 0.8 * smooth_noise(rng, height, width, (3, 6, 12, 24), 1.6)
    cloud = vary_colour(rng, 0.6, 0.05, rng.uniform(0.6, 0.95))
    return _mix(_mix(clear, pale, np.tile(_down(height), width)), cloud, cover)


def _wall(rng, height, width):
    """Bricks."""
    brick = min(height, width) * rng.uniform(0.05, 0.09)
    row = (np.arange(height)[:, None] / brick + rng.uniform()).repeat(width, axis=1)
    column = np.arange(width) / (2.3 * brick) + 0.5 * (np.floor(row) % 2)
    bricks = rng.uniform(0, 1, (int(row.max()) + 1, int(column.max()) + 1))
    tone = bricks[row.astype(int), column.astype(int)]
    hue, value = rng.uniform(-0.02, 0.1), rng.uniform(0.3, 0.75)
    saturation = rng.uniform(0.2, 0.6)
    colours = [vary_colour(rng, hue, saturation, value + by) for by in (-0.08, 0.08)]
    joint = vary_colour(rng, hue, 0.1, rng.uniform(0.25, 0.8))
    is_joint = np.minimum(row % 1, 2.3 * (column % 1)) < 0.16
    tone = tone + 0.3 * smooth_noise(rng, height, width, (10, 30, 90))
    return _mix(_mix(*colours, tone), joint, is_joint)


def _floor(rng, height, width):
    """Boards that run away from the viewer."""
    away = _down(height) + rng.uniform(0.3, 0.8)
    board = rng.uniform(4, 7) * (np.linspace(-1, 1, width) - rng.uniform(-0.4, 0.4)) / away
    board -= board.min()
    hue, value = rng.uniform(0.05, 0.1), rng.uniform(0.35, 0.7)
    colours = [vary_colour(rng, hue, rng.uniform(0.4, 0.7), value + by) for by in (-0.12, 0.12)]
    tone = rng.uniform(0, 1, int(board.max()) + 1)[board.astype(int)]
    tone = tone + 0.35 * smooth_noise(rng, height, width, (8, 24, 72), 0.4)
    return _mix(_mix(*colours, tone), (0.05, 0.08, 0.12), 0.8 * (board % 1 < 0.06))


def _road(rng, height, width):
    """Asphalt with a dashed line."""
    value = rng.uniform(0.25, 0.6)
    tone = 0.5 + 0.25 * _grain(rng, height, width) + 0.3 * smooth_noise(rng, height, width, (2, 5))
    colours = [vary_colour(rng, 0.62, 0.05, value + by) for by in (-0.1, 0.1)]
    along = np.arange(width) / (min(height, width) * rng.uniform(0.3, 0.5)) + rng.uniform()
    is_line = (along % 1 < 0.55) & (abs(_down(height) - rng.uniform(0.82, 0.94)) < 0.014)
    line = vary_colour(rng, 0.14, rng.choice([0.05, 0.6]), 0.85)
    return _mix(_mix(*colours, tone), line, 0.9 * is_line)


def _grass(rng, height, width):
    """Blades, mostly upright."""
    hue, value = rng.uniform(0.2, 0.34), rng.uniform(0.3, 0.65)
    colours = [vary_colour(rng, hue, rng.uniform(0.4, 0.7), value + by) for by in (-0.2, 0.15)]
    tone = 0.5 + 0.6 * smooth_noise(rng, height, width, (12, 30, 60, 120), 0.35)
    return _mix(*colours, tone + 0.12 * _grain(rng, height, width))


def _mountain(rng, height, width):
    """Rock with creases."""
    hue, value = rng.choice([0.07, 0.62, 0.7]), rng.uniform(0.35, 0.65)
    colours = [vary_colour(rng, hue, rng.uniform(0.1, 0.35), value + by) for by in (0.15, -0.25)]
    creases = np.exp(-9 * abs(smooth_noise(rng, height, width, (7, 14, 28), 0.8)))
    return _mix(*colours, 0.1 + creases + 0.25 * smooth_noise(rng, height, width, (9, 40, 110)))


def _sea(rng, height, width):
    """Waves, some with foam."""
    hue, value = rng.uniform(0.47, 0.62), rng.uniform(0.3, 0.65)
    colours = [vary_colour(rng, hue, rng.uniform(0.45, 0.8), value + by) for by in (-0.12, 0.12)]
    waves = smooth_noise(rng, height, width, (12, 24, 48), 3.0)
    return _mix(_mix(*colours, 0.5 + 0.7 * waves), (0.95, 0.95, 0.9), 4 * waves - 3)


def _sand(rng, height, width):
    """Ripples and grains."""
    value = rng.uniform(0.55, 0.85)
    colours = [vary_colour(rng, 0.115, rng.uniform(0.25, 0.5), value + by) for by in (-0.15, 0.1)]
    bend = rng.uniform(1, 3) * smooth_noise(rng, height, width, (2, 5))
    ripples = np.sin(rng.uniform(50, 90) * _down(height) + 2 * bend)
    return _mix(*colours, 0.5 + 0.25 * ripples + 0.2 * _grain(rng, height, width))


_DRAWERS = {  # kind: (drawer, wobble of the upper edge as a share of the height)
    "sky": (_sky, 0.0),
    "wall": (_wall, 0.012),
    "floor": (_floor, 0.01),
    "road": (_road, 0.02),
    "grass": (_grass, 0.03),
    "mountain": (_mountain, 0.09),
    "sea": (_sea, 0.006),
    "sand": (_sand, 0.03),
}
STUFF = tuple(_DRAWERS)
