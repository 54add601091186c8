"""The toy data sets: their layout, the truth of their labels, how they are written, the command."""

import json
from collections import Counter
from itertools import chain, repeat
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, tool_main
from pycocotools.coco import COCO
from torchvision.models import ResNet50_Weights

from crossformer_mm.datasets.toy.ade import write_ade
from crossformer_mm.datasets.toy.coco import write_coco
from crossformer_mm.datasets.toy.imagenet import write_imagenet

TOOL = ROOT / "tools/make_toy_dataset.py"
SIZE = (160, 120)
COUNTS = dict(train=30, val=16)
WRITERS = dict(coco=write_coco, ade=write_ade, imagenet=write_imagenet)
IDS = dict(umbrella=28, kite=38, banana=52, pizza=59, donut=60, book=84, clock=85)
IDS["stop sign"] = 13
ADE = {1: "wall", 3: "sky", 4: "floor", 7: "road", 10: "grass", 17: "mountain", 27: "sea"}
ADE |= {0: "other", 44: "signboard", 47: "sand", 68: "book", 87: "awning", 121: "food"}
ADE |= {149: "clock", 150: "flag"}
WNIDS = {"n02708093": 409, "n03888257": 701, "n04507155": 879, "n06596364": 917}
WNIDS |= {"n06794110": 919, "n07693725": 931, "n07753592": 954, "n07873807": 963}
each_dataset = pytest.mark.parametrize("name", WRITERS)


def write(name: str, out: Path, train: int = 1, val: int = 1, report=lambda _: None, **options):
    return WRITERS[name](out, train, val, SIZE, report=report, **options)


def files(root: Path, pattern: str = "*") -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob(pattern) if p.is_file()}


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, tuple[Path, dict]]:  # folder, summary
    root = tmp_path_factory.mktemp("toys")
    return {name: (root / name, write(name, root / name, **COUNTS)) for name in WRITERS}


@pytest.fixture(scope="module")
def contents(toys) -> dict[str, dict]:
    folder = toys["coco"][0] / "annotations"
    return {x: json.loads((folder / f"instances_{x}2017.json").read_text()) for x in COUNTS}


def test_coco_files_and_ids(toys, contents):
    root, summary = toys["coco"]
    expected = {"annotations/README.txt"}
    for split, content in contents.items():
        expected.add(f"annotations/instances_{split}2017.json")
        for each in content["images"]:
            expected.add(f"{split}2017/{each['file_name']}")
            shape = cv2.imread(str(root / f"{split}2017/{each['file_name']}")).shape
            assert shape == (each["height"], each["width"], 3)
        ids = {each["name"]: each["id"] for each in content["categories"]}
        assert len(ids) == 80 and IDS.items() | {("person", 1), ("toothbrush", 90)} <= ids.items()
        used = Counter(each["category_id"] for each in content["annotations"])
        objects = Counter({name: used[IDS[name]] for name in IDS})
        assert summary[split] == {"images": COUNTS[split], "objects": objects}
        assert used.total() == objects.total() and len(content["images"]) == COUNTS[split]
    assert files(root).keys() == expected >= {"val2017/000000500001.jpg"}
    for kind in ("images", "annotations"):
        train, val = ([each["id"] for each in contents[split][kind]] for split in COUNTS)
        assert len({*train, *val}) == len(train) + len(val) and max(train) < min(val)


