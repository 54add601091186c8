"""Reads data without annotation files: images with label maps, or in a folder per class."""

from pathlib import Path

from crossformer_mm.datasets.own import files
from crossformer_mm.datasets.own.faults import Notes
from crossformer_mm.datasets.own.pictures import IGNORED, number
from crossformer_mm.datasets.own.records import IMAGE_SUFFIXES, DataSetError, OwnDataset, Sample

_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


def read_label_maps(root: Path) -> OwnDataset | None:
    """Read images and the label maps of the same names; None if there are none."""
    notes, splits, sources = Notes(), {}, {}
    for split, (images, maps) in _places(root).items():
        samples = _samples(images, maps, notes)
        if any(sample.label_map for sample in samples):
            splits[split], sources[split] = samples, maps
        else:
            notes.add("not used", str(images), files="images of splits without label maps")
    if not splits:
        return None
    classes = files.read_class_names(root, *sources.values())
    if classes is None:
        notes.add("no names", str(root))
        labels = {*number(splits, None)[1].values()} - {IGNORED}
        classes = [f"class {label}" for label in range(max(labels, default=-1) + 1)]
    if len(classes) > IGNORED:
        advice = "are their values numbers of objects?"
        raise DataSetError(f"{root}: the label maps have more than {IGNORED} classes; {advice}")
    form = "images and label maps"
    return OwnDataset(root, form, "segmentation", classes, splits, sources, notes.findings)


def _places(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and of label maps, by split; it may be named on either level."""
    if pair := _pair(root):
        images, maps = map(files.split_folders, pair)
        found = {split: (images[split], maps.get(split, pair[1] / split)) for split in images}
        return found if images.keys() & maps.keys() else dict(train=pair)
    found = {split: _pair(folder) for split, folder in files.split_folders(root).items()}
    return {split: pair for split, pair in found.items() if pair}


def _pair(folder: Path) -> tuple[Path, Path] | None:
    images = [folder / name for name in files.IMAGE_FOLDERS if (folder / name).is_dir()]
    maps = [folder / name for name in files.LABEL_FOLDERS if (folder / name).is_dir()]
    return (images[0], maps[0]) if images and maps else None


def _samples(images: Path, maps: Path, notes: Notes) -> list[Sample]:
    labels = files.files_in(maps, _SUFFIXES)
    labels = {file.relative_to(maps).with_suffix(""): file for file in labels}
    samples = []
    for image in files.files_in(images):
        name = image.relative_to(images).with_suffix("")
        samples.append(Sample(image, label_map=labels.pop(name, None)))
    if any(sample.label_map for sample in samples):
        for file in labels.values():
            notes.add("orphan", files.short(file))
    return samples


def read_class_folders(root: Path) -> OwnDataset | None:
    """Read ``SPLIT/CLASS/*.jpg`` or ``CLASS/*.jpg``; None if fewer than two classes have images."""
    notes, around = Notes(), files.split_folders(root)
    places = {split: path for split, path in around.items() if _class_folders(path)}
    places = places or dict(train=root)
    folders = {split: _class_folders(path) for split, path in places.items()}
    names = {name for found in folders.values() for name in found}
    # Another format, of which something is missing, must not become classes "images" and "masks".
    others = {*files.IMAGE_FOLDERS, *files.LABEL_FOLDERS}
    if len(names) < 2 or names & others or names <= {path.name for path in around.values()}:
        return None
    # A class may be named as a split is, so these are splits only if they have classes.
    for path in (root, *(around.values() if root not in places.values() else ())):
        for file in sorted(path.iterdir()):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                notes.add("not used", files.short(file), files="images in no class's folder")
    splits = {
        split: [Sample(image, category=name) for name in found for image in found[name]]
        for split, found in folders.items()
    }
    form, found = "a folder per class", notes.findings
    return OwnDataset(root, form, "classification", sorted(names), splits, places, found)


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Images by class; nothing if no folder has any."""
    found = {path.name: files.files_in(path) for path in files.folders_in(folder)}
    return found if any(found.values()) else {}
