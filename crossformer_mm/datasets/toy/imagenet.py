"""Writes a toy classification data set in exactly the folder and list layout of ImageNet-1K."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from crossformer_mm.datasets.toy.output import (
    README,
    all_or_nothing,
    refuse_other_data,
    write_readme,
)
from crossformer_mm.datasets.toy.scene import Thing, draw_things
from crossformer_mm.datasets.toy.shapes import KINDS
from crossformer_mm.datasets.toy.stuff import draw_stuff
from crossformer_mm.datasets.toy.texture import draw_mottle
from crossformer_mm.datasets.toy.writing import (
    SPLITS,
    check_arguments,
    count_images,
    encode_jpeg,
    maybe_turned,
    random_of_image,
)

FOLDERS = ("train", "val", "meta")
MAX_DISTRACTORS = 3
_README = f"meta/{README}"


class ImageNetClass(NamedTuple):
    """A class of ImageNet-1K: its WordNet id, its index from 0 to 999 and its first name."""

    wnid: str
    index: int
    name: str


CLASSES = {  # by kind of thing, which looks more or less like it
    "clock": ImageNetClass("n02708093", 409, "analog clock"),
    "kite": ImageNetClass("n03888257", 701, "parachute"),
    "umbrella": ImageNetClass("n04507155", 879, "umbrella"),
    "book": ImageNetClass("n06596364", 917, "comic book"),
    "stop sign": ImageNetClass("n06794110", 919, "street sign"),
    "donut": ImageNetClass("n07693725", 931, "bagel"),
    "banana": ImageNetClass("n07753592", 954, "banana"),
    "pizza": ImageNetClass("n07873807", 963, "pizza"),
}


def write_imagenet(
    out: str | Path,
    train: int = 800,
    val: int = 200,
    size: tuple[int, int] = (224, 168),
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, dict]:
    """Write ``train`` + ``val`` images of one thing each, of about ``size``, to ``out``.

    Widths and heights differ from ``size`` (width, height) by up to a quarter, and about one image
    in five is turned to portrait. The classes take turns. Image n of a split depends on ``seed``
    alone, not on how many images there are. ``report`` gets a line now and then. Returns, per
    split, the number of "images" and a Counter "classes" by class name.

    ValueError: an argument is out of range. FileExistsError: one of ``FOLDERS`` is in ``out``
    already and ``overwrite`` is off; with it on they are replaced as a whole, unless they are not
    a toy data set but, for example, ImageNet itself.
    """
    check_arguments(train, val, size, seed)
    if overwrite:
        refuse_other_data(Path(out), FOLDERS, _README)
    summary = {}
    with all_or_nothing(Path(out), FOLDERS, overwrite) as folder:
        write_readme(folder / _README, f"stand-in for ImageNet-1K, seed {seed}")
        for split, count in zip(SPLITS, (train, val), strict=True):
            summary[split] = _write_split(folder, split, count, size, seed, report)
    return summary


def _write_split(folder, split, count, size, seed, report):
    lines, classes = [], Counter()
    for index in count_images(split, count, report):
        kind = KINDS[index % len(KINDS)]
        path = _path(split, index, CLASSES[kind].wnid)
        (folder / split / path).parent.mkdir(exist_ok=True)
        (folder / split / path).write_bytes(encode_jpeg(_draw_image(split, index, size, seed)))
        lines.append(f"{path} {CLASSES[kind].index}\n")
        classes[CLASSES[kind].name] += 1
    (folder / "meta" / f"{split}.txt").write_text("".join(lines))
    return {"images": count, "classes": classes}


def _path(split, index, wnid):
    name = f"{wnid}_{index + 1}" if split == "train" else f"ILSVRC2012_val_{index + 1:08d}"
    return f"{wnid}/{name}.JPEG"


def _draw_image(split, index, size, seed):
    """The picture, uint8 BGR (height, width, 3), of a thing whose kind follows from the index."""
    rng = random_of_image(seed, split, index)
    width, height = (round(side * rng.uniform(0.75, 1.25)) for side in maybe_turned(rng, size))
    background = _background(rng, height, width)
    main = _main_thing(rng, KINDS[index % len(KINDS)], width, height)
    picture, _ = draw_things(rng, background, [*_distractors(rng, main, width, height), main])
    return picture


def _background(rng, height, width):
    if rng.uniform() < 0.5:
        return draw_mottle(rng, height, width)
    picture, _ = draw_stuff(rng, height, width)
    return picture


def _main_thing(rng, kind, width, height):
    """A large thing, with its middle so far inside that the frame leaves enough of it."""
    x, y = rng.uniform(0.25, 0.75, 2) * (width, height)
    return Thing(kind, min(width, height) * rng.uniform(0.4, 1.0), x, y)


def _distractors(rng, main, width, height):
    """None or a few things of other kinds, all much smaller than the main one."""
    others = [kind for kind in KINDS if kind != main.kind]
    return [
        Thing(others[rng.integers(len(others))], main.size * rng.uniform(0.15, 0.35), x, y)
        for x, y in rng.uniform(0, 1, (rng.integers(MAX_DISTRACTORS + 1), 2)) * (width, height)
    ]
