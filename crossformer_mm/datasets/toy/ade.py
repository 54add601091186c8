"""Draws a toy segmentation data set in the folder layout of ADEChallengeData2016."""

from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from crossformer_mm.datasets.toy.drawing import draw_noise, draw_scene, draw_texture, random_things
from crossformer_mm.datasets.toy.writing import writer

_STUFF = {  # by pixel value of ADE20K, from top to bottom: name and look
    3: ("sky", 0.59, 0.4, 0.2, 3, 2),
    0: ("other",),
    17: ("mountain", 0.72, 0.2, 0.5, 9, 12),
    1: ("wall", 0.04, 0.4, 0.3, 24, 9),
    27: ("sea", 0.53, 0.6, 0.3, 40, 8),
    10: ("grass", 0.27, 0.55, 0.35, 12, 90),
    47: ("sand", 0.12, 0.4, 0.2, 60, 5),
    4: ("floor", 0.08, 0.55, 0.25, 2, 30),
    7: ("road", 0.62, 0.05, 0.2, 90, 120),
}
CLASSES = {value: name for value, (name, *_) in _STUFF.items()}
CLASSES |= {44: "signboard", 68: "book", 87: "awning", 121: "food", 149: "clock", 150: "flag"}
_VALUES = {"stop sign": 44, "umbrella": 87, "kite": 150, "book": 68, "clock": 149}  # the rest: food


def _draw(
    rng: Generator, split: str, index: int, shape: tuple[int, int]
) -> tuple[dict, None, dict]:
    height, width = (round(side * rng.choice([1, rng.uniform(0.9, 1)])) for side in shape)
    shape = height, width
    image, labels = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.uint8)
    values = [list(_STUFF)[n] for n in sorted(rng.permutation(len(_STUFF))[: rng.integers(2, 5)])]
    for place, value in enumerate(values):
        edge = place / len(values) + 0.08 * draw_noise(rng, (1, shape[1]), (1, 9))
        mask = (np.linspace(0, 1, shape[0])[:, None] > edge) | (place == 0)
        image[mask], labels[mask] = draw_texture(rng, shape, _STUFF[value][1:])[mask], value
    things = random_things(rng, shape, rng.integers(2, 9))
    picture, masks = draw_scene(rng, image, [[thing] for thing in things])
    for (kind, *_), mask in zip(things, masks, strict=True):
        band = rng.choice([1, 1, 3, 5, 7])  # beyond 1, what is around the thing has no class
        labels[cv2.dilate(mask.astype(np.uint8), np.ones((band, band))) > 0] = 0
        labels[mask] = _VALUES.get(kind, 121)
    name = f"{'training' if split == 'train' else 'validation'}/ADE_{split}_{index + 1:08d}"
    pixels = {CLASSES[value]: int((labels == value).sum()) for value in np.unique(labels).tolist()}
    files = {f"images/{name}.jpg": picture, f"annotations/{name}.png": labels}
    return files, None, {"pixels": pixels, "images_with": list(pixels)}


def _finish(folder: Path, *_: object) -> None:
    rows = [f"{value}\t{int(value in _STUFF)}\t{CLASSES[value]}\n" for value in sorted(CLASSES)[1:]]
    (folder / "objectInfo150.txt").write_text("Idx\tStuff\tName\n" + "".join(rows))


write_ade = writer("annotations images objectInfo150.txt", _draw, _finish, (400, 100, (256, 192)))
