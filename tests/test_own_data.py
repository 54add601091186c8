"""A user's own data: every format reads alike, every fault is found, and a copy has none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from pycocotools import mask as coco_mask

from crossformer_mm.datasets.own import faults
from crossformer_mm.datasets.own.checks import check
from crossformer_mm.datasets.own.fix import copy_fixed
from crossformer_mm.datasets.own.recognise import read_dataset
from crossformer_mm.datasets.own.records import DataSetError, Finding, OwnDataset
from crossformer_mm.datasets.own.summary import describe

SIZE = (64, 48)
CLASSES = ["cat", "dog"]
# x, y, width, height of one cat and one dog, in every image
BOXES = dict(cat=(4, 8, 24, 16), dog=(30, 20, 20, 18))
LABELS = np.zeros(SIZE[::-1], np.uint8)
LABELS[8:24, 4:28], LABELS[20:38, 30:50] = 1, 2
IMAGES = dict(train=["a", "b", "c"], val=["d", "e"])


def draw(path: Path, **save_options: object) -> None:
    """Write noise, another for every name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*path.stem.encode()])
    pixels = rng.integers(0, 255, (*SIZE[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path, **save_options)


def draw_all(root: Path, pattern: str) -> list[tuple[str, str]]:
    """Write all images; return split and name of each."""
    pairs = [(split, name) for split, names in IMAGES.items() for name in names]
    for split, name in pairs:
        draw(root / pattern.format(split=split, name=name))
    return pairs


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def outline(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def write_coco(root: Path) -> None:
    draw_all(root, "images/{split}/{name}.jpg")
    ids = dict(cat=7, dog=3)  # with gaps, in any order
    for split, names in IMAGES.items():
        content = dict(images=[], annotations=[], categories=[])
        content["categories"] = [dict(id=number, name=name) for name, number in ids.items()]
        for image, name in enumerate(names):
            size = dict(width=SIZE[0], height=SIZE[1])
            content["images"].append(dict(id=image, file_name=f"{name}.jpg", **size))
            for kind, box in BOXES.items():
                record = dict(id=len(content["annotations"]), image_id=image, bbox=box)
                record |= dict(category_id=ids[kind], segmentation=[outline(*box)])
                content["annotations"].append(record | dict(area=box[2] * box[3], iscrowd=0))
        write(root / f"annotations/instances_{split}.json", content)


def yolo_lines(with_masks: bool) -> str:
    lines = []
    for index, (x, y, w, h) in enumerate(BOXES.values()):
        box = outline(x, y, w, h) if with_masks else [x + w / 2, y + h / 2, w, h]
        lines.append(" ".join(map(str, [index, *(v / SIZE[i % 2] for i, v in enumerate(box))])))
    return "\n".join(lines)


def write_yolo(root: Path, with_masks: bool = False) -> None:
    for split, name in draw_all(root, "images/{split}/{name}.jpg"):
        write(root / f"labels/{split}/{name}.txt", yolo_lines(with_masks))
    yaml = "path: .\ntrain: images/train\nval: ../images/val\nnc: 2\nnames: {0: cat, 1: dog}\n"
    write(root / "data.yaml", yaml)


def write_voc(root: Path) -> None:
    for split, name in draw_all(root, "JPEGImages/{name}.jpg"):
        objects = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for kind, (x, y, w, h) in BOXES.items()
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        tree = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        write(root / f"Annotations/{name}.xml", tree)
        write(root / f"ImageSets/Main/{split}.txt", "\n".join(IMAGES[split]))


def write_maps(root: Path) -> None:
    for split, name in draw_all(root, "images/{split}/{name}.jpg"):
        save_map(root / f"masks/{split}/{name}.png", LABELS)
    write(root / "classes.txt", "nothing\ncat\ndog\n")


def save_map(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


DETECTION = dict(
    coco=write_coco,
    yolo=write_yolo,
    yolo_masks=lambda root: write_yolo(root, with_masks=True),
    voc=write_voc,
)
ALL = DETECTION | dict(maps=write_maps)
ALL["folders"] = lambda root: [draw_all(root, f"{{split}}/{k}/{{name}}{k}.jpg") for k in CLASSES]


def errors_of(found: list[Finding]) -> list[str]:
    return [str(finding) for finding in found if finding.is_error]


def has_healthy_copy(dataset: OwnDataset, out: Path) -> list[str]:
    changes = copy_fixed(dataset, out)
    copy = read_dataset(out)
    assert copy.task == dataset.task
    assert errors_of(check(copy)) == []
    return changes


@pytest.mark.parametrize("form", ALL)
def test_clean_data(form, tmp_path):
    ALL[form](tmp_path / "data")
    dataset = read_dataset(tmp_path / "data")
    sizes = {split: len(group) for split, group in dataset.splits.items()}
    assert sizes == (dict(train=6, val=4) if form == "folders" else dict(train=3, val=2))
    assert [str(finding) for finding in check(dataset)] == []
    assert dataset.classes == (["nothing"] if form == "maps" else []) + CLASSES
    if form in DETECTION:
        for sample in (sample for group in dataset.splits.values() for sample in group):
            boxes = {shape.category: shape.bbox for shape in sample.shapes}
            assert boxes == {name: pytest.approx(box) for name, box in BOXES.items()}
    text = "\n".join(describe(dataset))
    assert "train: " in text and "dog" in text and "64 x 48" in text
    before = {path: path.read_bytes() for path in dataset.root.rglob("*.*") if path.is_file()}
    assert [line for line in has_healthy_copy(dataset, tmp_path / "copy") if form != "maps"] == []
    assert before == {path: path.read_bytes() for path in before}
    copy = read_dataset(tmp_path / "copy")
    assert copy.has_masks == dataset.has_masks and copy.classes == dataset.classes


def edit_coco(change: Callable[[dict], object], split: str = "train") -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        file = root / f"annotations/instances_{split}.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return edit


def set_first(kind: str, **values: object) -> Callable[[Path], None]:
    return edit_coco(lambda content: content[kind][0].update(values))


def change_boxes(change: Callable) -> Callable[[Path], None]:
    def change_all(content: dict) -> None:
        for each in content["annotations"]:
            each["bbox"] = change(*each["bbox"])

    return lambda root: [edit_coco(change_all, split)(root) for split in IMAGES]


def put(path: str, content: object) -> Callable[[Path], None]:
    return lambda root: write(root / path, content)


def add_tag(orientation: int) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda root: draw(root / "images/train/a.jpg", exif=exif)


def change_maps(change: Callable[[np.ndarray], np.ndarray], names: str = "") -> Callable:
    def edit(root: Path) -> None:
        for file in root.rglob("*.png"):
            save_map(file, change(LABELS))
        if names:
            write(root / "classes.txt", names)

    return edit


def sub(old: str, new: str, file: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new))

    return edit


BOMB = '<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
# Format, what is done to it, the message's key words
FAULTS = [
    ("coco", set_first("images", id=2), "'images' share an id"),
    ("coco", set_first("annotations", image_id=99), "image_id that no image has"),
    ("coco", set_first("annotations", category_id=99), "class without a name"),
    ("coco", set_first("annotations", category_id=None), "no usable 'category_id'"),
    ("coco", set_first("images", width=None), "no usable 'width'"),
    ("coco", edit_coco(lambda c: c["annotations"][0].pop("area")), "lack the key 'area'"),
    ("coco", set_first("annotations", bbox=[1, 2, float("nan"), 3]), "no usable 'bbox'"),
    ("coco", set_first("annotations", bbox=[9, 9, 0, 5]), "boxes are empty"),
    ("coco", set_first("annotations", bbox=[90, 9, 9, 9]), "wholly outside"),
    ("coco", set_first("annotations", bbox=[50, 9, 30, 9]), "warning: boxes lie partly outside"),
    ("coco", change_boxes(lambda x, y, w, h: [x / 64, y / 48, w / 64, h / 48]), "from 0 to 1"),
    ("coco", change_boxes(lambda x, y, w, h: [x, y, x + w, y + h]), "x0, y0, x1, y1"),
    ("coco", change_boxes(lambda x, y, w, h: [x, y, 1.5, 2]), "smaller than 8 pixels"),
    ("coco", set_first("annotations", segmentation=[[1, 2, 3, 4]]), "fewer than three points"),
    ("coco", set_first("annotations", segmentation="?"), "neither polygons nor masks"),
    ("coco", set_first("annotations", segmentation=dict(size=[9, 9], counts=[81])), "image's size"),
    ("coco", set_first("annotations", segmentation=[]), "have no outline"),
    ("coco", edit_coco(lambda c: c["categories"].reverse()), "another order"),
    ("coco", edit_coco(lambda c: c["categories"].append({"id": 9, "name": "cat"})), "occur twice"),
    ("coco", put("train.json", dict(images=[], annotations=[], categories=[])), "are not used"),
    ("coco", edit_coco(lambda c: c["annotations"].clear()), "no training images, or none"),
    ("coco", set_first("images", width=70), "another size than"),
    ("coco", add_tag(6), "annotations are for them unturned"),
    ("coco", add_tag(3), "warning: EXIF tags turn images"),
    ("coco", put("images/train/a.jpg", "no picture"), "cannot be read to their end"),
    ("coco", lambda root: next(root.rglob("a.jpg")).unlink(), "images are missing"),
    ("coco", lambda root: shutil.copy(next(root.rglob("a.jpg")), root / "images/val/d.jpg"), "too"),
    ("coco", lambda root: next(root.rglob("*_val.json")).unlink(), "no validation images"),
    ("yolo", put("labels/train/a.txt", "0 .5 .5 .2\n0 x .5 .2 .2"), "neither a class and a box"),
    ("yolo", put("labels/train/a.txt", "5 .5 .5 .2 .2\n"), "class without a name"),
    ("yolo", put("labels/train/a.txt", "1 30 20 9 9\n"), "in pixels, not from 0 to 1"),
    ("yolo", put("labels/train/zz.txt", "1 .5 .5 .2 .2\n"), "images that do not exist"),
    ("yolo", lambda root: (root / "labels/train/a.txt").unlink(), "warning: images have no label"),
    ("yolo", sub("nc: 2", "nc: 3", "data.yaml"), "'nc' is not the number"),
    ("yolo", sub("images/val", "images/no", "data.yaml"), "'val' names a folder"),
    ("yolo", sub("1: dog", "1: dog, 2: eel", "data.yaml"), "classes have no object"),
    ("yolo", put("labels/train/a.txt", "0 .5 .5 .2 .2\n" * 400), "less than 1/100"),
    ("yolo", lambda root: (root / "data.yaml").unlink(), "have no names"),
    ("voc", put("Annotations/a.xml", BOMB), "they define entities"),
    ("voc", put("Annotations/a.xml", "<annotation>"), "they are no XML"),
    ("voc", sub("<width>64</width>", "", "Annotations/a.xml"), "no width and height"),
    ("voc", sub("<name>cat</name>", "", "Annotations/a.xml"), "no name or no box"),
    ("voc", sub("cat", "Cat", "Annotations/a.xml"), "differ only in case"),
    ("voc", sub("c", "", "ImageSets/Main/train.txt"), "in no list of ImageSets"),
    ("voc", sub("c", "x", "ImageSets/Main/train.txt"), "there is no such XML file"),
    ("voc", lambda root: draw(root / "JPEGImages/z.jpg"), "images without an XML file"),
    ("folders", lambda root: draw(root / "train/z.jpg"), "in no class's folder"),
    ("folders", lambda root: shutil.rmtree(root / "val/cat"), "both 'train' and 'val'"),
    ("maps", change_maps(lambda m: np.where(m.cumsum(1) == 2, 7, m)), "values that no class has"),
    ("maps", change_maps(lambda m: m + 1), "count from 1"),
    ("maps", change_maps(lambda m: np.uint8(m > 0) * 255, "no\nyes\n"), "only 0 and 255"),
    ("maps", change_maps(lambda m: np.uint8(m > 0) * 128, "no\nyes\n"), "but not 0, 1, 2"),
    ("maps", change_maps(lambda m: m.astype(np.uint16)), "16 bits"),
    ("maps", lambda root: draw(root / "masks/train/a.png"), "unreadable or in colours"),
    ("maps", change_maps(lambda m: np.stack([m] * 3, -1)), "have three channels"),
    ("maps", change_maps(lambda m: np.where(m == 2, 255, m)), "255, which training ignores"),
    ("maps", lambda root: save_map(root / "masks/train/a.png", LABELS[:20]), "another size"),
    ("maps", lambda root: draw(root / "images/test/z.jpg"), "splits without label maps"),
    ("maps", put("masks/train/a.png", "?"), "label maps are missing, unreadable"),
    ("maps", lambda root: save_map(root / "masks/val/z.png", LABELS), "do not exist"),
    ("maps", lambda root: (root / "classes.txt").unlink(), "have no names"),
    ("maps", add_tag(8), "annotations are for them unturned"),
]


@pytest.mark.fault("own data sets")
@pytest.mark.parametrize("form, spoil, words", FAULTS)
def test_a_fault_is_found_and_healed(form, spoil, words, tmp_path):
    ALL[form](tmp_path / "data")
    spoil(tmp_path / "data")
    dataset = read_dataset(tmp_path / "data")
    found = [str(finding) for finding in check(dataset, network_scale=SIZE)]
    assert any(words in line for line in found), found
    assert describe(dataset)
    if "no training images" in words:  # nothing can be made up
        return
    changes = has_healthy_copy(dataset, tmp_path / "copy")
    assert changes or not errors_of(check(dataset))


# Format, what moves where (None: is removed), images for training and validation
IN_SPLITS = {f"{k}/{s}": f"{s}/{k}" for k in ("images", "labels") for s in IMAGES}
GONE = {"images": None, "masks": None}
LAYOUTS = [
    ("coco", {"images/train": "train2017", "images/val": "val2017"}, 3, 2),
    ("coco", {"annotations/instances_train.json": "cells.json", "annotations": None}, 3, 0),
    ("yolo", IN_SPLITS | {"data.yaml": None, "images": None, "labels": None}, 3, 2),
    ("yolo", {"data.yaml": None, "images/val": "images/valid", "labels/val": "labels/valid"}, 3, 2),
    ("voc", {"ImageSets": None, "JPEGImages": "train", "Annotations/a.xml": "train/a.xml"}, 5, 0),
    ("folders", {"train/cat": "cat", "train/dog": "dog", "train": None, "val": None}, 6, 0),
    ("folders", {"train": "training", "val": "validation"}, 6, 4),
    ("maps", {f"{k}/{s}": f"{s}/{k}" for k in ("images", "masks") for s in IMAGES} | GONE, 3, 2),
    ("maps", {"images/train": "JPEGImages", "masks/train": "SegmentationClass"} | GONE, 3, 0),
]


@pytest.mark.parametrize("form, moves, train, val", LAYOUTS)
def test_folders_may_have_other_names(form, moves, train, val, tmp_path):
    ALL[form](tmp_path)
    for old, new in moves.items():
        if new is None:
            path = tmp_path / old
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            (tmp_path / new).parent.mkdir(exist_ok=True)
            (tmp_path / old).rename(tmp_path / new)
    dataset = read_dataset(tmp_path)
    assert [len(dataset.splits.get(split, [])) for split in IMAGES] == [train, val]
    assert errors_of(check(dataset)) == []


NOT_WHAT_THEY_SEEM = [
    ("annotations/train.json", "{"),
    ("annotations/train.json", '{"images": 1, "annotations": 2, "categories": 3}'),
    ("data.yaml", "names: ["),
    ("data.yaml", "names: 5\ntrain: ."),
    ("a.json", "[" * 100_000),
    ("readme.txt", "nothing here"),
]


@pytest.mark.fault("own data sets")
@pytest.mark.parametrize("file, text", NOT_WHAT_THEY_SEEM)
def test_a_folder_that_is_no_data_set(file, text, tmp_path):
    write(tmp_path / file, text)
    with pytest.raises(DataSetError) as error:
        read_dataset(tmp_path)
    assert (file if file != "readme.txt" else "looked for COCO JSON") in str(error.value)


@pytest.mark.parametrize("mode, kind", [("P", "5 palette"), ("1", "5 grey")])
def test_palettes_and_bits_are_class_numbers(mode, kind, tmp_path):
    write_maps(tmp_path / "data")
    labels = LABELS if mode == "P" else LABELS > 0
    for file in tmp_path.glob("data/masks/*/*"):
        picture = Image.fromarray(labels)
        if mode == "P":
            picture.putpalette([0, 0, 0, 200, 0, 0, 0, 99, 255])
        picture.save(file)
    dataset = read_dataset(tmp_path / "data")
    assert errors_of(check(dataset)) == []
    assert f"{kind}; 0 is taken as 'nothing'" in describe(dataset)[-1]
    has_healthy_copy(dataset, tmp_path / "copy")
    assert (np.array(Image.open(tmp_path / "copy/masks/train/a.png")) == labels).all()


@pytest.mark.fault("own data sets")
def test_label_maps_of_objects_are_refused(tmp_path):
    write_maps(tmp_path)
    (tmp_path / "classes.txt").unlink()
    many = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[::-1])
    save_map(tmp_path / "masks/train/a.png", many)
    with pytest.raises(DataSetError, match="more than 255 classes"):
        read_dataset(tmp_path)


@pytest.mark.fault("own data sets")
def test_folders_of_other_formats_are_no_classes(tmp_path):
    write_maps(tmp_path)
    for file in tmp_path.glob("masks/*/*"):
        file.rename(file.with_stem(f"mask_{file.stem}"))
    with pytest.raises(DataSetError, match="of the same names"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_turned_objects_lie_on_the_same_pixels(orientation, tmp_path):
    """What is bright in the picture is bright within the box and the outline of the copy."""
    write_coco(tmp_path / "data")
    pixels, exif = np.zeros((*SIZE[::-1], 3), np.uint8), Image.Exif()
    pixels[8:24, 4:28] = 255
    exif[0x0112] = orientation
    path = tmp_path / "data/images/train/a.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=100)
    mask = dict(size=SIZE[::-1], counts=[0, SIZE[0] * SIZE[1]])
    edit_coco(lambda c: c["annotations"][1].update(segmentation=mask))(tmp_path / "data")
    changes = copy_fixed(read_dataset(tmp_path / "data"), tmp_path / "copy")
    assert any("mask of run lengths cannot be turned: left out" in line for line in changes)
    with Image.open(tmp_path / "copy/train/a.jpg") as image:
        turned = np.array(image.convert("L")) > 127
    (shape,) = read_dataset(tmp_path / "copy").splits["train"][0].shapes
    x, y, w, h = map(int, shape.bbox)
    assert turned[y : y + h, x : x + w].all() and turned.sum() == w * h == 24 * 16
    assert coco_mask.decode(coco_mask.frPyObjects(shape.polygons, *turned.shape)).sum() == w * h


@pytest.mark.fault("own data sets")
def test_a_copy_replaces_nothing(tmp_path):
    write_coco(tmp_path / "data")
    dataset = read_dataset(tmp_path / "data")
    for out in (tmp_path, tmp_path / "data/copy"):
        with pytest.raises(DataSetError, match="copy"):
            copy_fixed(dataset, out)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_the_page_names_every_finding():
    page = (ROOT / "docs/data.md").read_text()
    for is_error, what, _ in faults.FAULTS.values():
        assert f"| {'error' if is_error else 'warning'} | `{what}` |" in page
