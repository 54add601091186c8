"""What the annotations of a data set say, whatever their format, and what is found wrong."""

from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
#: What a data set may be for.
TASKS = ("detection", "segmentation", "classification")


class DataSetError(ValueError):
    """A folder is no data set that is known; the message says what was looked for."""


@dataclass
class Shape:
    """One object, as its file has it: nothing is clipped, rounded or left out.

    Attributes:
        category: Its class's name; None if the file names a class that it does not define.
        bbox: x, y, width and height in pixels of the image as the annotation declares it.
        where: The file and place, such as ``'instances.json, annotation 7'`` or ``'a.txt:3'``.
        polygons: Outlines, each x0, y0, x1, y1, ... in pixels.
        rle: COCO's run lengths, in place of polygons.
        is_crowd: COCO's mark of many objects in one.
    """

    category: str | None
    bbox: tuple[float, float, float, float]
    where: str
    polygons: list[list[float]] = field(default_factory=list)
    rle: dict | None = None
    is_crowd: bool = False


@dataclass
class Sample:
    """One image, and what is known of it.

    Attributes:
        image: Its file, which may be missing.
        size: Width and height that the annotation declares, if it does.
        shapes: Objects in it, for detection.
        label_map: File with a class for each pixel, for segmentation.
        category: Its class, for classification.
    """

    image: Path
    size: tuple[int, int] | None = None
    shapes: list[Shape] = field(default_factory=list)
    label_map: Path | None = None
    category: str | None = None


@dataclass
class Finding:
    """Something wrong with a data set.

    Attributes:
        is_error: Whether training would fail or learn something wrong.
        what: One sentence without file names, the same for all places.
        advice: What to do.
        where: The files and places.
    """

    is_error: bool
    what: str
    advice: str
    where: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line with the first three places."""
        shown = ", ".join(self.where[:3]) + (", ..." if len(self.where) > 3 else "")
        kind = "error" if self.is_error else "warning"
        return f"{kind}: {self.what} ({len(self.where)} x: {shown}): {self.advice}"


@dataclass
class OwnDataset:
    """A data set.

    Attributes:
        root: Its folder.
        form: Its format's name, such as ``'COCO JSON'``.
        task: One of :data:`TASKS`.
        classes: Names, in the order of the labels 0, 1, ...
        splits: Samples by ``'train'``, ``'val'`` and ``'test'``, as found.
        sources: The file or folder that each split was read from.
        findings: What the raw records alone show.
    """

    root: Path
    form: str
    task: str
    classes: list[str]
    splits: dict[str, list[Sample]]
    sources: dict[str, Path]
    findings: list[Finding] = field(default_factory=list)

    @property
    def has_masks(self) -> bool:
        """Whether some objects have outlines."""
        samples = [sample for split in self.splits.values() for sample in split]
        return any(shape.polygons or shape.rle for sample in samples for shape in sample.shapes)
