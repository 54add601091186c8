"""The boxes of a data set, the coordinates that they are in, and objects in correct ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from crossformer_mm.datasets.own.files import bounds
from crossformer_mm.datasets.own.pictures import Picture, is_unturned, look_at
from crossformer_mm.datasets.own.records import OwnDataset, Sample, Shape


def declared_size(sample: Sample) -> tuple[int, int] | None:
    """Width and height of the image that a sample's coordinates are for; None if unknown."""
    return sample.size or look_at(sample.image).shown_size


def all_boxes(dataset: OwnDataset) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes (N x 4), sizes of their images (N x 2) and places, where the size is known."""
    boxes, sizes, where = [], [], []
    for sample in (sample for group in dataset.splits.values() for sample in group):
        if sample.shapes and (size := declared_size(sample)):
            boxes += [shape.bbox for shape in sample.shapes]
            where += [shape.where for shape in sample.shapes]
            sizes += [size] * len(sample.shapes)
    return np.array(boxes, float).reshape(-1, 4), np.array(sizes, float).reshape(-1, 2), where


def coordinates(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """'pixels', 'normalised' (0 to 1), or 'corners' (x0, y0, x1, y1)."""
    if not len(boxes):
        return "pixels"
    if boxes.min() >= 0 and 0 < boxes.max() <= 1:
        return "normalised"
    start, sides = boxes[:, :2], boxes[:, 2:]
    like_corners = ((sides > start) & (sides <= sizes)).all(1)
    stick_out = (start + sides > sizes + 1).any(1)
    # Of true widths, few would stick out, and not all would be larger than their start.
    is_corners = like_corners.mean() > 0.95 and stick_out.mean() > 0.25
    return "corners" if is_corners else "pixels"


def fixed_objects(sample: Sample, form: str, note: Callable[[str, str], None]) -> Iterator[Shape]:
    """Give the usable objects of a sample; ``note`` gets a place and what was changed."""
    picture, must_turn = look_at(sample.image), is_unturned(sample)
    for shape in sample.shapes:
        x, y, width, height = shape.bbox
        box = [x, y, width, height] if form == "corners" else [x, y, x + width, y + height]
        polygons = [p for p in shape.polygons if len(p) >= 6 and len(p) % 2 == 0]
        outlines = [np.reshape(each, (-1, 2)).astype(float) for each in [box, *polygons]]
        if form == "normalised":
            size = declared_size(sample)
            outlines = [points * size if points.max() <= 1 else points for points in outlines]
        if must_turn:
            outlines = [_turn(points, picture) for points in outlines]
        inside = [points.clip(0, picture.shown_size).ravel().tolist() for points in outlines]
        new_box = bounds(inside[0])
        if shape.category is None:
            note(shape.where, "class without a name: left out")
        elif shape.rle and must_turn:
            note(shape.where, "mask of run lengths cannot be turned: left out")
        elif shape.polygons and not polygons:
            note(shape.where, "polygons of fewer than three points: left out")
        elif box[2] <= box[0] or box[3] <= box[1] or min(new_box[2:]) <= 0:
            note(shape.where, "box empty or outside of the image: left out")
        else:
            if not np.allclose(new_box, shape.bbox, atol=1e-3):
                note(shape.where, "box clipped, turned or in pixels now")
            if len(polygons) < len(shape.polygons):
                note(shape.where, "polygons of fewer than three points left out")
            yield replace(shape, bbox=new_box, polygons=inside[1:])


def _turn(points: np.ndarray, picture: Picture) -> np.ndarray:
    """Turn points (N x 2, x to the right and y down) as the EXIF tag says."""
    x, y = points.T
    assert picture.size
    width, height = picture.size
    turned = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}
    return np.stack(turned[picture.orientation], 1)


def area(shape: Shape) -> float:
    """The pixels that an object covers: of its outline if it has one, else of its box."""
    from pycocotools import mask

    if shape.rle:
        counts = shape.rle["counts"]
        return float(sum(counts[1::2]) if isinstance(counts, list) else mask.area(shape.rle))
    total = 0.0 if shape.polygons else shape.bbox[2] * shape.bbox[3]
    for x, y in (np.reshape(polygon, (-1, 2)).T for polygon in shape.polygons):
        total += abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return float(total)
