"""Draws a toy classification data set in the folder and list layout of ImageNet-1K."""

from pathlib import Path

from numpy.random import Generator

from crossformer_mm.datasets.toy.drawing import KINDS, draw_scene, draw_texture, random_things
from crossformer_mm.datasets.toy.writing import writer

CLASSES = {  # WordNet id, index and first name, by kind of thing, which looks more or less like it
    "clock": ("n02708093", 409, "analog clock"),
    "kite": ("n03888257", 701, "parachute"),
    "umbrella": ("n04507155", 879, "umbrella"),
    "book": ("n06596364", 917, "comic book"),
    "stop sign": ("n06794110", 919, "street sign"),
    "donut": ("n07693725", 931, "bagel"),
    "banana": ("n07753592", 954, "banana"),
    "pizza": ("n07873807", 963, "pizza"),
}


def _draw(rng: Generator, split: str, index: int, shape: tuple[int, int]) -> tuple[dict, str, dict]:
    """One large thing, the kinds in turns, in front of up to three small ones of other kinds."""
    height, width = (round(side * rng.uniform(0.75, 1.25)) for side in shape)
    shape = height, width
    kind, *others = (2 * KINDS)[index % 8 :][:8]
    things = random_things(rng, shape, rng.integers(4), others, (0.08, 0.2), (0, 1))
    things += random_things(rng, shape, 1, [kind], (0.4, 1.0), (0.25, 0.75))
    picture, _ = draw_scene(rng, draw_texture(rng, shape), [things])
    wnid, label, name = CLASSES[kind]
    file = f"{wnid}_{index + 1}" if split == "train" else f"ILSVRC2012_val_{index + 1:08d}"
    path = f"{wnid}/{file}.JPEG"
    return {f"{split}/{path}": picture}, f"{path} {label}\n", {"classes": [name]}


def _finish(folder: Path, split: str, records: list[str]) -> None:
    (folder / "meta" / f"{split}.txt").write_text("".join(records))


write_imagenet = writer("meta train val", _draw, _finish, (800, 200, (224, 168)))
