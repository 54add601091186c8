"""Finds and reads the files that several formats have: splits, images, texts, lists of names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

from crossformer_mm.datasets.own.records import IMAGE_SUFFIXES, DataSetError
from crossformer_mm.utils.errors import one_line

SPLITS = ("train", "val", "test")
NAME_FILES = ("classes.txt", "labels.txt", "obj.names")
IMAGE_FOLDERS = ("images", "JPEGImages")
LABEL_FOLDERS = ("masks", "labels", "annotations", "SegmentationClass", "SegmentationObject")
_WORDS = dict(train="train", training="train", trainval="train", test="test", testing="test")
_WORDS |= dict(val="val", valid="val", validation="val")


def short(path: Path) -> str:
    """A file's name with its folder's, which mostly is its split's."""
    return "/".join(path.parts[-2:])


def split_of(name: str) -> str | None:
    """The split that a name such as ``'instances_train2017'`` or ``'valid'`` tells."""
    words = re.findall("[a-z]+", name.lower())
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that are named after a split, such as ``'valid'``, by split."""
    paths = {path.name.lower().rstrip("0123456789"): path for path in folders_in(folder)}
    return {_WORDS[name]: path for name, path in paths.items() if name in _WORDS}


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder, if that exists."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and path.name[0] not in "._")


def files_in(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """The visible files in a folder and below that end so, in a fixed order."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    return sorted(path for path in found if "/." not in f"/{path.relative_to(folder)}")


def read_as(kind: str, file: Path, parse: Callable[[str], Any] = str.splitlines) -> Any:
    """Read a file's lines, or what ``parse`` makes of its text; DataSetError if that fails."""
    try:
        return parse(file.read_text("utf-8-sig"))
    except Exception as error:  # of many kinds, RecursionError among them
        raise DataSetError(f"{file} is no {kind}: {one_line(str(error))}") from error


def read_class_names(*folders: Path) -> list[str] | None:
    """The lines of the first ``classes.txt`` or the like in these folders."""
    files = (folder / name for folder in folders for name in NAME_FILES)
    if file := next((file for file in files if file.is_file()), None):
        return [line.strip() for line in read_as("text", file) if line.strip()]
    return None


def are_numbers(values: object, count: int | None = None) -> TypeGuard[list[float]]:
    """Whether this is a list of (so many) finite numbers."""
    if not isinstance(values, list) or count not in (None, len(values)):
        return False
    # NaN is in no range.
    return {*map(type, values)} <= {int, float} and all(-1e9 < v < 1e9 for v in values)


def bounds(polygon: list[float]) -> tuple[float, float, float, float]:
    """The box x, y, width, height around a polygon x0, y0, x1, y1, ..."""
    xs, ys = polygon[::2], polygon[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
