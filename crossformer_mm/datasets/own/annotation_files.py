"""Annotation files of a data set, as the libraries' own data set classes read them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pycocotools import mask as coco_mask

from crossformer_mm.datasets.own.boxes import declared_size
from crossformer_mm.datasets.own.records import DataSetError, Sample, Shape


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, which need not be above it."""
    return Path(os.path.relpath(path, folder)).as_posix()


def encode_mask(shape: Shape, size: tuple[int, int]) -> dict:
    """Compress the pixels of an object with an outline, in an image of that width and height."""
    if shape.rle and not isinstance(shape.rle["counts"], list):
        return shape.rle
    code = coco_mask.frPyObjects(shape.rle or shape.polygons, size[1], size[0])
    return code if shape.rle else coco_mask.merge(code)


def coco_json(samples: Sequence[Sample], classes: Sequence[str], root: Path) -> str:
    """Write COCO's JSON: categories in the labels' order, image names relative to a folder."""
    ids: dict[str | None, int] = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict] = []
    annotations: list[dict] = []
    for number, sample in enumerate(samples, 1):
        size = declared_size(sample)
        assert size, sample.image  # what check() finds no size of is an error
        name = relative(sample.image, root)
        images.append(dict(id=number, file_name=name, width=size[0], height=size[1]))
        for shape in sample.shapes:
            own: dict = dict(id=len(annotations) + 1, image_id=number)
            own |= dict(
                category_id=ids[shape.category], bbox=shape.bbox, area=shape.bbox[2] * shape.bbox[3]
            )
            if outline := shape.rle or shape.polygons:
                area = float(coco_mask.area(encode_mask(shape, size)))
                own |= dict(segmentation=outline, area=area or own["area"])
            annotations.append(own | dict(iscrowd=int(shape.is_crowd)))
    categories = [dict(id=number, name=name) for name, number in ids.items()]
    content = dict(categories=categories, images=images, annotations=annotations)
    return json.dumps(dict(info=dict(description=root.name)) | content)


def label_lines(samples: Sequence[Sample], classes: Sequence[str], root: Path) -> str:
    """Write mmpretrain's lines "path label", with paths relative to a folder."""
    labels: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
    lines = [f"{relative(sample.image, root)} {labels[sample.category]}\n" for sample in samples]
    return "".join(lines)


def label_map_names(samples: Sequence[Sample], root: Path) -> tuple[str, dict]:
    """Write mmseg's list: a name in each line, which an image and its label map have in common.

    It also returns the folders and suffixes, of which there must be one for all of a kind.
    """
    pairs = [(sample.image, sample.label_map) for sample in samples if sample.label_map]
    images = Path(os.path.commonpath([image.parent for image, _ in pairs]))
    label_maps = Path(os.path.commonpath([label_map.parent for _, label_map in pairs]))
    names, suffixes = "", set()
    for image, label_map in pairs:
        paths = relative(image, images), relative(label_map, label_maps)
        name = os.path.commonprefix([os.path.splitext(path)[0] for path in paths])
        names += f"{name}\n"
        suffixes.add(tuple(path.removeprefix(name) for path in paths))
    if len(suffixes) > 1:
        found = ", ".join(" with ".join(pair) for pair in sorted(suffixes)[:5])
        what = f"after the common name, all images in {images} must end alike"
        raise DataSetError(f"{what}, and all label maps in {label_maps}; they end in {found}")
    prefix = dict(img_path=relative(images, root), seg_map_path=relative(label_maps, root))
    image_suffix, map_suffix = suffixes.pop()
    return names, dict(data_prefix=prefix, img_suffix=image_suffix, seg_map_suffix=map_suffix)
