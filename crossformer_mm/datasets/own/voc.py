"""Reads Pascal VOC's XML files, without running what they define."""

from collections import defaultdict
from pathlib import Path
from xml.etree.ElementTree import Element

from crossformer_mm.datasets.own import files
from crossformer_mm.datasets.own.faults import Notes
from crossformer_mm.datasets.own.records import OwnDataset, Sample, Shape


def read(root: Path) -> OwnDataset | None:
    """Read VOC's XML files in a folder; None if there are none."""
    notes, images = Notes(), defaultdict(list)
    trees = {file: _parse(file, notes) for file in files.files_in(root, (".xml",))}
    for image in files.files_in(root) if trees else ():
        if image.parent.name not in files.LABEL_FOLDERS:
            images[image.stem].append(image)
    found = {f: _sample(f, t, images, notes) for f, t in trees.items() if t is not None}
    if not found:
        return None
    shapes = [shape for sample in found.values() for shape in sample.shapes]
    _count_from_zero(shapes)
    used = {sample.image for sample in found.values()}
    for image in (image for group in images.values() for image in group if image not in used):
        notes.add("not used", files.short(image), files="images without an XML file")
    splits = _splits(root, found, notes)
    names = sorted({shape.category for shape in shapes if shape.category})
    sources = dict.fromkeys(splits, next(iter(found)).parent)
    return OwnDataset(root, "Pascal VOC", "detection", names, splits, sources, notes.findings)


def _parse(file: Path, notes: Notes) -> Element | None:
    """The root of an annotation; None if it is something else, or cannot be read."""
    from defusedxml import DefusedXmlException, ElementTree

    try:
        tree = ElementTree.parse(file).getroot()
        return tree if tree.tag == "annotation" else None
    except DefusedXmlException:
        notes.add("bad record", files.short(file), records="XML files", why="they define entities")
    except (OSError, ElementTree.ParseError, ValueError, LookupError):
        notes.add("bad record", files.short(file), records="XML files", why="they are no XML")
    return None


def _sample(file: Path, tree: Element, images: dict[str, list[Path]], notes: Notes) -> Sample:
    place, size = files.short(file), _numbers(tree, "size/width", "size/height")
    sample = Sample(_image_of(file, tree, images))
    if size and min(size) >= 1:
        sample.size = (int(size[0]), int(size[1]))
    else:
        notes.add("bad record", place, records="XML files' sizes", why="no width and height")
    for number, item in enumerate(tree.iter("object"), 1):
        where, name = f"{place}, object {number}", (item.findtext("name") or "").strip("\n\t")
        box = _numbers(item, *(f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax")))
        if name and box:
            x0, y0, x1, y1 = box
            sample.shapes.append(Shape(name, (x0, y0, x1 - x0, y1 - y0), where))
        else:
            notes.add("bad record", where, records="XML objects", why="no name or no box")
    return sample


def _numbers(item: Element, *paths: str) -> list[float] | None:
    try:
        found = [float(item.findtext(path, "")) for path in paths]
    except ValueError:
        return None
    return found if files.are_numbers(found) else None


def _image_of(file: Path, tree: Element, images: dict[str, list[Path]]) -> Path:
    """The image of the XML file's name, or of the name in it, from a folder of the same name."""
    name = Path((tree.findtext("filename") or f"{file.stem}.jpg").strip()).name
    found = images.get(file.stem) or images.get(Path(name).stem) or [file.parent / name]
    return max(found, key=lambda image: image.parent.name == file.parent.name)


def _count_from_zero(shapes: list[Shape]) -> None:
    """VOC counts pixels from 1 and its last corner is inside; other tools' files have zeros."""
    if all(min(shape.bbox[:2]) >= 1 for shape in shapes):
        for shape in shapes:
            x, y, width, height = shape.bbox
            # Sides of no length are a fault that must stay one.
            shape.bbox = (x - 1, y - 1, width + (width > 0), height + (height > 0))


def _splits(root: Path, samples: dict[Path, Sample], notes: Notes) -> dict[str, list[Sample]]:
    """Samples by the lists in ImageSets if there are some, else by their folder's name."""
    lists, found = _lists(root), defaultdict(list)
    has_lists = bool(lists)
    for file, sample in samples.items():
        by_folder = map(files.split_of, file.relative_to(root).parts[:-1])
        split = lists.pop(file.stem, None) if has_lists else next(filter(None, by_folder), "train")
        if split:
            found[split].append(sample)
        else:
            notes.add("not used", f"{file.stem}.xml", files="annotations in no list of ImageSets")
    for stem in lists:
        notes.add("bad record", stem, records="lines of ImageSets", why="there is no such XML file")
    return found


def _lists(root: Path) -> dict[str, str]:
    """The split of each name in ``ImageSets/Main/SPLIT.txt``."""
    found: dict[str, str] = {}
    for name in ("train", "val", "test", "trainval"):
        file, split = root / "ImageSets" / "Main" / f"{name}.txt", files.split_of(name) or name
        for line in files.read_as("text", file) if file.is_file() else ():
            for stem in line.split()[:1]:
                found.setdefault(stem, split)
    return found
