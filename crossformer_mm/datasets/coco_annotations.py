"""What mmdet learns from a COCO JSON file, checked as the file is read: nothing is read twice.

mmdet gives labels to category ids in the file's order, and names to labels in the order of
``metainfo``. Where the two differ, it trains to the end and learns other names, in silence.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from logging import ERROR, WARNING
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from crossformer_mm.utils.errors import DataError, one_line, reason_of

FAR = 1e6  # pixels
LARGEST_SIDE = 65_500  # of a JPEG
REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def check_while_reading(dataset: BaseDataset) -> None:
    """Let a data set that is still to be read, mmdet's ``CocoDataset``, check its file.

    Reading raises :class:`DataError` where the file and the data set contradict each other, and
    else logs what is in the file.
    """
    read = dataset.COCOAPI

    def read_and_check(path: str) -> Any:
        del dataset.COCOAPI  # the class has its own again
        api = read_complete(read, path, dataset.ann_file, _needs_masks(dataset))
        check_categories(api.dataset["categories"], dataset.metainfo["classes"], dataset.ann_file)
        print_log(summarize(api, dataset), logger="current")
        return api

    dataset.COCOAPI = read_and_check


def read_complete(read: Callable[[str], Any], path: str, file: str, with_masks: bool) -> Any:
    """Read a file, called ``file`` in messages, and call :func:`complete_annotations`.

    Raises:
        DataError: If it is no JSON, or not what COCO's is.
    """
    try:
        api = read(path)
        complete_annotations(api.dataset, file, with_masks)
    except DataError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {one_line(str(error))}") from error
    except KeyError as error:
        raise DataError(f"{file}: an entry has no {one_line(str(error), 100)}") from error
    except (AssertionError, AttributeError, OverflowError, TypeError, ValueError) as error:
        said = one_line(reason_of(error), 200)
        raise DataError(f"{file}: an entry is not of COCO's type: {said}") from error
    return api


def _needs_masks(dataset: BaseDataset) -> bool:
    return any(getattr(transform, "with_mask", False) for transform in dataset.pipeline.transforms)


def complete_annotations(content: dict, file: str, with_masks: bool = False) -> None:
    """Set what mmdet and pycocotools need but many files leave out; say which entries lack more.

    Raises:
        DataError: If an image, annotation or category lacks an entry that has no default.
    """
    if not isinstance(content, Mapping) or "categories" not in content:
        raise DataError(f"{file} has no 'categories'")
    for kind, keys in REQUIRED.items():
        keys += ("segmentation",) * (with_masks and kind == "annotations")
        for entry in content.get(kind, ()):
            for key in keys:
                if key not in entry:
                    raise DataError(f"{file}: the entry {entry.get('id')} of {kind} has no {key!r}")
    check_numbers(content, file)
    content.setdefault("info", {})
    defaulted = Counter[str]()
    for annotation in content.get("annotations", ()):
        if "area" not in annotation:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            defaulted["'area': width times height of the box is taken"] += 1
        if "iscrowd" not in annotation:
            annotation["iscrowd"] = 0
            defaulted["'iscrowd': 0 is taken"] += 1
    for what, count in defaulted.items():
        print_log(f"{file}: {count} annotations without {what}", logger="current")


def check_numbers(content: Mapping, file: str) -> None:
    """Look at ids, sizes, boxes and masks: pycocotools writes out of bounds where they are wrong.

    Raises:
        DataError: Naming the first entry that is wrong.
    """
    for kind in ("images", "categories"):
        ids = Counter(repr(entry["id"]) for entry in content.get(kind, ()))
        if double := [number for number, count in ids.items() if count > 1]:
            raise DataError(f"{file}: several {kind} have the id {one_line(double[0], 50)}")
    sizes = {}
    for image in content.get("images", ()):
        size = sizes[image["id"]] = (image["height"], image["width"])
        if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in size):
            shown = one_line(repr(size), 100)
            raise DataError(f"{file}: image {image['id']!r} has height and width {shown}")
    lost = 0
    for annotation in content.get("annotations", ()):
        lost += annotation["image_id"] not in sizes
        wrong = "" if _are_pixels(annotation["bbox"], 4, 4) else "bbox"
        mask, size = annotation.get("segmentation"), sizes.get(annotation["image_id"])
        if mask and not wrong and not _is_mask(mask, size):
            wrong = "segmentation"
        if wrong:
            shown = one_line(repr(annotation[wrong]), 100)
            entry = f"annotation {one_line(repr(annotation['id']), 50)}"
            raise DataError(f"{file}: the {wrong} of {entry} cannot be one: {shown}")
    if lost:
        print_log(f"{file}: {lost} annotations are of images that it has not", "current", WARNING)


def _are_pixels(values: Any, least: int, most: float = math.inf) -> bool:
    """Whether values are numbers that lie in an image or near one; NaN does not."""
    try:
        return least <= len(values) <= most and all(-FAR < value < FAR for value in values)
    except TypeError:
        return False


def _is_mask(mask: object, size: tuple[int, int] | None) -> bool:
    """Whether a mask is polygons, or run lengths of an image of this height and width."""
    if isinstance(mask, list):
        return all(_are_pixels(polygon, 6) and len(polygon) % 2 == 0 for polygon in mask)
    if size is None or not isinstance(mask, Mapping) or list(mask.get("size", ())) != [*size]:
        return False
    counts = mask.get("counts")
    if isinstance(counts, str):
        counts = read_run_lengths(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        return False
    return sum(counts) == size[0] * size[1]


def read_run_lengths(text: str) -> list[int]:
    """The run lengths that COCO writes as text.

    Five bits a letter, the lowest first; a sixth says that more follow. From the fourth number on,
    each is the difference from the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts


