"""The toy COCO data set: its layout, the truth of its annotations, and how it is written."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from crossformer_mm.toy import coco as toy_coco
from crossformer_mm.toy.coco import CATEGORIES, write_coco
from crossformer_mm.toy.scene import MIN_VISIBLE_PIXELS, draw_scene
from crossformer_mm.toy.shapes import KINDS, draw_shape

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

SCRIPT = Path(__file__).parents[1] / "tools" / "make_toy_dataset.py"
NUM_IMAGES = {"train": 30, "val": 10}
IMAGE_FIELDS = {
    "license",
    "file_name",
    "coco_url",
    "height",
    "width",
    "date_captured",
    "flickr_url",
    "id",
}
ANNOTATION_FIELDS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "coco"
    write_coco(out, **NUM_IMAGES, report=lambda line: None)
    return out


@pytest.fixture(scope="module")
def contents(root):
    return {split: json.loads(_json_path(root, split).read_text()) for split in NUM_IMAGES}


@pytest.fixture(scope="module")
def loaded(root):
    return {split: COCO(str(_json_path(root, split))) for split in NUM_IMAGES}


@pytest.fixture(scope="module")
def truths(loaded):
    """(annotation, decoded mask) of every annotation of both splits, grouped by image."""
    return [
        [(each, coco.annToMask(each).astype(bool)) for each in coco.imgToAnns[image_id]]
        for coco in loaded.values()
        for image_id in coco.getImgIds()
    ]


def _json_path(root, split):
    return root / "annotations" / f"instances_{split}2017.json"


def _files(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script with arguments; (exit status, output, errors). No new process: it is fast."""

    def run_script(*args):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, args)])
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            status = end.code
        output, errors = capsys.readouterr()
        if isinstance(status, str):  # what Python itself does with sys.exit(message)
            status, errors = 1, errors + status + "\n"
        return status, output, errors

    return run_script


# Layout and fields


def test_folders_are_those_of_coco(root):
    assert sorted(p.name for p in root.iterdir()) == ["annotations", "train2017", "val2017"]
    assert (root / "train2017" / "000000000001.jpg").is_file()


@pytest.mark.parametrize("split", NUM_IMAGES)
def test_images_on_disk_match_the_json(root, contents, split):
    records = contents[split]["images"]
    assert len(records) == NUM_IMAGES[split]
    on_disk = {p.name for p in (root / f"{split}2017").iterdir()}
    assert on_disk == {record["file_name"] for record in records}
    for record in records:
        assert record.keys() == IMAGE_FIELDS
        assert record["file_name"] == f"{record['id']:012d}.jpg"
        shape = cv2.imread(str(root / f"{split}2017" / record["file_name"])).shape
        assert shape == (record["height"], record["width"], 3)


def test_json_has_the_fields_of_coco(contents):
    for content in contents.values():
        assert content.keys() == {"info", "licenses", "images", "annotations", "categories"}
        assert content["info"] and content["licenses"][0]["id"] == 1
        assert all(each.keys() == ANNOTATION_FIELDS for each in content["annotations"])


def test_ids_are_unique_over_both_splits(contents):
    for kind in ("images", "annotations"):
        ids = [each["id"] for content in contents.values() for each in content[kind]]
        assert len(ids) == len(set(ids))


def test_categories_are_the_real_ones(contents):
    categories = contents["val"]["categories"]
    assert categories == contents["train"]["categories"] == CATEGORIES
    ids = [each["id"] for each in categories]
    assert len(ids) == 80 and ids == sorted(set(ids))
    known = {each["id"]: (each["name"], each["supercategory"]) for each in categories}
    assert known[1] == ("person", "person")
    assert known[13] == ("stop sign", "outdoor")
    assert known[28] == ("umbrella", "accessory")
    assert known[44] == ("bottle", "kitchen")
    assert known[67] == ("dining table", "furniture")
    assert known[72] == ("tv", "electronic")
    assert known[90] == ("toothbrush", "indoor")


def test_every_kind_is_a_category_with_its_own_id(contents):
    ids = {each["name"]: each["id"] for each in CATEGORIES}
    expected = {"stop sign": 13, "umbrella": 28, "kite": 38, "banana": 52}
    expected |= {"pizza": 59, "donut": 60, "book": 84, "clock": 85}
    assert {kind: ids[kind] for kind in KINDS} == expected
    used = {each["category_id"] for each in contents["train"]["annotations"]}
    assert used == set(expected.values())


def test_some_images_are_portrait(contents):
    sizes = [(each["width"], each["height"]) for each in contents["train"]["images"]]
    assert set(sizes) == {(320, 240), (240, 320)}
    assert sizes.count((320, 240)) > len(sizes) / 2


# Truth of the annotations


def test_boxes_are_inside_the_image_and_tight(truths):
    for annotation, mask in (each for image in truths for each in image):
        x, y, width, height = annotation["bbox"]
        assert x >= 0 and y >= 0 and width > 0 and height > 0
        assert x + width <= mask.shape[1] and y + height <= mask.shape[0]
        from_mask = cv2.boundingRect(mask.astype(np.uint8))
        np.testing.assert_allclose(annotation["bbox"], from_mask, atol=2)


