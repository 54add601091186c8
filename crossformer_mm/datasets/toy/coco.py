"""Draws a toy detection data set in the folder and JSON layout of COCO 2017."""

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from pycocotools import mask as coco_mask
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from crossformer_mm.datasets.toy.drawing import KINDS, draw_scene, draw_texture, random_things
from crossformer_mm.datasets.toy.writing import MAX_IMAGES, writer

_NAMES = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]  # by id, "N/A" for COCO's gaps
CATEGORIES = [dict(id=i, name=n, supercategory="any") for i, n in enumerate(_NAMES) if n > "a"]


def _draw(
    rng: Generator, split: str, index: int, shape: tuple[int, int]
) -> tuple[dict, tuple, dict]:
    # By index, not by chance, so that every run of ten images has a crowd and an empty image early.
    groups = [[each] for each in random_things(rng, shape, (index % 20 != 7) * rng.integers(3, 8))]
    if index % 12 == 4:
        groups[:0] = [random_things(rng, shape, 25, [rng.choice(KINDS)], (0.12, 0.15), (0.3, 0.7))]
    picture, masks = draw_scene(rng, draw_texture(rng, shape), groups)
    objects = [_annotation(*each) for each in zip(groups, masks, strict=True) if each[1].sum() > 24]
    number = 1 + index + MAX_IMAGES * (split == "val")
    objects = [dict(id=100 * number + n, image_id=number, **each) for n, each in enumerate(objects)]
    image = dict(id=number, file_name=f"{number:012d}.jpg", height=shape[0], width=shape[1])
    shown = {"objects": [_NAMES[each["category_id"]] for each in objects]}
    return {f"{split}2017/{image['file_name']}": picture}, (image, objects), shown


def _annotation(group: list[tuple], mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    box, area = coco_mask.toBbox(code).tolist(), float(coco_mask.area(code))
    found = dict(category_id=_NAMES.index(group[0][0]), bbox=box, area=area)
    if len(group) == 1:
        return found | dict(iscrowd=0, segmentation=_polygons(mask))
    return found | dict(iscrowd=1, segmentation=code | {"counts": code["counts"].decode()})


def _polygons(mask: np.ndarray) -> list[list[int]]:
    """Outlines [x0, y0, x1, y1, ...] of the pieces, each going on to its holes and back."""
    # OpenCV's outlines run through pixel centres; with each pixel doubled, edges can be told apart.
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    pieces: dict[int, list] = {}
    parents = tree[0, :, 3].tolist()
    for number in np.argsort(parents, kind="stable").tolist():  # holes have parents
        line = cv2.approxPolyDP((outlines[number] + 1) // 2, 0.5, closed=True)
        piece = pieces.setdefault(number if parents[number] < 0 else parents[number], [])
        piece += [piece[0][:1], line, line[:1]] if piece else [line]
    return [np.concatenate(lines).ravel().tolist() for lines in pieces.values()]


def _finish(folder: Path, split: str, records: list) -> None:
    info = dict(description="Toy stand-in for COCO 2017", contributor="crossformer_mm", year=2017)
    content = dict(info=info, categories=CATEGORIES, images=[image for image, _ in records])
    content["annotations"] = [each for _, objects in records for each in objects]
    (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


write_coco = writer("annotations train2017 val2017", _draw, _finish, (400, 100, (320, 240)))