def check_categories(categories: Sequence[Mapping], classes: Sequence[str], file: str) -> None:
    """Compare the categories of a file with the class names of a config.

    Raises:
        DataError: If a label would get another name than its category has in the file, or if names
            on both sides have no counterpart.
    """
    check_classes(classes, file)
    names = [category["name"] for category in categories]
    lacking = [name for name in classes if name not in names]
    unused = [name for name in names if name not in classes]
    learned = [name for name in names if name in classes]
    double = [name for name, count in Counter(learned).items() if count > 1]
    shifted = next((pair for pair in zip(learned, classes, strict=False) if len(set(pair)) > 1), ())
    if double:
        raise DataError(f"{file} has several categories of one name: {some(double)}")
    if lacking and (unused or not learned):
        close = {name: get_close_matches(name, unused, 1) for name in lacking}
        meant = {match for matches in close.values() for match in matches}
        _suggest([name for name in names if name in meant.union(learned)] or names)
        pairs = [f"{found[0]!r} for {name!r}" for name, found in close.items() if found]
        hint = f" (perhaps {', '.join(pairs)})" if pairs else ""
        raise DataError(
            f"class names of the config that are no categories of {file}: {some(lacking)}{hint}; "
            f"categories of the file that are no class names: {some(unused)}"
        )
    if shifted:
        if lacking:
            advice = f"add categories {some(lacking)} to the file, in the config's order"
        else:
            _suggest(learned)
            advice = f"write the names in the file's order: {some(learned, 100)}"
        raise DataError(
            f"the order of classes in the config is another than the order of categories in {file}:"
            f" {shifted[0]!r} would be learned as {shifted[1]!r}; {advice}"
        )
    if lacking:
        print_log(f"{file} has no category for {some(lacking)}", logger="current")
    if unused:
        print_log(f"{file}: categories that the config leaves out: {some(unused)}", "current")


def _suggest(classes: Sequence[str]) -> None:
    print_log(f"metainfo = dict(classes={tuple(classes)!r})  # would fit", "current", ERROR)


def check_classes(classes: object, where: str) -> None:
    """Raise DataError if class names are one text, as ``("ship")`` without its comma is."""
    if isinstance(classes, str):
        raise DataError(
            f"classes of metainfo are the text {classes!r}, not a tuple of names ({where}): write "
            f"metainfo=dict(classes=({classes!r},)), with the comma"
        )


def some(names: Iterable[str], most: int = 10) -> str:
    """The first of some names, as Python writes them."""
    names = list(names)
    return one_line(repr(tuple(names[:most])), 2000) + ("..." if len(names) > most else "")


def summarize(api: Any, dataset: BaseDataset) -> str:
    """Say how many images and objects of which class there are, and what mmdet leaves out.

    Raises:
        DataError: If nothing is left to train on.
    """
    names = {category["id"]: category["name"] for category in api.dataset["categories"]}
    classes = dataset.metainfo["classes"]
    objects, images, left_out = Counter[str](), Counter[str](), Counter[str]()
    used = 0
    for number, image in api.imgs.items():
        seen = set()
        for annotation in api.imgToAnns.get(number, ()):
            name = names.get(annotation["category_id"])
            if name is None or name not in classes:
                left_out["of other categories"] += 1
            elif _is_empty(annotation, image):
                left_out["empty, smaller than a pixel, or outside of the image"] += 1
            else:
                objects[name] += 1
                seen.add(name)
        images.update(seen)
        used += bool(seen)
    lines = [f"{dataset.ann_file}: {len(api.imgs)} images, {objects.total()} objects"]
    drops_empty = (dataset.filter_cfg or {}).get("filter_empty_gt")
    if not objects and not dataset.test_mode and (left_out or drops_empty):
        raise DataError(f"{lines[0]} that can be learned; left out: {dict(left_out) or 'none'}")
    if not dataset.test_mode and drops_empty:
        left_out["images without objects"] = len(api.imgs) - used
    lines += [f"left out: {count} {what}" for what, count in left_out.items() if count]
    counts = [f"{name} {objects[name]} in {images[name]}" for name in classes]
    lines.append(f"objects in images, by class: {', '.join(counts)}")
    return "; ".join(lines)


def _is_empty(annotation: Mapping, image: Mapping) -> bool:
    """Whether mmdet leaves an annotation out, by its rules."""
    left, top, width, height = annotation["bbox"]
    inside_x = min(left + width, image["width"]) - max(left, 0)
    inside_y = min(top + height, image["height"]) - max(top, 0)
    visible = inside_x > 0 and inside_y > 0 and annotation["area"] > 0
    return not visible or width < 1 or height < 1 or annotation.get("ignore", False)