def test_areas_are_those_of_the_masks(truths):
    for annotation, mask in (each for image in truths for each in image):
        assert annotation["area"] >= MIN_VISIBLE_PIXELS
        assert annotation["area"] == pytest.approx(mask.sum(), rel=0.06, abs=4)


def test_masks_of_one_image_do_not_overlap(truths):
    for image in truths:
        for annotation, mask in image:
            others = [other for each, other in image if each is not annotation]
            shared = mask & np.any(others, axis=0) if others else np.zeros(1)
            assert shared.sum() <= 8 + 0.04 * mask.sum()


def test_polygons_give_back_the_mask_with_holes_and_several_parts():
    mask = np.zeros((60, 80), bool)
    mask[5:35, 10:40] = True
    mask[15:25, 20:30] = False  # a hole
    mask[28, 12] = False  # a hole of one pixel
    mask[40:55, 50:80] = True  # another part, at the border
    polygons = toy_coco._polygons(mask)
    decoded = _decode(polygons, mask.shape)
    np.testing.assert_array_equal(decoded, mask)
    assert len(polygons) >= 3


def test_donut_has_a_hole(truths):
    donut = next(each["id"] for each in CATEGORIES if each["name"] == "donut")
    singles = [m for im in truths for a, m in im if a["category_id"] == donut and not a["iscrowd"]]
    assert any(_is_hollow(mask) for mask in singles)


def _is_hollow(mask):
    _, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[-2:]
    return bool((tree[0][:, 3] >= 0).any())


def _decode(polygons, shape):
    coco = COCO()
    coco.imgs = {1: {"height": shape[0], "width": shape[1]}}
    return coco.annToMask({"image_id": 1, "segmentation": polygons}).astype(bool)


def test_run_lengths_are_column_by_column_and_start_with_zeros():
    mask = np.array([[True, False], [True, False], [False, True]])
    assert toy_coco._run_lengths(mask) == {"counts": [0, 2, 3, 1], "size": [3, 2]}


@pytest.mark.parametrize("split", NUM_IMAGES)
def test_each_split_has_a_crowd_beside_single_things_and_an_empty_image(loaded, split):
    coco = loaded[split]
    crowds = [each for each in coco.anns.values() if each["iscrowd"]]
    assert crowds
    for crowd in crowds:
        assert crowd["segmentation"].keys() == {"counts", "size"}
        same_image = coco.imgToAnns[crowd["image_id"]]
        assert any(not each["iscrowd"] for each in same_image)
        assert sum(each["iscrowd"] for each in same_image) == 1
    assert any(not coco.imgToAnns[image_id] for image_id in coco.getImgIds())
    singles = [each for each in coco.anns.values() if not each["iscrowd"]]
    assert all(isinstance(each["segmentation"], list) for each in singles)


def test_some_things_are_cut_off_by_the_border(truths):
    at_border = 0
    for annotation, mask in (each for image in truths for each in image):
        x, y, width, height = annotation["bbox"]
        at_border += x == 0 or y == 0 or x + width == mask.shape[1] or y + height == mask.shape[0]
    assert at_border >= 5


def test_some_things_are_hidden_in_part_and_split(loaded):
    anns = loaded["train"].anns.values()
    singles = [each for each in anns if not each["iscrowd"] and each["category_id"] != 60]
    assert any(len(each["segmentation"]) > 1 for each in singles)


