"""Every fault that the readers and the checks can find, with its sentence and what to do."""

from crossformer_mm.datasets.own.records import Finding
from crossformer_mm.utils.errors import one_line

_MENDS = "correct it, or take the copy of --copy-fixed, which has it corrected"
_OMITS = "correct it, or take the copy of --copy-fixed, which leaves these out"
# By key: whether it is an error, what it is, what to do. {names} are filled in by Notes.add.
FAULTS = {
    # Files and records
    "bad record": (True, "{records} cannot be used: {why}", _OMITS),
    "not used": (False, "{files} are not used", "label, list or remove them"),
    "orphan": (True, "labels belong to images that do not exist", _OMITS),
    "no label": (False, "images have no label file: they count as empty", "label or remove them"),
    "no area": (False, "annotations lack the key '{key}'", _MENDS),
    "double id": (True, "entries of '{records}' share an id", _MENDS),
    "dangling image": (True, "annotations have an image_id that no image has", _OMITS),
    "dangling class": (True, "objects have a class without a name", _OMITS),
    "other classes": (True, "files have other classes than the first, or another order", _MENDS),
    "pixels": (True, "YOLO lines are in pixels, not from 0 to 1", _MENDS),
    "class count": (True, "'nc' is not the number of names", "correct nc or the names"),
    "no names": (False, "the classes have no names, so numbers are used", "write classes.txt"),
    "split missing": (True, "'{split}' names a folder that is not there", "correct the path"),
    # Images
    "image missing": (True, "images are missing", _OMITS),
    "unreadable": (True, "images cannot be read to their end", _OMITS),
    "other size": (True, "images have another size than the annotation says", _OMITS),
    "turned": (True, "EXIF tags turn images, but the annotations are for them unturned", _MENDS),
    "perhaps turned": (False, "EXIF tags turn images, and perhaps not the annotations", "look"),
    "shared": (False, "images of '{split}' are in an earlier split too", _OMITS),
    # Objects
    "normalised": (True, "boxes are from 0 to 1, not in pixels", _MENDS),
    "corners": (True, "boxes look like x0, y0, x1, y1 and not x, y, width, height", _MENDS),
    "empty box": (True, "boxes are empty", _OMITS),
    "outside": (True, "boxes lie wholly outside of their image", _OMITS),
    "partly outside": (False, "boxes lie partly outside of their image", _MENDS),
    "few points": (True, "polygons have fewer than three points, or half a point", _OMITS),
    "bad outline": (True, "outlines are neither polygons nor masks of the image's size", _OMITS),
    "no outline": (True, "objects have no outline, though others do", _MENDS),
    "small": (False, "most boxes become smaller than 8 pixels", "train on larger input, or tiles"),
    # Classes
    "double name": (True, "class names occur twice", _MENDS),
    "same name": (True, "class names differ only in case or spaces", _MENDS),
    "unused": (False, "classes have no object", "check their spelling, or leave them out"),
    "no val": (False, "there are no validation images", "a part of the training images is used"),
    "no train": (True, "there are no training images, or none has an object", "add some"),
    "one split": (False, "classes are not in both 'train' and '{split}'", "add some"),
    "imbalance": (False, "the rarest class has less than 1/100 of the largest", "repeat images"),
    # Label maps
    "map unreadable": (True, "label maps are missing, unreadable or in colours", _OMITS),
    "map size": (True, "label maps have another size than their image", _OMITS),
    "16-bit": (True, "label maps have 16 bits or more", _MENDS),
    "RGB": (True, "label maps have three channels", _MENDS),
    "binary": (True, "label maps have only 0 and 255, which training ignores", _MENDS),
    "from one": (True, "label maps count from 1, so 0 is taken as no class", _MENDS),
    "spread": (True, "label maps have a value for each class, but not 0, 1, 2, ...", _MENDS),
    "outside classes": (True, "label maps have values that no class has", _OMITS),
    "255": (False, "label maps have 255, which training ignores, but lack classes", "is it one?"),
}


class Notes:
    """Collects findings, one for each sentence, with all its places."""

    def __init__(self) -> None:
        self._by_sentence: dict[str, Finding] = {}

    def add(self, key: str, where: str, /, **details: str) -> None:
        """Note a fault of :data:`FAULTS` at a place; details fill in its sentence."""
        is_error, what, advice = FAULTS[key]
        what = what.format(**details)
        new = Finding(is_error, what, advice)
        self._by_sentence.setdefault(what, new).where.append(one_line(where))

    @property
    def findings(self) -> list[Finding]:
        """What was noted: errors first."""
        return sorted(self._by_sentence.values(), key=lambda finding: not finding.is_error)
