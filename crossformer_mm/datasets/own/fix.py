"""Writes a corrected copy of a data set, and says what it changed; the source stays as it is."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from crossformer_mm.datasets.own import pictures
from crossformer_mm.datasets.own.boxes import all_boxes, area, coordinates, fixed_objects
from crossformer_mm.datasets.own.checks import plain, shared_images
from crossformer_mm.datasets.own.files import short
from crossformer_mm.datasets.own.pictures import look_at, look_at_map
from crossformer_mm.datasets.own.records import DataSetError, OwnDataset, Sample, Shape
from crossformer_mm.utils.errors import one_line


def copy_fixed(dataset: OwnDataset, out: Path) -> list[str]:
    """Write COCO JSON, images and label maps, or a folder per class; return a line per change.

    Raises:
        DataSetError: If ``out`` is there already or lies in the data set, or nothing would be left.
    """
    out = Path(out).absolute()
    if os.path.lexists(out) or dataset.root.resolve() in out.resolve().parents:
        raise DataSetError(f"{out}: the copy needs a new folder, outside of the data set")
    write = dict(
        detection=_write_detection, segmentation=_write_maps, classification=_write_folders
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".unfinished-", dir=out.parent) as folder:
        copy = _Copy(dataset, Path(folder, "copy"))
        write[dataset.task](copy)
        if not copy.taken:
            raise DataSetError(f"{dataset.root}: no image of it can be used, so there is no copy")
        copy.root.rename(out)
    return [one_line(change) for change in copy.changes]


class _Copy:
    """A copy in the making: its folder, what differs from its source, the names of its classes."""

    def __init__(self, source: OwnDataset, root: Path) -> None:
        self.source, self.root = source, root
        root.mkdir()
        self.changes: list[str] = []
        self.taken: set[Path] = set()
        self.names: dict[str | None, str] = {}
        for finding in source.findings:
            for where in finding.where if finding.is_error else ():
                self.note(where, f"{finding.what}: not so in the copy")
        first: dict[str, str] = {}
        for name in source.classes:
            self.names[name] = first.setdefault(plain(name), " ".join(name.split()))
            if self.names[name] != name:
                self.note(f"class {name!r}", f"is now {self.names[name]!r}")
        self.classes = list(first.values())

    def note(self, where: str | Path, change: str) -> None:
        """Note a change at a place."""
        self.changes.append(f"{short(where) if isinstance(where, Path) else where}: {change}")

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Give the samples whose images can be read, are of their size and in one split only."""
        shared = set(shared_images(self.source))
        for split, group in self.source.splits.items():
            for sample in group:
                picture = look_at(sample.image)
                if not picture.size:
                    self.note(sample.image, "missing or unreadable: left out")
                elif sample.size not in (None, picture.size, picture.shown_size):
                    self.note(sample.image, "of another size than declared: left out")
                elif (split, sample.image) in shared:
                    self.note(sample.image, f"in another split too: left out of '{split}'")
                else:
                    yield split, sample

    def add_image(self, source: Path, folder: Path) -> Path:
        """Copy an image, upright, into a folder, under a stem that no other image has."""
        from PIL import Image, ImageOps

        folder.mkdir(parents=True, exist_ok=True)
        target = folder / source.name
        if target.with_suffix("") in self.taken:
            target = folder / f"{len(self.taken)}-{source.name}"
        self.taken.add(target.with_suffix(""))
        if look_at(source).orientation == 1:
            shutil.copyfile(source, target)
            return target
        with Image.open(source) as image:
            # Phones write several pictures into one.
            form = "JPEG" if image.format == "MPO" else image.format
            ImageOps.exif_transpose(image).save(target, form, quality=95)
        self.note(source, "turned, without its EXIF tag")
        return target


def _write_detection(copy: _Copy) -> None:
    categories = [dict(id=label, name=name) for label, name in enumerate(copy.classes, 1)]
    form = coordinates(*all_boxes(copy.source)[:2])
    files: dict[str, dict] = {}
    for split, sample in copy.samples():
        content = files.setdefault(split, dict(images=[], annotations=[], categories=categories))
        size = look_at(sample.image).shown_size
        assert size  # as of all that copy.samples() gives
        name = copy.add_image(sample.image, copy.root / split).name
        number = len(content["images"]) + 1
        content["images"].append(dict(id=number, file_name=name, width=size[0], height=size[1]))
        for shape in fixed_objects(sample, form, copy.note):
            record = dict(id=len(content["annotations"]) + 1, image_id=number)
            content["annotations"].append(record | _annotation(shape, copy))
    (copy.root / "annotations").mkdir()
    for split, content in files.items():
        (copy.root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _annotation(shape: Shape, copy: _Copy) -> dict:
    x, y, w, h = shape.bbox
    label = copy.classes.index(copy.names[shape.category]) + 1
    record = dict(category_id=label, bbox=[x, y, w, h], iscrowd=int(shape.is_crowd))
    if copy.source.has_masks:
        if not shape.polygons and not shape.rle:
            shape.polygons = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            copy.note(shape.where, "the box is its outline")
        record["segmentation"] = shape.rle or shape.polygons
    return record | dict(area=area(shape))


def _write_maps(copy: _Copy) -> None:
    from PIL import Image, ImageOps

    old_names = copy.source.classes
    _, table = pictures.number(copy.source.splits, len(old_names))
    merged = {label: copy.classes.index(copy.names[name]) for label, name in enumerate(old_names)}
    table = {value: merged.get(label, pictures.IGNORED) for value, label in table.items()}
    for split, sample in copy.samples():
        found, picture = look_at_map(sample.label_map), look_at(sample.image)
        if not (sample.label_map and found) or found.size not in (picture.size, picture.shown_size):
            copy.note(sample.image, "no label map of its size: left out")
            continue
        values, places = np.unique(pictures.read_values(sample.label_map)[1], return_inverse=True)
        labels = np.array([table[value] for value in values.tolist()], np.uint8)
        labels = Image.fromarray(labels[places].reshape(found.size[::-1]))
        if pictures.is_unturned(sample):
            labels.getexif()[pictures.ORIENTATION] = picture.orientation
            labels = ImageOps.exif_transpose(labels)
            copy.note(sample.label_map, "turned as its image")
        name = copy.add_image(sample.image, copy.root / "images" / split).stem
        folder = copy.root / "masks" / split
        folder.mkdir(parents=True, exist_ok=True)
        labels.save(folder / f"{name}.png")
        if found.kind != "grey":
            copy.note(sample.label_map, f"{found.kind}, is 8-bit grey")
        if new := {value: table[value] for value in found.counts if table[value] != value}:
            copy.note(sample.label_map, f"values {[*new][:6]} are {[*new.values()][:6]}")
    names = "".join(f"{name}\n" for name in copy.classes)
    (copy.root / "classes.txt").write_text(names, "utf-8", "replace")


def _write_folders(copy: _Copy) -> None:
    for split, sample in copy.samples():
        copy.add_image(sample.image, copy.root / split / copy.names[sample.category])
