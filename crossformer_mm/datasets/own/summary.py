"""Says in some lines what a data set has: splits, classes, sizes."""

from collections import Counter

import numpy as np

from crossformer_mm.datasets.own.boxes import all_boxes
from crossformer_mm.datasets.own.pictures import IGNORED, look_at, look_at_map, number
from crossformer_mm.datasets.own.records import OwnDataset, Sample
from crossformer_mm.utils.errors import one_line

_COUNTED = dict(detection="objects", classification="images", segmentation="labelled pixels")


def describe(dataset: OwnDataset) -> list[str]:
    """Lines on a data set: format, task, splits, a table of its classes, sizes."""
    lines = [f"{dataset.root}: {dataset.form}, for {dataset.task}"]
    things, images, objects = _COUNTED[dataset.task], Counter[str](), Counter[str]()
    for split, group in dataset.splits.items():
        found = count_classes(dataset, split)
        images, objects = images + found[0], objects + found[1]
        counted = f"{len(group)} images, {found[1].total()} {things}"
        lines.append(f"{split}: {counted} ({dataset.sources[split]})")
    lines.append(f"{'class':40}  {'images':>8}  {things:>15}   share")
    for name in dict.fromkeys(dataset.classes):
        share = objects[name] / max(objects.total(), 1)
        line = f"{one_line(name, 37):40}  {images[name]:8}  {objects[name]:15}  {share:7.1%}"
        lines.append(line)
    samples = [sample for group in dataset.splits.values() for sample in group]
    sizes = [size for sample in samples if (size := look_at(sample.image).shown_size)]
    lines += _percentiles("image", np.array(sizes))
    lines += _percentiles("box", all_boxes(dataset)[0][:, 2:])
    return lines + ([_meaning(dataset, samples)] if dataset.task == "segmentation" else [])


def count_classes(dataset: OwnDataset, split: str) -> tuple[Counter[str], Counter[str]]:
    """How many images show each class of a split, and how many objects (or pixels) are of it."""
    images, objects = Counter[str](), Counter[str]()
    _, labels = number(dataset.splits, len(dataset.classes))
    names = dict(enumerate(dataset.classes))
    for sample in dataset.splits[split]:
        shown = [shape.category for shape in sample.shapes] or [sample.category]
        found = Counter(name for name in shown if name is not None)
        label_map = look_at_map(sample.label_map)
        for value, count in label_map.counts.items() if label_map else ():
            if labels[value] in names:
                found[names[labels[value]]] += count
        objects.update(found)
        images.update(found.keys())
    return images, objects


def _percentiles(what: str, sizes: np.ndarray) -> list[str]:
    """``sizes`` is N x 2."""
    if not len(sizes):
        return []
    found = np.percentile(sizes, (5, 50, 95), axis=0)
    shown = ", ".join(f"{width:.0f} x {height:.0f}" for width, height in found)
    return [f"{what} sizes (5 %, 50 %, 95 %; width and height apart): {shown}"]


def _meaning(dataset: OwnDataset, samples: list[Sample]) -> str:
    """What kinds of label maps there are, and what 0 and 255 are taken for."""
    maps = [each for sample in samples if (each := look_at_map(sample.label_map))]
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(m.kind for m in maps).items())
    _, labels = number(dataset.splits, len(dataset.classes))
    names = {IGNORED: "no class"} | {i: repr(name) for i, name in enumerate(dataset.classes)}
    meanings = [f"{v} is taken as {one_line(names[labels[v]])}" for v in (0, 255) if v in labels]
    return "; ".join([f"label maps: {kinds}", *meanings])