def test_perfect_detections_get_full_marks(loaded):
    coco = loaded["val"]
    singles = [each for each in coco.anns.values() if not each["iscrowd"]]
    detections = [
        {
            **{key: each[key] for key in ("image_id", "category_id", "bbox")},
            "segmentation": coco.annToRLE(each),
            "score": 0.9,
        }
        for each in singles
    ]
    for iou_type in ("bbox", "segm"):
        results = coco.loadRes([dict(each) for each in detections])
        evaluation = COCOeval(coco, results, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


# Drawing


def test_ordinary_images_try_three_to_eight_things(monkeypatch):
    tried = []

    def spy(rng, width, height, num_things, crowd):
        if not crowd:
            tried.append(num_things)
        return np.zeros((height, width, 3), np.uint8), []

    monkeypatch.setattr(toy_coco, "draw_scene", spy)
    for index in range(200):
        toy_coco._draw_image("train", index, (320, 240), seed=0)
    assert set(tried) == {0, *range(3, 9)}
    assert tried.count(0) == 10  # one in twenty is empty


def test_a_crowd_is_one_object_behind_the_others():
    picture, objects = draw_scene(np.random.default_rng(0), 320, 240, num_things=3, crowd=True)
    assert picture.shape == (240, 320, 3) and picture.dtype == np.uint8
    assert [each.is_crowd for each in objects] == [True] + [False] * (len(objects) - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [12.3, 60.0])
def test_shapes_fit_their_patch_and_leave_its_rim_free(kind, size):
    for seed in range(10):
        shape = draw_shape(np.random.default_rng(seed), kind, size, light=0.0)
        assert shape.colour.shape == (*shape.cover.shape, 3)
        assert shape.colour.min() >= 0 and shape.colour.max() <= 1
        inside = shape.cover >= 0.5
        assert not (inside[[0, -1]].any() or inside[:, [0, -1]].any())
        assert 0.1 < inside.mean() < 0.9


# Writing


def test_same_seed_same_bytes(root, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    write_coco(again, **NUM_IMAGES, report=lambda line: None)
    write_coco(other, 3, 3, seed=1, report=lambda line: None)
    assert _files(again) == _files(root)
    for name in ("train2017/000000000001.jpg", "train2017/000000000002.jpg"):
        assert (other / name).read_bytes() != (root / name).read_bytes()


def test_an_image_does_not_depend_on_how_many_there_are(root, contents, tmp_path):
    write_coco(tmp_path, 2, 1, report=lambda line: None)
    few = json.loads(_json_path(tmp_path, "val").read_text())
    assert few["images"] == contents["val"]["images"][:1]
    size = len(few["annotations"])
    assert few["annotations"] == contents["val"]["annotations"][:size]
    for path in (tmp_path / "val2017").iterdir():
        assert path.read_bytes() == (root / "val2017" / path.name).read_bytes()


def test_train_and_val_differ(root):
    first_train, first_val = (min((root / f"{s}2017").iterdir()) for s in ("train", "val"))
    assert first_train.read_bytes() != first_val.read_bytes()


@pytest.mark.parametrize("present", ["annotations", "train2017", "val2017"])
def test_present_data_is_not_overwritten_unless_asked(tmp_path, present):
    (tmp_path / present).mkdir()
    (tmp_path / present / "mine.txt").write_text("mine")
    (tmp_path / "other.txt").write_text("other")
    before = _files(tmp_path)
    with pytest.raises(FileExistsError, match=present):
        write_coco(tmp_path, 1, 1)
    assert _files(tmp_path) == before


def test_an_earlier_toy_data_set_is_replaced_as_a_whole(tmp_path):
    write_coco(tmp_path, 2, 1, report=lambda line: None)
    (tmp_path / "other.txt").write_text("other")
    write_coco(tmp_path, 1, 1, overwrite=True, report=lambda line: None)
    assert len(list((tmp_path / "train2017").iterdir())) == 1
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["annotations", "other.txt", "train2017", "val2017"]


@pytest.mark.parametrize("is_new", [True, False])
def test_an_error_leaves_nothing_behind(tmp_path, monkeypatch, is_new):
    out = tmp_path / "out"
    if not is_new:
        write_coco(out, 1, 1, report=lambda line: None)
    before = sorted(tmp_path.rglob("*"))

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(toy_coco, "_write_split", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_coco(out, 1, 1, overwrite=not is_new)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failing_move_puts_the_old_folders_back(tmp_path, monkeypatch):
    write_coco(tmp_path, 1, 1, report=lambda line: None)
    before = _files(tmp_path)
    rename = Path.rename

    def failing_rename(self, target):
        if self.name == "val2017" and self.parent != tmp_path:
            raise OSError("Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(OSError, match="busy"):
        write_coco(tmp_path, 1, 1, seed=5, overwrite=True, report=lambda line: None)
    assert _files(tmp_path) == before


# Command line


def test_command_writes_and_sums_up_and_then_refuses(tmp_path, run):
    out = tmp_path / "out"
    args = ("coco", out, "--train", 2, "--val", 1, "--size", 128, 96, "--seed", 3)
    status, output, errors = run(*args)
    assert (status, errors) == (0, "")
    assert "train: 2 images" in output and str(out) in output
    status, _, errors = run(*args)
    assert status == 1
    assert errors.count("\n") == 1 and str(out / "annotations") in errors
    assert run(*args, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train is 0, but must be from 1 to"),
        ({"val": -3}, "val is -3, but must be from 1 to"),
        ({"size": (16, 96)}, r"size \(width\) is 16, but must be from 96 to"),
        ({"size": (320, 16)}, r"size \(height\) is 16, but must be from 96 to"),
        ({"seed": -1}, "seed is -1, but must be from 0 to"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_coco(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "status"), [(("--size", 16, 16), 1), (("--train", 0), 1), (("--train", "many"), 2)]
)
def test_command_reports_a_bad_argument_in_one_line(tmp_path, run, flags, status):
    ended_with, _, errors = run("coco", tmp_path / "out", *flags)
    assert ended_with == status
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert flags[0].strip("-") in errors and str(flags[1]) in errors
    assert not (tmp_path / "out").exists()


def test_another_data_set_is_never_replaced(tmp_path):
    for name in ("annotations", "train2017"):
        (tmp_path / name).mkdir()
    precious = tmp_path / "annotations" / "instances_val2017.json"
    precious.write_text('{"info": {"contributor": "COCO Consortium"}}')
    with pytest.raises(FileExistsError, match="is not a toy data set"):
        write_coco(tmp_path, 1, 1, overwrite=True, report=lambda line: None)
    assert "COCO Consortium" in precious.read_text()
