"""Reads COCO's JSON, record by record, and says which records are not what they must be."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from crossformer_mm.datasets.own import files
from crossformer_mm.datasets.own.faults import Notes
from crossformer_mm.datasets.own.records import DataSetError, OwnDataset, Sample, Shape

# What COCO's folder has of the same images, beside instances_*.json
_OTHER_TASKS = ("captions", "person_keypoints", "image_info", "stuff", "panoptic")
_Kind = type | tuple[type, ...]
_Records = Iterator[tuple[str, dict]]
_LISTS = ("images", "annotations", "categories")


def read(root: Path) -> OwnDataset | None:
    """Read COCO's JSON in a folder; None if there is none."""
    notes, contents = Notes(), _contents(root)
    sources = _by_split(root, [*contents], notes)
    classes: list[str] = []
    splits: dict[str, list[Sample]] = {}
    for split, file in sources.items():
        splits[split], names = _read_split(root, split, file, contents[file], notes)
        if classes and names != classes:
            notes.add("other classes", files.short(file))
        classes += [name for name in names if name not in classes] if classes else names
    found = OwnDataset(root, "COCO JSON", "detection", classes, splits, sources, notes.findings)
    return found if splits else None


def _contents(root: Path) -> dict[Path, dict]:
    paths = [*root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json")]
    paths = sorted([*paths, *root.glob("*.json")])
    if any(path.name.startswith("instances") for path in paths):
        paths = [path for path in paths if not path.name.startswith(_OTHER_TASKS)]
    contents = {path: files.read_as("JSON", path, json.loads) for path in paths}
    found = {f: c for f, c in contents.items() if isinstance(c, dict) and {*_LISTS} <= c.keys()}
    no_lists = [f for f, c in found.items() if not all(isinstance(c[key], list) for key in _LISTS)]
    if bad := no_lists or [path for path in paths if path.parent != root and not found]:
        raise DataSetError(f"{bad[0]} is no COCO JSON: it must have lists {', '.join(_LISTS)}")
    return found


def _by_split(root: Path, paths: list[Path], notes: Notes) -> dict[str, Path]:
    """Sort files by the split that their names tell; a single one without is for training."""
    if len(paths) == 1:
        return {files.split_of(paths[0].stem) or "train": paths[0]}
    found: dict[str, Path] = {}
    for path in paths:
        place = path.stem if path.parent == root else f"{path.stem} {path.parent.name}"
        split = files.split_of(place)
        if split is None or found.setdefault(split, path) != path:
            notes.add("not used", files.short(path), files="annotation files of no or one split")
    if paths and not found:
        raise DataSetError(f"{root}: which JSON file is for training? Name it train.json")
    return {split: found[split] for split in files.SPLITS if split in found}


def _read_split(root: Path, split: str, file: Path, content: dict, notes: Notes) -> tuple:
    """The samples of a split, and the names of its classes."""
    names: dict[int, str] = {}
    samples: dict[int | str, Sample] = {}
    for _, record in _records(content, "categories", file, notes, id=int, name=str):
        names.setdefault(record["id"], record["name"])
    images = [*_records(content, "images", file, notes, id=(int, str), file_name=str)]
    folder = _image_folder(root, split, [record["file_name"] for _, record in images])
    for where, record in images:
        size = [record.get("width"), record.get("height")]
        sample = Sample(folder / record["file_name"])
        if files.are_numbers(size) and min(size) >= 1:
            sample.size = (int(size[0]), int(size[1]))
        else:
            notes.add("bad record", where, records="images", why="no usable 'width' and 'height'")
        samples.setdefault(record["id"], sample)
    kinds: dict[str, _Kind] = dict(id=(int, str), image_id=(int, str), category_id=int, bbox=list)
    for where, record in _records(content, "annotations", file, notes, **kinds):
        if record["image_id"] in samples:
            sample = samples[record["image_id"]]
            sample.shapes += _shapes(record, where, names, sample.size, notes)
        else:
            notes.add("dangling image", where)
    return [*samples.values()], [*names.values()]


def _records(content: dict, key: str, file: Path, notes: Notes, **kinds: _Kind) -> _Records:
    """Give places and records of a list, except for those that lack a key; note what is wrong."""
    place, ids = files.short(file), set()
    for number, record in enumerate(content[key]):
        where = f"{place}, {key}[{number}]"
        values = record if isinstance(record, dict) else {}
        wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
        if wrong:
            notes.add("bad record", where, records=key, why=f"no usable '{wrong[0]}'")
            continue
        if record["id"] in ids:
            notes.add("double id", where, records=key)
        ids.add(record["id"])
        yield where, record


def _image_folder(root: Path, split: str, names: list[str]) -> Path:
    """The folder that has most images of a sample of these names, the split's own if several."""
    folders = [root, *files.folders_in(root)]
    folders += [inner for folder in folders[1:] for inner in files.folders_in(folder)]
    names = names[:: len(names) // 20 + 1]
    found = {path: sum(os.path.isfile(path / name) for name in names) for path in folders}
    return max(folders, key=lambda path: (found[path], files.split_of(path.name) == split))


def _shapes(record: dict, where: str, names: dict, size: tuple | None, notes: Notes) -> list[Shape]:
    """The object of an annotation in a list; an empty one if it has no box."""
    for key in {"area", "iscrowd"} - record.keys():
        notes.add("no area", where, key=key)
    if not files.are_numbers(record["bbox"], 4):
        notes.add("bad record", where, records="annotations", why="no usable 'bbox'")
        return []
    if record["category_id"] not in names:
        notes.add("dangling class", where)
    x, y, width, height = record["bbox"]
    shape = Shape(names.get(record["category_id"]), (x, y, width, height), where)
    shape.is_crowd = record.get("iscrowd") == 1
    outline = record.get("segmentation") or []
    if isinstance(outline, list) and all(files.are_numbers(polygon) for polygon in outline):
        shape.polygons = outline
    elif isinstance(outline, dict) and _is_mask(outline, size):
        shape.rle = outline
    else:
        notes.add("bad outline", where)
    return [shape]


def _is_mask(rle: dict, image_size: tuple[int, int] | None) -> bool:
    size, counts = rle.get("size"), rle.get("counts")
    fits = files.are_numbers(size, 2) and (image_size is None or (*size[::-1],) == image_size)
    return fits and (isinstance(counts, str) or files.are_numbers(counts))
