"""What images and label maps have in them; each file is read once, however often it is asked."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crossformer_mm.datasets.own.records import Sample

ORIENTATION = 0x0112
IGNORED = 255


class Picture(NamedTuple):
    """An image: its stored pixels' size, or None if they cannot be read, and its EXIF tag."""

    size: tuple[int, int] | None = None
    orientation: int = 1

    @property
    def shown_size(self) -> tuple[int, int] | None:
        """Width and height as OpenCV gives them, which obeys the EXIF tag."""
        return self.size[::-1] if self.size and self.orientation >= 5 else self.size


class LabelMap(NamedTuple):
    """A label map: 'grey', 'palette', '16-bit' or 'RGB', its size, the pixels of each value."""

    kind: str
    size: tuple[int, int]
    counts: dict[int, int]


@cache
def look_at(path: Path) -> Picture:
    """Read an image to its end, a JPEG in its smallest size."""
    from PIL import Image

    # Pillow raises errors of any kind for files that are not what they seem.
    try:
        with Image.open(path) as image:
            size, orientation = image.size, image.getexif().get(ORIENTATION, 1)
            image.draft(None, (1, 1))
            image.load()
    except Exception:
        return Picture()
    return Picture(size, orientation if orientation in range(1, 9) else 1)


@cache
def look_at_map(path: Path | None) -> LabelMap | None:
    """Read a label map; None if there is none, or it cannot be read."""
    if path is None:
        return None
    try:
        kind, values = read_values(path)
    except Exception:
        return None
    found, counts = np.unique(values, return_counts=True)
    return LabelMap(
        kind, values.shape[::-1], dict(zip(found.tolist(), counts.tolist(), strict=True))
    )


def read_values(path: Path) -> tuple[str, np.ndarray]:
    """The kind of a label map and its values, H x W; ValueError if these are colours."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode in ("L", "1", "P"):
            return "palette" if image.mode == "P" else "grey", np.array(image, np.uint8)
        if image.mode[0] in "IF":
            return "16-bit", np.array(image).astype(np.int64)
        red, green, blue = np.moveaxis(np.array(image.convert("RGB")), -1, 0)
    if not (red == green).all() or not (red == blue).all():
        raise ValueError("colours do not say which class they mean")
    return "RGB", red


def number(splits: dict[str, list[Sample]], n_classes: int | None) -> tuple[str, dict[int, int]]:
    """Why training would misread the values, a key of FAULTS or '', and the class of each value."""
    maps = [look_at_map(sample.label_map) for group in splits.values() for sample in group]
    values = {value for each in maps if each for value in each.counts}
    kept = values - {IGNORED}
    last = max(kept, default=0)
    as_is, in_order = {v: v for v in values}, {v: i for i, v in enumerate(sorted(values))}
    if IGNORED in values and kept <= {0} and n_classes in (None, 2):
        return "binary", {0: 0, IGNORED: 1}
    if n_classes is None:
        is_dense = last < min(2 * len(kept) + 3, IGNORED) or len(values) > IGNORED
        return ("", as_is) if is_dense else ("spread", in_order)
    if last < n_classes:
        return "", as_is
    if last == n_classes and len(kept) > 2:
        return "from one", {v: v - 1 if 0 < v < IGNORED else IGNORED for v in values}
    if len(values) == n_classes:
        return "spread", in_order
    return "outside classes", {v: v if v < n_classes else IGNORED for v in values}


def is_unturned(sample: Sample) -> bool:
    """Whether the annotation is for the stored pixels, though the image will be turned."""
    picture, label_map = look_at(sample.image), look_at_map(sample.label_map)
    declared = label_map.size if label_map else sample.size
    return declared == picture.size != picture.shown_size
