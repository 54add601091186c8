"""Reads YOLO's text files, line by line: boxes and polygons, with or without data.yaml."""

from pathlib import Path

from crossformer_mm.datasets.own import files
from crossformer_mm.datasets.own.faults import Notes
from crossformer_mm.datasets.own.pictures import look_at
from crossformer_mm.datasets.own.records import DataSetError, OwnDataset, Sample, Shape


def read(root: Path) -> OwnDataset | None:
    """Read YOLO's files in a folder; None if there are none."""
    notes = Notes()
    file, config = _config(root)
    folders = _named_folders(root, file, config, notes) if file else _image_folders(root)
    if not folders:
        return None
    names = _names(file, config, notes) if file else files.read_class_names(root, root / "labels")
    splits = {split: [*map(Sample, files.files_in(path))] for split, path in folders.items()}
    samples = [sample for group in splits.values() for sample in group]
    for sample in samples:
        sample.shapes = _shapes(sample.image, names, notes)
    _note_orphans([sample.image for sample in samples], notes)
    if names is None:
        notes.add("no names", str(root))
        shapes = [shape for sample in samples for shape in sample.shapes]
        used = {shape.category for shape in shapes if shape.category}
        names = sorted(used, key=lambda name: (len(name), name))
    return OwnDataset(root, "YOLO", "detection", names, splits, folders, notes.findings)


def _config(root: Path) -> tuple[Path | None, dict]:
    import yaml

    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        config = files.read_as("YAML", file, yaml.safe_load)
        if isinstance(config, dict) and "names" in config and {*files.SPLITS} & config.keys():
            return file, config
    return None, {}


def _names(file: Path, config: dict, notes: Notes) -> list[str]:
    names = config["names"]
    if isinstance(names, dict) and {*names} == {*range(len(names))}:
        names = [names[index] for index in range(len(names))]
    no_texts = (list, dict, type(None))
    if not isinstance(names, list) or any(isinstance(name, no_texts) for name in names):
        raise DataSetError(f"{file}: names must be a list of texts, or be numbered 0, 1, ...")
    if config.get("nc", len(names)) != len(names):
        notes.add("class count", file.name)
    return [*map(str, names)]


def _named_folders(root: Path, file: Path, config: dict, notes: Notes) -> dict[str, Path]:
    """The folders of images that data.yaml names, by split."""
    base, found = root / str(config.get("path") or ""), {}
    for split in (split for split in files.SPLITS if config.get(split)):
        value = str(config[split])
        # Roboflow writes ../train/images for what lies beside data.yaml.
        places = [base / value, root / value, root / value.removeprefix("../")]
        if place := next((place for place in places if place.is_dir()), None):
            found[split] = place
        else:
            notes.add("split missing", f"{file.name}: {value}", split=split)
    if not found:
        raise DataSetError(f"{file}: none of the folders that it names is there")
    return found


def _image_folders(root: Path) -> dict[str, Path]:
    """images/ beside labels/, with a folder for each split inside or around them, or none."""
    around = {split: path / "images" for split, path in files.split_folders(root).items()}
    for found in (files.split_folders(root / "images"), around, dict(train=root / "images")):
        if any(_labels_in(_label_of(folder / "any").parent) for folder in found.values()):
            return {split: folder for split, folder in found.items() if folder.is_dir()}
    return {}


def _labels_in(folder: Path) -> list[Path]:
    return [file for file in files.files_in(folder, (".txt",)) if file.name not in files.NAME_FILES]


def _label_of(image: Path) -> Path:
    """The label file of an image: in labels/ for images/, else beside it."""
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _note_orphans(images: list[Path], notes: Notes) -> None:
    expected = {_label_of(image) for image in images}
    found = {file for folder in {e.parent for e in expected} for file in _labels_in(folder)}
    for file in sorted(found - expected):
        notes.add("orphan", files.short(file))


def _shapes(image: Path, names: list[str] | None, notes: Notes) -> list[Shape]:
    """The objects in an image's label file."""
    file, shapes = _label_of(image), []
    if not file.is_file():
        notes.add("no label", files.short(image))
        return []
    for number, line in enumerate(files.read_as("text", file), 1):
        where = f"{files.short(file)}:{number}"
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            values = [0.0]
        is_usual = len(values) == 5 or len(values) >= 7 and len(values) % 2
        if is_usual and files.are_numbers(values):
            shapes.append(_shape(image, values, names, where, notes))
        elif values:
            why = "neither a class and a box (5 numbers) nor a class and a polygon (7, 9, ...)"
            notes.add("bad record", where, records="lines", why=why)
    return shapes


def _shape(image: Path, line: list, names: list[str] | None, where: str, notes: Notes) -> Shape:
    index, values = int(line[0]), line[1:]
    name = f"class {index}" if names is None else dict(enumerate(names)).get(index)
    if name is None:
        notes.add("dangling class", where)
    if max(values) > 2:
        notes.add("pixels", where)
    else:
        # As it is shown: the tools that write these files obey the EXIF tag.
        size = look_at(image).shown_size or (1, 1)
        values = [value * size[i % 2] for i, value in enumerate(values)]
    if len(values) > 4:
        return Shape(name, files.bounds(values), where, [values])
    x, y, w, h = values
    return Shape(name, (x - w / 2, y - h / 2, w, h), where)
