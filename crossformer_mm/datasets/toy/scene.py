"""Draws one photo-like scene of overlapping everyday things and says what is visible of each."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from crossformer_mm.datasets.toy.shapes import KINDS, Shape, draw_shape
from crossformer_mm.datasets.toy.texture import draw_mottle, smooth_noise

MIN_SIDE = 96  # pixels; in smaller scenes most things would fall below MIN_VISIBLE_PIXELS
MIN_VISIBLE_SHARE = 0.3
MIN_VISIBLE_PIXELS = 40
MIN_PIECE_PIXELS = 8  # occlusion leaves slivers that nobody would annotate
CROWD_SIZE = (20, 32)  # fewest and most members


@dataclass
class Thing:
    """A kind of thing to draw, about ``size`` pixels across, around the pixel (x, y)."""

    kind: str
    size: float
    x: float
    y: float


@dataclass
class SceneObject:
    """A kind of thing, and the bool mask (height, width) of what is visible of it.

    A crowd is one object whose mask is the union over its members.
    """

    kind: str
    mask: np.ndarray
    is_crowd: bool = False


@dataclass
class _Layer:
    shape: Shape
    x: float
    y: float
    in_crowd: bool = False
    visible: np.ndarray | None = None  # like SceneObject.mask

    @property
    def radius(self):
        return len(self.shape.cover) / 2

    @property
    def corner(self):
        return round(self.y - self.radius), round(self.x - self.radius)


def draw_scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    num_things: int,
    crowd: bool = False,
    background: np.ndarray | None = None,
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw ``num_things`` single things, in front of a crowd of one kind if wanted.

    ``background``, float BGR 0..1 (height, width, 3), is drawn at random if not given. Returns the
    picture, uint8 BGR (height, width, 3), and what can be seen in it from back to front. A thing is
    in neither of them if less than ``MIN_VISIBLE_SHARE`` of it would be seen, or less than
    ``MIN_VISIBLE_PIXELS`` of a thing that is not in the crowd.
    """
    light = rng.uniform(0, 2 * np.pi)
    if background is None:
        background = draw_mottle(rng, height, width)
    singles = _place_singles(rng, width, height, light, num_things)
    layers = (_place_crowd(rng, width, height, light, singles) if crowd else []) + singles
    return _draw_layers(rng, background, layers, light)