def test_coco_boxes_areas_and_masks_agree(toys):
    objects, in_image = [], {}
    for split in COUNTS:
        coco = COCO(toys["coco"][0] / f"annotations/instances_{split}2017.json")
        objects += [(each, coco.annToMask(each)) for each in coco.dataset["annotations"]]
    for each, mask in objects:
        np.testing.assert_allclose(each["bbox"], cv2.boundingRect(mask), atol=1)
        assert each["area"] == pytest.approx(mask.sum(), rel=0.02)
        in_image.setdefault(each["image_id"], []).append(mask)
    for masks in in_image.values():  # what another thing hides is not in a mask
        assert (np.sum(masks, axis=0) > 1).sum() <= 0.02 * np.sum(masks)
    assert any(len(each["segmentation"]) > 1 for each, _ in objects if not each["iscrowd"])
    donuts = [m for a, m in objects if a["category_id"] == IDS["donut"] and not a["iscrowd"]]
    trees = [cv2.findContours(m, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[1] for m in donuts]
    assert any((tree[0, :, 3] >= 0).any() for tree in trees)  # a hole


@pytest.mark.parametrize("split", COUNTS)
def test_coco_has_crowds_empty_and_portrait_images(contents, split):
    found = [(each["image_id"], each["iscrowd"]) for each in contents[split]["annotations"]]
    crowds = Counter(image for image, is_crowd in found if is_crowd)
    singles = {image for image, is_crowd in found if not is_crowd}
    assert crowds and set(crowds.values()) == {1} and crowds.keys() <= singles
    records = contents[split]["images"]
    assert 0 < len(records) - len(singles) < 0.2 * len(records)
    assert {(each["width"], each["height"]) for each in records} == {SIZE, SIZE[::-1]}


def test_ade_files_and_labels(toys):
    root, summary = toys["ade"]
    expected = {"objectInfo150.txt", "annotations/README.txt"}
    for split, folder in (("train", "training"), ("val", "validation")):
        pixels, images_with = Counter(), Counter()
        for number in range(1, COUNTS[split] + 1):
            stem = f"{folder}/ADE_{split}_{number:08d}"
            picture, label = f"images/{stem}.jpg", f"annotations/{stem}.png"
            expected |= {picture, label}
            labels = cv2.imread(str(root / label), cv2.IMREAD_UNCHANGED)
            assert labels.shape == cv2.imread(str(root / picture)).shape[:2]
            pixels.update(labels.ravel().tolist())
            images_with.update(np.unique(labels).tolist())
        assert images_with.keys() == ADE.keys() and summary[split]["images"] == COUNTS[split]
        for key, counts in (("pixels", pixels), ("images_with", images_with)):
            assert summary[split][key] == {ADE[value]: count for value, count in counts.items()}
    assert files(root).keys() == expected
    rows = [row.split("\t") for row in (root / "objectInfo150.txt").read_text().splitlines()[1:]]
    assert {0: "other"} | {int(row[0]): row[-1] for row in rows} == ADE


def test_imagenet_files_and_lists(toys):
    root, summary = toys["imagenet"]
    expected = {"meta/train.txt", "meta/val.txt", "meta/README.txt"}
    names = ResNet50_Weights.DEFAULT.meta["categories"]
    for split, count in COUNTS.items():
        lines = [line.split() for line in (root / f"meta/{split}.txt").read_text().splitlines()]
        assert all(WNIDS[path.split("/")[0]] == int(label) for path, label in lines)
        expected |= {f"{split}/{path}" for path, _ in lines}
        classes = Counter(names[int(label)] for _, label in lines)
        assert summary[split] == {"images": count, "classes": classes} and len(lines) == count
        assert len(classes) == 8 and max(classes.values()) - min(classes.values()) <= 1
    assert files(root).keys() == expected
    assert len({cv2.imread(str(root / path)).shape for path in files(root, "*.JPEG")}) > 30


@each_dataset
def test_an_image_depends_on_seed_and_index_alone(name, toys, tmp_path):
    for folder, seed in (("few", 0), ("again", 0), ("other", 1)):
        write(name, tmp_path / folder, 3, 2, seed=seed)
    assert files(tmp_path / "few") == files(tmp_path / "again")
    few, other = (files(tmp_path / folder, "*.[jJ]*[gG]") for folder in ("few", "other"))
    assert len(few) == 5 and few.items() <= files(toys[name][0]).items()
    assert len({*few.values(), *other.values()}) == 10


@each_dataset
def test_data_is_replaced_only_if_asked_and_only_toy_data(name, tmp_path):
    write(name, tmp_path / "out", 2, 1, seed=1)
    (tmp_path / "out/other.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="already exists .*--overwrite"):
        write(name, tmp_path / "out")
    assert files(tmp_path) == before
    write(name, tmp_path / "new")
    write(name, tmp_path / "out", overwrite=True)
    assert files(tmp_path / "out") == files(tmp_path / "new") | {"other.txt": b"mine"}
    next((tmp_path / "new").rglob("README.txt")).unlink()  # the real data set has none
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="not a toy data set"):
        write(name, tmp_path / "new", overwrite=True)
    assert files(tmp_path) == before


@each_dataset
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_leaves_everything_as_it_was(name, error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    with pytest.raises(error):
        write(name, tmp_path / "new", report=fail)
    assert not [*tmp_path.iterdir()]
    write(name, tmp_path)
    before = files(tmp_path)
    with pytest.raises(error):
        write(name, tmp_path, seed=1, overwrite=True, report=fail)
    assert files(tmp_path) == before
    renames = chain([Path.rename] * 4, [fail], repeat(Path.rename))
    monkeypatch.setattr(Path, "rename", lambda *paths: next(renames)(*paths))
    with pytest.raises(error):
        write(name, tmp_path, seed=1, overwrite=True)
    assert files(tmp_path) == before


@each_dataset
def test_bad_arguments_are_named(name, tmp_path):
    bad = [("train", 0), ("val", -3), ("train", 500_001), ("seed", -1)]
    for argument, value in (*bad, ("size", (16, 120)), ("size", (160, 5000))):
        named = rf"^{argument}.* is .*\d, but must be from \d+ to \d+$"
        with pytest.raises(ValueError, match=named):
            WRITERS[name](tmp_path / "out", **{argument: value})
    assert not [*tmp_path.iterdir()]


@each_dataset
def test_the_command(name, tmp_path, capsys):
    arguments = (name, tmp_path / "out", "--train", 2, "--val", 1, "--size", *SIZE, "--seed", 3)
    tool_main(TOOL, *arguments)
    said = capsys.readouterr().out
    assert "train: 2 images" in said and "val: 1 images" in said and str(tmp_path / "out") in said
    write(name, tmp_path / "expected", 2, 1, seed=3)
    assert files(tmp_path / "out") == files(tmp_path / "expected")
    with pytest.raises(SystemExit, match="^error: .*/out/.* already exists.*$"):
        tool_main(TOOL, *arguments)
    tool_main(TOOL, *arguments, "--overwrite")
    with pytest.raises(SystemExit, match="^error: train is 0, but must be from 1 to 500000$"):
        tool_main(TOOL, name, tmp_path / "bad", "--train", 0)
    for usage in ((name, tmp_path / "bad", "--train", "many"), ("coco17",)):
        with pytest.raises(SystemExit, match="^2$"):
            tool_main(TOOL, *usage)
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and usage[-1] in said
    assert not (tmp_path / "bad").exists()
