"""Writes a toy segmentation data set in exactly the layout of ADEChallengeData2016."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from crossformer_mm.datasets.toy.output import (
    README,
    all_or_nothing,
    refuse_other_data,
    write_readme,
)
from crossformer_mm.datasets.toy.scene import draw_scene
from crossformer_mm.datasets.toy.stuff import OTHER, STUFF, draw_stuff
from crossformer_mm.datasets.toy.writing import (
    SPLITS,
    check_arguments,
    count_images,
    encode_jpeg,
    maybe_turned,
    random_of_image,
)

FOLDERS = ("annotations", "images")
CLASS_FILE = "objectInfo150.txt"
OUTLINED_SHARE = 0.4  # of the things, by a band without a class
_README = f"annotations/{README}"
_FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}
# Pixel values of ADE20K; 0 stands for what is none of its 150 classes.
CLASSES = {
    0: OTHER,
    1: "wall",
    3: "sky",
    4: "floor",
    7: "road",
    10: "grass",
    17: "mountain",
    27: "sea",
    44: "signboard",
    47: "sand",
    68: "book",
    87: "awning",
    121: "food",
    149: "clock",
    150: "flag",
}
_CLASS_OF_THING = {
    "stop sign": "signboard",
    "umbrella": "awning",
    "kite": "flag",
    "banana": "food",
    "pizza": "food",
    "donut": "food",
    "book": "book",
    "clock": "clock",
}
_VALUE_OF_NAME = {name: value for value, name in CLASSES.items()}


def write_ade(
    out: str | Path,
    train: int = 400,
    val: int = 100,
    size: tuple[int, int] = (256, 192),
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, dict]:
    """Write ``train`` + ``val`` labelled images of about ``size`` (width, height) to ``out``.

    About one image in five is turned to portrait, and two in five are up to a tenth narrower and
    lower. Image n of a split depends on ``seed`` alone, not on how many images there are.
    ``report`` gets a line now and then. Returns, per split, the number of "images", and by class
    name, "other" among them, a Counter "pixels" and a Counter "images_with".

    ValueError: an argument is out of range. FileExistsError: one of ``FOLDERS`` or ``CLASS_FILE``
    is in ``out`` already and ``overwrite`` is off; with it on they are replaced as a whole, unless
    they are not a toy data set but, for example, ADE20K itself.
    """
    check_arguments(train, val, size, seed)
    if overwrite:
        refuse_other_data(Path(out), [*FOLDERS, CLASS_FILE], _README)
    summary = {}
    with all_or_nothing(Path(out), FOLDERS, overwrite, files=[CLASS_FILE]) as folder:
        write_readme(folder / _README, f"stand-in for ADEChallengeData2016, seed {seed}")
        for split, count in zip(SPLITS, (train, val), strict=True):
            summary[split] = _write_split(folder, split, count, size, seed, report)
        (folder / CLASS_FILE).write_text(_class_table(summary))
    return summary


def _write_split(folder, split, count, size, seed, report):
    images, annotations = (folder / x / _FOLDER_OF_SPLIT[split] for x in ("images", "annotations"))
    images.mkdir()
    annotations.mkdir()
    pixels, images_with = Counter(), Counter()
    for index in count_images(split, count, report):
        picture, labels = _draw_image(split, index, size, seed)
        name = f"ADE_{split}_{index + 1:08d}"
        (images / f"{name}.jpg").write_bytes(encode_jpeg(picture))
        (annotations / f"{name}.png").write_bytes(_encode_png(labels))
        values, counts = np.unique(labels, return_counts=True)
        names = [CLASSES[value] for value in values.tolist()]
        pixels.update(dict(zip(names, counts.tolist(), strict=True)))
        images_with.update(names)
    return {"images": count, "pixels": pixels, "images_with": images_with}


def _draw_image(split, index, size, seed):
    """Picture, uint8 BGR (height, width, 3), and pixel values, uint8 (height, width)."""
    rng = random_of_image(seed, split, index)
    width, height = maybe_turned(rng, size)
    if rng.uniform() < 0.4:
        width, height = (side - rng.integers(side // 10, endpoint=True) for side in (width, height))
    background, regions = draw_stuff(rng, height, width)
    num_things = rng.integers(2, 7, endpoint=True)
    picture, things = draw_scene(rng, width, height, num_things, background=background)
    labels = np.zeros((height, width), np.uint8)
    for kind, mask in regions:
        labels[mask] = _VALUE_OF_NAME[kind]
    for thing in things:
        if rng.uniform() < OUTLINED_SHARE:
            labels[_widened(thing.mask, rng.integers(1, 3, endpoint=True))] = 0
    for thing in things:
        labels[thing.mask] = _VALUE_OF_NAME[_CLASS_OF_THING[thing.kind]]
    return picture, labels


def _widened(mask, pixels):
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * int(pixels) + 1,) * 2)
    return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)


def _encode_png(labels):
    is_encoded, png = cv2.imencode(".png", labels)
    assert is_encoded
    return png.tobytes()


def _class_table(summary):
    """Tab separated like ADE20K's: share of labelled pixels, images with the class, is it stuff."""
    pixels = sum((made["pixels"] for made in summary.values()), Counter())
    del pixels[OTHER]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for value, name in CLASSES.items():
        if name != OTHER:
            train, val = (summary[split]["images_with"][name] for split in SPLITS)
            ratio = pixels[name] / pixels.total()
            lines.append(f"{value}\t{ratio:.4f}\t{train}\t{val}\t{int(name in STUFF)}\t{name}")
    return "\n".join(lines) + "\n"
