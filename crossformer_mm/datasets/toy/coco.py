"""Writes a toy detection data set in exactly the folder and JSON layout of COCO 2017."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from crossformer_mm.datasets.toy.output import all_or_nothing, refuse_other_data
from crossformer_mm.datasets.toy.scene import SceneObject, draw_scene
from crossformer_mm.datasets.toy.writing import (
    MAX_IMAGES,
    SPLITS,
    check_arguments,
    count_images,
    encode_jpeg,
    maybe_turned,
    random_of_image,
)

FOLDERS = ("annotations", "train2017", "val2017")
_CONTRIBUTOR = "crossformer_mm"
_MARKED_FILE, _MARK = "annotations/instances_val2017.json", f'"contributor": "{_CONTRIBUTOR}"'
_OUTLINE_TOLERANCE = 0.7  # pixels
_LICENSE = {"id": 1, "name": "Drawn by program, free to use", "url": ""}
_NAMES = {
    "person": "person",
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "outdoor": "traffic light, fire hydrant, stop sign, parking meter, bench",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "accessory": "backpack, umbrella, handbag, tie, suitcase",
    "sports": "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket",
    "kitchen": "bottle, wine glass, cup, fork, knife, spoon, bowl",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
    "furniture": "chair, couch, potted plant, bed, dining table, toilet",
    "electronic": "tv, laptop, mouse, remote, keyboard, cell phone",
    "appliance": "microwave, oven, toaster, sink, refrigerator",
    "indoor": "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # gaps in COCO's own numbering


def _all_categories() -> list[dict]:
    ids = (i for i in range(1, 91) if i not in _UNUSED_IDS)
    return [
        {"supercategory": group, "id": next(ids), "name": name}
        for group, names in _NAMES.items()
        for name in names.split(", ")
    ]


CATEGORIES = _all_categories()
_ID_OF_NAME = {category["name"]: category["id"] for category in CATEGORIES}


def write_coco(
    out: str | Path,
    train: int = 400,
    val: int = 100,
    size: tuple[int, int] = (320, 240),
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, dict]:
    """Write ``train`` + ``val`` annotated images of ``size`` (width, height) to ``out``.

    About one image in five is turned to portrait. Image n of a split depends on ``seed`` alone, not
    on how many images there are. ``report`` gets a line now and then. Returns, per split, the
    number of "images" and a Counter "objects" by category name.

    ValueError: an argument is out of range. FileExistsError: one of ``FOLDERS`` is in ``out``
    already and ``overwrite`` is off; with it on they are replaced as a whole, unless they are not
    a toy data set but, for example, COCO itself.
    """
    check_arguments(train, val, size, seed)
    if overwrite:
        refuse_other_data(Path(out), FOLDERS, _MARKED_FILE, _MARK)
    summary = {}
    with all_or_nothing(Path(out), FOLDERS, overwrite) as folder:
        for split, count in zip(SPLITS, (train, val), strict=True):
            summary[split] = _write_split(folder, split, count, size, seed, report)
    return summary


def _write_split(folder, split, count, size, seed, report):
    images, annotations = [], []
    for index in count_images(split, count, report):
        jpeg, image, objects = _draw_image(split, index, size, seed)
        (folder / f"{split}2017" / image["file_name"]).write_bytes(jpeg)
        images.append(image)
        annotations += objects
    content = {
        "info": {
            "description": f"Toy stand-in for COCO 2017, seed {seed}",
            "url": "",
            "version": "1.0",
            "year": 2017,
            "contributor": _CONTRIBUTOR,
            "date_created": "2017/09/01",
        },
        "licenses": [_LICENSE],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    path = folder / "annotations" / f"instances_{split}2017.json"
    path.write_text(json.dumps(content))
    name_of_id = {category["id"]: category["name"] for category in CATEGORIES}
    objects = Counter(name_of_id[each["category_id"]] for each in annotations)
    return {"images": count, "objects": objects}


def _draw_image(split, index, size, seed):
    """JPEG bytes, image record and annotation records of one image."""
    rng = random_of_image(seed, split, index)
    width, height = maybe_turned(rng, size)
    # By index, not by chance, so that every run of ten images has a crowd and an empty image early.
    is_crowd, is_empty = index % 12 == 4, index % 20 == 7
    num_things = 0 if is_empty else rng.integers(3, 6) if is_crowd else rng.integers(3, 9)
    picture, objects = draw_scene(rng, width, height, num_things, is_crowd)
    # Image ids of val start above those of train.
    image_id = 1 + index + MAX_IMAGES * SPLITS.index(split)
    image = {
        "license": _LICENSE["id"],
        "file_name": f"{image_id:012d}.jpg",
        "coco_url": "",
        "height": height,
        "width": width,
        "date_captured": "2017-09-01 00:00:00",
        "flickr_url": "",
        "id": image_id,
    }
    annotations = [
        {"id": 100 * image_id + number, "image_id": image_id, **_annotation(each)}
        for number, each in enumerate(objects)
    ]
    return encode_jpeg(picture), image, annotations


def _annotation(thing: SceneObject) -> dict:
    x, y, width, height = cv2.boundingRect(thing.mask.astype(np.uint8))
    return {
        "category_id": _ID_OF_NAME[thing.kind],
        "bbox": [float(x), float(y), float(width), float(height)],
        "area": float(thing.mask.sum()),
        "iscrowd": int(thing.is_crowd),
        "segmentation": _run_lengths(thing.mask) if thing.is_crowd else _polygons(thing.mask),
    }


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE: lengths of runs down the columns, the first one of zeros."""
    pixels = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    counts = np.diff([0, *changes, pixels.size])
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines [x0, y0, x1, y1, ...] along pixel edges, of parts of the mask that have no hole.

    A polygon cannot have a hole, so a mask with one is cut in two through the hole.
    """
    # Outlines run through pixel centres; with each pixel doubled, they tell its edges apart.
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = [line for line, (*_, parent) in zip(outlines, tree[0], strict=True) if parent >= 0]
    if holes:
        x, _, width, _ = cv2.boundingRect(holes[0])
        cut = (x + width // 2) // 2
        columns = np.arange(mask.shape[1])
        return _polygons(mask & (columns < cut)) + _polygons(mask & (columns >= cut))
    return [_simplified((line + 1) // 2).ravel().astype(float).tolist() for line in outlines]


def _simplified(outline):
    fewer = cv2.approxPolyDP(outline, _OUTLINE_TOLERANCE, closed=True)
    return fewer if len(fewer) >= 3 else outline
