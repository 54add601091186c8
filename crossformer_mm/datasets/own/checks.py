"""Finds what would make a training fail, or learn something wrong."""

import hashlib
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from crossformer_mm.datasets.own.boxes import all_boxes, coordinates
from crossformer_mm.datasets.own.faults import Notes
from crossformer_mm.datasets.own.files import short
from crossformer_mm.datasets.own.pictures import IGNORED, is_unturned, look_at, look_at_map, number
from crossformer_mm.datasets.own.records import Finding, OwnDataset, Sample
from crossformer_mm.datasets.own.summary import count_classes


def check(dataset: OwnDataset, network_scale: tuple[int, int] = (1333, 800)) -> list[Finding]:
    """Find faults; ``network_scale`` is the longest and shortest side images are resized to."""
    notes, has_masks = Notes(), dataset.has_masks
    samples = [sample for group in dataset.splits.values() for sample in group]
    with ThreadPoolExecutor() as pool:  # Pillow decodes in parallel
        list(pool.map(look_at, [sample.image for sample in samples]))
        list(pool.map(look_at_map, [sample.label_map for sample in samples]))
    for sample in samples:
        _check_image(sample, notes)
        if sample.label_map or dataset.task == "segmentation":
            _check_map(sample, notes)
        for shape in sample.shapes if has_masks else ():
            if any(len(polygon) < 6 or len(polygon) % 2 for polygon in shape.polygons):
                notes.add("few points", shape.where)
            if not shape.polygons and not shape.rle:
                notes.add("no outline", shape.where)
    for split, image in shared_images(dataset):
        notes.add("shared", short(image), split=split)
    _check_boxes(dataset, network_scale, notes)
    _check_values(dataset, samples, notes)
    _check_names(dataset.classes, notes)
    _check_classes(dataset, notes)
    return sorted(dataset.findings + notes.findings, key=lambda finding: not finding.is_error)


def shared_images(dataset: OwnDataset) -> list[tuple[str, Path]]:
    """Images of other splits that are also in an earlier one, by content."""
    by_size, shared = defaultdict(list), []
    for split, group in dataset.splits.items():
        for image in dict.fromkeys(sample.image for sample in group):
            if image.is_file():
                by_size[image.stat().st_size].append((split, image))
    for group in by_size.values():
        first: dict[bytes, str] = {}
        for split, image in group if len({split for split, _ in group}) > 1 else ():
            content = hashlib.sha256(image.read_bytes()).digest()
            if first.setdefault(content, split) != split:
                shared.append((split, image))
    return shared


def _check_image(sample: Sample, notes: Notes) -> None:
    name, picture = short(sample.image), look_at(sample.image)
    shown_size = picture.shown_size
    is_annotated = sample.shapes or sample.label_map
    # A declared size of the turned image says that the annotator saw it so.
    is_known = picture.orientation >= 5 and (sample.size or sample.label_map)
    if not shown_size:
        notes.add("unreadable" if os.path.isfile(sample.image) else "image missing", name)
    elif is_unturned(sample):
        notes.add("turned", name)
    elif sample.size and sample.size != shown_size:
        notes.add("other size", f"{name}: {_by(sample.size)}, but is {_by(shown_size)}")
    elif picture.orientation > 1 and is_annotated and not is_known:
        notes.add("perhaps turned", name)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _check_map(sample: Sample, notes: Notes) -> None:
    name, found = short(sample.label_map or sample.image), look_at_map(sample.label_map)
    size = look_at(sample.image).shown_size
    if found is None:
        notes.add("map unreadable", name)
    elif size and found.size not in (size, look_at(sample.image).size):
        notes.add("map size", f"{name}: {_by(found.size)}, not {_by(size)}")
    if found and found.kind in ("16-bit", "RGB"):
        notes.add(found.kind, name)


def _check_boxes(dataset: OwnDataset, scale: tuple[int, int], notes: Notes) -> None:
    boxes, sizes, where = all_boxes(dataset)
    start, sides = boxes[:, :2], boxes[:, 2:]
    empty = (sides <= 0).any(1)
    outside = ~empty & ((start + sides <= 0) | (start >= sizes)).any(1)
    inside = ~empty & ~outside
    beyond = ((start < -1) | (start + sides > sizes + 1)).any(1)  # a pixel is rounding
    faults = {"empty box": empty, "outside": outside, "partly outside": inside & beyond}
    if (form := coordinates(boxes, sizes)) != "pixels":
        faults = {form: np.ones(len(boxes), bool)}
    for key, is_so in faults.items():
        for index in is_so.nonzero()[0]:
            notes.add(key, where[index])
    if inside.any() and form == "pixels":
        factor = np.minimum(max(scale) / sizes.max(1), min(scale) / sizes.min(1))
        if np.median((np.sqrt(sides.clip(0).prod(1)) * factor)[inside]) < 8:
            notes.add("small", f"input size {_by(scale)}")


def _check_values(dataset: OwnDataset, samples: list[Sample], notes: Notes) -> None:
    fault, table = number(dataset.splits, len(dataset.classes))
    for sample in samples if fault else ():
        found = look_at_map(sample.label_map)
        if wrong := [value for value in found.counts if table[value] != value] if found else []:
            notes.add(fault, f"{short(sample.label_map or sample.image)} ({sorted(wrong)[:6]})")
    if table.get(IGNORED) == IGNORED and not fault:
        for name in (name for label, name in enumerate(dataset.classes) if label not in table):
            notes.add("255", name)


def _check_names(classes: list[str], notes: Notes) -> None:
    first: dict[str, str] = {}
    for name in classes:
        if plain(name) in first:
            other = first[plain(name)]
            notes.add("double name" if name == other else "same name", f"{name!r} and {other!r}")
        first.setdefault(plain(name), name)


def plain(name: str) -> str:
    """A class's name without differences of case and spaces."""
    return " ".join(name.split()).casefold()


def _check_classes(dataset: OwnDataset, notes: Notes) -> None:
    counts = {split: count_classes(dataset, split) for split in dataset.splits}
    images = sum((found for found, _ in counts.values()), Counter())
    objects = sum((found for _, found in counts.values()), Counter())
    for name in dataset.classes:
        if not objects[name]:
            notes.add("unused", name)
    train = counts.pop("train", (Counter(), Counter()))[1]
    if not train:
        notes.add("no train", str(dataset.root))
    if not dataset.splits.get("val"):
        notes.add("no val", str(dataset.root))
    for split, (_, found) in counts.items():
        for name in sorted(train.keys() ^ found.keys()) if found else ():
            notes.add("one split", f"{name} ('{split if name in found else 'train'}')", split=split)
    # Most pixels are background in most data; images are what says how often a class is seen.
    used = (images if dataset.task == "segmentation" else objects).most_common()
    if used and used[-1][1] * 100 < used[0][1]:
        notes.add("imbalance", f"{used[-1][0]}: {used[-1][1]}, {used[0][0]}: {used[0][1]}")
