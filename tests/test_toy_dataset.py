"""The toy COCO data set: its layout, the truth of its annotations, and how it is drawn."""

import json

import cv2
import numpy as np
import pytest

from crossformer_mm.datasets.toy import coco as toy_coco
from crossformer_mm.datasets.toy.coco import CATEGORIES, write_coco
from crossformer_mm.datasets.toy.scene import MIN_VISIBLE_PIXELS, draw_scene
from crossformer_mm.datasets.toy.shapes import KINDS, draw_shape

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

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


def test_annotations_do_not_depend_on_how_many_images_there_are(contents, tmp_path):
    write_coco(tmp_path, 2, 1, report=lambda line: None)
    few = json.loads(_json_path(tmp_path, "val").read_text())
    assert few["images"] == contents["val"]["images"][:1]
    size = len(few["annotations"])
    assert few["annotations"] == contents["val"]["annotations"][:size]