def draw_things(
    rng: np.random.Generator, background: np.ndarray, things: Iterable[Thing]
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw chosen ``things``, from back to front, like ``draw_scene`` draws random ones."""
    light = rng.uniform(0, 2 * np.pi)
    layers = [_Layer(draw_shape(rng, x.kind, x.size, light), x.x, x.y) for x in things]
    return _draw_layers(rng, background, layers, light)


def _draw_layers(rng, background, layers, light):
    image = background.copy()
    layers = _keep_visible(layers, *image.shape[:2])
    for layer in layers:
        _paint(image, layer, light)
    return _photograph(rng, image), _objects(layers)


def _place_crowd(rng, width, height, light, singles):
    """Layers of one kind, small and close to each other, around a spot that singles leave free."""
    kind = KINDS[rng.integers(len(KINDS))]
    short = min(width, height)
    centre = _roomiest(rng.uniform(0.25, 0.75, (8, 2)) * (width, height), singles)
    layers = []
    for _ in range(rng.integers(*CROWD_SIZE, endpoint=True)):
        size = max(12, short * rng.uniform(0.09, 0.14))
        angle, distance = rng.uniform(0, 2 * np.pi), 0.28 * short * np.sqrt(rng.uniform())
        x, y = centre + distance * np.array([1.5 * np.cos(angle), np.sin(angle)])
        layers.append(_Layer(draw_shape(rng, kind, size, light), x, y, in_crowd=True))
    return layers


def _place_singles(rng, width, height, light, count):
    """Layers of random kinds, each at the roomier of two spots, so few are buried completely."""
    layers = []
    for _ in range(count):
        is_small = rng.uniform() < 0.2
        size = min(width, height) * (rng.uniform(0.1, 0.18) if is_small else rng.uniform(0.18, 0.5))
        x, y = _roomiest(rng.uniform(0.03, 0.97, (2, 2)) * (width, height), layers)
        kind = KINDS[rng.integers(len(KINDS))]
        layers.append(_Layer(draw_shape(rng, kind, size, light), x, y))
    return layers


def _roomiest(spots, layers):
    """The one of ``spots`` (n, 2), each (x, y), that is farthest from the rim of any layer."""

    def room(spot):
        gaps = (np.hypot(spot[0] - each.x, spot[1] - each.y) - each.radius for each in layers)
        return min(gaps, default=0)

    return max(spots, key=room)


def _overlap(patch, corner, height, width):
    """Slices of an image and of a patch, its top left at ``corner`` (y, x), where they meet."""
    in_image, in_patch = [], []
    for start, length, limit in zip(corner, patch.shape, (height, width), strict=True):
        first, last = np.clip((start, start + length), 0, limit)
        in_image.append(slice(first, last))
        in_patch.append(slice(first - start, last - start))
    return tuple(in_image), tuple(in_patch)


def _keep_visible(layers, height, width):
    """The layers seen well enough, from back to front, with ``visible`` filled in."""
    free = np.ones((height, width), bool)
    kept = []
    for layer in reversed(layers):
        whole = layer.shape.cover >= 0.5
        in_image, in_patch = _overlap(whole, layer.corner, height, width)
        visible = _without_slivers(whole[in_patch] & free[in_image])
        least = MIN_VISIBLE_SHARE * whole.sum()
        if visible.sum() >= (least if layer.in_crowd else max(least, MIN_VISIBLE_PIXELS)):
            free[in_image] &= ~whole[in_patch]
            layer.visible = np.zeros_like(free)
            layer.visible[in_image] = visible
            kept.append(layer)
    return kept[::-1]


def _without_slivers(mask):
    if not mask.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    large = stats[:, cv2.CC_STAT_AREA] >= MIN_PIECE_PIXELS
    large[0] = False
    return large[labels]


def _paint(image, layer, light):
    """Blend a layer and its soft shadow, which falls away from the light, into the image."""
    cover = layer.shape.cover.astype(np.float32)
    size = len(cover)
    margin = size // 6 + 1
    shadow = cv2.copyMakeBorder(cover, *[margin] * 4, cv2.BORDER_CONSTANT, value=0)
    shadow = 0.5 * cv2.GaussianBlur(shadow, (0, 0), 0.3 + 0.04 * size)
    fall = (-0.06 * size * np.sin(light), -0.06 * size * np.cos(light))
    shadow_corner = [at + round(by) - margin for at, by in zip(layer.corner, fall, strict=True)]
    _blend(image, shadow, np.zeros((*shadow.shape, 3), np.float32), shadow_corner)
    _blend(image, cover, layer.shape.colour, layer.corner)


def _blend(image, cover, colour, corner):
    in_image, in_patch = _overlap(cover, corner, *image.shape[:2])
    image[in_image] += (colour[in_patch] - image[in_image]) * cover[in_patch][..., None]


def _objects(layers):
    singles = [SceneObject(x.shape.kind, x.visible) for x in layers if not x.in_crowd]
    members = [x for x in layers if x.in_crowd]
    if not members:
        return singles
    union = np.any([x.visible for x in members], axis=0)
    return [SceneObject(members[0].shape.kind, union, is_crowd=True), *singles]


def _photograph(rng, image):
    """The scene as a camera sees it: uneven light, a little blur, sensor noise; uint8."""
    height, width = image.shape[:2]
    light = rng.uniform(0.85, 1.1) + 0.18 * smooth_noise(rng, height, width, (2, 3))
    tint = rng.uniform(0.93, 1.07, 3).astype(np.float32)
    image = cv2.GaussianBlur(image * light[..., None] * tint, (0, 0), rng.uniform(0.3, 0.7))
    image += rng.uniform(0.008, 0.025) * rng.standard_normal(image.shape, np.float32)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
