"""Contradictions between annotations, class names, heads and evaluators stop a training."""

import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools.mask import encode
from torch import nn

from crossformer_mm.datasets import coco_annotations
from crossformer_mm.datasets.coco_annotations import read_run_lengths
from crossformer_mm.engine.config import config_errors_in_one_line, load_config
from crossformer_mm.engine.hooks import data_check
from crossformer_mm.engine.hooks.data_check import check_heads, check_topk
from crossformer_mm.engine.runner import CheckedRunner
from crossformer_mm.utils.errors import DataError

DETECTOR = CONFIGS / "detection/retinanet_crossformer-nano_fpn_toy-coco.py"
SEGMENTOR = CONFIGS / "segmentation/fpn_crossformer-nano_toy-ade.py"
CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
pytestmark = pytest.mark.families  # the checks look into the libraries
KINDS = ("ship", "plane", "car", "cat")
TRAIN = "annotations/instances_train2017.json"


@pytest.fixture
def ships(toy_coco, tmp_path) -> Path:
    """The toy data set with four categories whose ids have gaps and fall."""
    data = shutil.copytree(toy_coco, tmp_path / "data")
    for file in data.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        ids = [90, 7, 55, 8]
        content["categories"] = [dict(id=i, name=n) for i, n in zip(ids, KINDS, strict=True)]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["id"] % 4]
        file.write_text(json.dumps(content))
    return data


def change(file: Path, edit) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def read(data: Path, classes: object = KINDS, loader: str = "train_dataloader", **more: object):
    cfg = load_config(str(DETECTOR), {"data_root": str(data)})
    init_default_scope("mmdet")
    dataset = dict(cfg[loader].dataset, metainfo=dict(classes=classes), **more)
    options = dict(num_workers=0, persistent_workers=False, dataset=dataset)
    return CheckedRunner.build_dataloader({**cfg[loader], **options}, seed=0).dataset


def test_labels_have_the_names_of_the_file_whatever_its_ids(ships):
    dataset = read(ships)
    content = json.loads((ships / TRAIN).read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    expected = {
        (each["image_id"], *np.round(each["bbox"][:2], 2)): names[each["category_id"]]
        for each in content["annotations"]
    }
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    objects = [(info["img_id"], each) for info in infos for each in info["instances"]]
    assert len(objects) > 20
    for number, each in objects:
        assert expected[(number, *np.round(each["bbox"][:2], 2))] == KINDS[each["bbox_label"]]


@pytest.mark.fault("COCO JSON")
@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ("ship", "|with the comma"),
        (("cell", "nucleus"), "'cell', 'nucleus'|'ship', 'plane'"),
        (("ship", "plain", "car", "cat"), "'plain'|'plane' for 'plain'"),
        (("Ship", "plane", "car", "cat"), "'Ship'"),
        (("cat", "car", "plane", "ship"), "order|'ship' would be learned as 'cat'"),
        (("ship", "plane", "dog", "car", "cat"), "order|add categories ('dog',)"),
    ],
)
def test_class_names_that_the_file_contradicts(ships, classes, named):
    with pytest.raises(DataError) as error:
        read(ships, classes)
    assert all(part in str(error.value) for part in [TRAIN.split("/")[1], *named.split("|")[1:]])


def test_some_of_the_categories_may_be_left_out(ships):
    dataset = read(ships, ("plane", "cat"))
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert {each["bbox_label"] for info in infos for each in info["instances"]} == {0, 1}


@pytest.mark.fault("COCO JSON")
def test_what_the_file_lacks_is_named_or_completed(ships):
    def strip(content):
        content.pop("info", None)
        for annotation in content["annotations"]:
            annotation.pop("area")
            annotation.pop("iscrowd")

    change(ships / TRAIN, strip)
    assert len(read(ships)) > 5
    for kind, key in (("images", "height"), ("annotations", "bbox"), ("annotations", "id")):
        kept = (ships / TRAIN).read_text()
        change(ships / TRAIN, lambda content, k=kind, key=key: content[k][2].pop(key))
        with pytest.raises(DataError, match=f"instances_train2017.json.*{key}"):
            read(ships)
        (ships / TRAIN).write_text(kept)


@pytest.mark.fault("COCO JSON")
def test_a_file_of_which_nothing_is_left(ships):
    def shrink(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [value / 1000 for value in annotation["bbox"]]

    change(ships / TRAIN, shrink)
    with pytest.raises(DataError, match="0 objects that can be learned.*smaller than a pixel"):
        read(ships)


def test_images_without_any_object_are_learned_where_the_config_keeps_them(ships):
    change(ships / TRAIN, lambda content: content.update(annotations=[]))
    with pytest.raises(DataError, match="0 objects that can be learned"):
        read(ships)
    assert len(read(ships, filter_cfg=dict(filter_empty_gt=False))) == 16


@pytest.mark.fault("COCO JSON")
def test_two_categories_of_one_name(ships):
    change(ships / TRAIN, lambda content: content["categories"][1].update(name="ship"))
    with pytest.raises(DataError, match="several categories of one name: \\('ship',\\)"):
        read(ships, ("ship", "car", "cat"))


@pytest.mark.fault("images and label maps")
def test_an_image_that_is_turned(ships):
    for path in ships.glob("train2017/*.jpg"):
        with Image.open(path) as image:
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(path, exif=exif)
    dataset = read(ships)
    with pytest.raises(DataError, match=r"\.jpg: the image is .* its annotation says .*EXIF"):
        dataset[0]


class Heads(nn.Module):
    def __init__(self, box: int, masks: int) -> None:
        super().__init__()
        self.roi_head = nn.Module()
        self.roi_head.bbox_head = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.roi_head.mask_head, self.rpn_head = nn.Identity(), nn.Identity()
        self.rpn_head.num_classes = 1
        self.roi_head.mask_head.num_classes = masks
        for head in self.roi_head.bbox_head:
            head.num_classes = box


@pytest.mark.fault("configs and command lines")
def test_heads_have_as_many_classes_as_the_data():
    check_heads(Heads(4, 4), KINDS)
    for heads in (Heads(80, 4), Heads(4, 3)):
        with pytest.raises(DataError, match=r"4 classes \('ship', .*write model=dict\(roi_head="):
            check_heads(heads, KINDS)


@pytest.mark.fault("configs and command lines")
def test_five_guesses_need_five_classes():
    check_topk(SimpleNamespace(topk=(1, 5)), "val", 5)
    with pytest.raises(DataError, match=r"topk=\(1, 5\).*4 classes: write val_evaluator=dict"):
        check_topk(SimpleNamespace(topk=(1, 5)), "val", 4)


@pytest.mark.fault("COCO JSON")
@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        (DETECTOR, {}, r"bbox_head has num_classes=8: write model=dict\(bbox_head=dict"),
        (
            DETECTOR,
            {
                "model.bbox_head.num_classes": 4,
                "val_dataloader.dataset.metainfo.classes": KINDS[:3],
            },
            "classes of train_dataloader are .* those of val_dataloader",
        ),
    ],
)
def test_a_training_stops_before_its_first_step(ships, tmp_path, config, options, named):
    options = {
        "data_root": ships,
        "train_dataloader.dataset.metainfo.classes": KINDS,
        "val_dataloader.dataset.metainfo.classes": KINDS,
        **options,
    }
    words = [
        f"{key}=({','.join(value)})" if isinstance(value, tuple) else f"{key}={value}"
        for key, value in options.items()
    ]
    with pytest.raises(SystemExit, match=named):
        tool_main(
            *(ROOT / "tools/train.py", config, "--work-dir", tmp_path / "w", "--cfg-options"),
            *words,
        )
    assert not list(tmp_path.glob("w/*.pth"))


NAN, HUGE = float("nan"), 1e9
RUNS = dict(size=[96, 128], counts=[0, 96 * 128])


@pytest.mark.fault("COCO JSON")
@pytest.mark.parametrize(
    ("kind", "change_of", "said"),
    [
        ("annotations", dict(segmentation=[[0, 0, HUGE, 0, HUGE, HUGE]]), "segmentation of ann"),
        ("annotations", dict(segmentation=[[0, 0, 4, 0, 4]]), "segmentation of annotation"),
        ("annotations", dict(segmentation=[[0, 0, 4, 0, 4, NAN]]), "segmentation of annotation"),
        ("annotations", dict(segmentation="[[0, 0]]"), "segmentation of annotation"),
        ("annotations", dict(segmentation={**RUNS, "size": [9999, 9999]}), "segmentation of ann"),
        ("annotations", dict(segmentation={**RUNS, "counts": [0, 10**9]}), "segmentation of ann"),
        ("annotations", dict(segmentation={**RUNS, "counts": "0o" * 9}), "segmentation of ann"),
        ("annotations", dict(bbox=[1, 2, NAN, 4]), "bbox of annotation"),
        ("annotations", dict(bbox=[1, 2, 3]), "bbox of annotation"),
        ("annotations", dict(bbox=[1, 2, "3", 4]), "bbox of annotation"),
        ("images", dict(width=10**9), "has height and width"),
        ("images", dict(height=-5), "has height and width"),
        ("images", dict(id=7), "several images have the id 7"),
        ("categories", dict(id=7), "several categories have the id 7"),
    ],
)
def test_numbers_that_pycocotools_would_follow_out_of_bounds(ships, kind, change_of, said):
    def edit(content: dict) -> None:
        for entry in content[kind][:2]:
            entry.update(change_of)

    change(ships / TRAIN, edit)
    with pytest.raises(DataError, match=f"instances_train2017.json: .*{said}"):
        read(ships)


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 60, 2)
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        text = encode(np.asfortranarray(mask))["counts"].decode()
        borders = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0)).tolist()
        expected = np.diff([0, *borders, height * width]).tolist()
        assert read_run_lengths(text) == expected


@pytest.mark.fault("COCO JSON")
def test_annotations_of_images_that_are_not_there_are_counted(ships, monkeypatch):
    said = []
    monkeypatch.setattr(coco_annotations, "print_log", lambda text, *args, **kw: said.append(text))
    change(ships / TRAIN, lambda content: content["annotations"][0].update(image_id=10**6))
    read(ships)
    assert any("1 annotations are of images that it has not" in line for line in said)


@pytest.mark.fault("images and label maps")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: os.mkfifo(path), "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_bytes(png_header(30000, 30000)), "exceeds limit"),
    ],
)
def test_an_image_that_is_none_is_named_before_it_is_read(ships, make, said):
    image = next(ships.glob("train2017/*1.jpg"))
    image.unlink()
    make(image)
    dataset = read(ships)
    data_check._check_dataset(dataset, "train_dataloader", KINDS)  # before the first step
    number = [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))].index(str(image))
    with pytest.raises(DataError, match=f"failed on image {image}: .*{said}"):
        dataset[number]


def png_header(width: int, height: int) -> bytes:
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0)


@pytest.mark.fault("images and label maps")
def test_label_maps_of_16_bits_are_named(toy_data_roots, tmp_path):
    data = shutil.copytree(toy_data_roots["segmentation"], tmp_path / "data")
    for path in data.glob("annotations/training/*.png"):
        Image.fromarray(np.array(Image.open(path)).astype(np.uint16) * 257).save(path)
    options = ("--work-dir", tmp_path / "w", "--cfg-options", f"data_root={data}")
    with pytest.raises(SystemExit, match="label map .*png has labels of more than 8 bits"):
        tool_main(ROOT / "tools/train.py", SEGMENTOR, *options)


@pytest.mark.fault("images and label maps")
def test_masks_of_0_and_255(toy_data_roots, tmp_path, monkeypatch):
    monkeypatch.setattr(data_check, "SAMPLES", 1)
    data = shutil.copytree(toy_data_roots["segmentation"], tmp_path / "data")
    files = sorted(data.glob("annotations/*/*.png"))
    for path in files:
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.uint8(labels > 3) * 255).save(path)
    command = (ROOT / "tools/train.py", SEGMENTOR, "--work-dir", tmp_path / "w", "--cfg-options")
    options = [f"{split}_dataloader.dataset.reduce_zero_label=False" for split in ("train", "val")]
    options += [f"data_root={data}", "train_cfg.max_iters=1", "train_dataloader.batch_size=2"]
    with pytest.raises(SystemExit, match=r"label maps such as .*\.png, the labels are only .*255"):
        tool_main(*command, *options)
    tool_main(*command, *options, "check_data=False")
    for path in (files[4], files[-1]):  # a class may be rare: not in the first map
        labels = np.asarray(Image.open(path)).copy()
        labels[:9] = 1
        Image.fromarray(labels).save(path)
    tool_main(*command, *options)


@pytest.mark.fault("images and label maps")
def test_folders_are_labels_by_their_alphabet(toy_data_roots, tmp_path):
    data = toy_data_roots["classification"]
    folders = sorted(path.name for path in (data / "train").iterdir())
    config = tmp_path / "own.py"
    lines = [
        f"_base_ = {str(CLASSIFIER)!r}",
        f"model = dict(head=dict(num_classes={len(folders)}))",
    ]
    for split, pipeline in (("train", "train_pipeline"), ("val", "test_pipeline")):
        dataset = f"type='CustomDataset', data_prefix='{data}/{split}', pipeline=_base_.{pipeline}"
        dataset += f", metainfo=dict(classes={folders[::-1]!r})"
        lines.append(f"{split}_dataloader = dict(dataset=dict(_delete_=True, {dataset}))")
    config.write_text("\n".join(lines))
    with pytest.raises(SystemExit, match=re.escape(f"classes={tuple(folders)}")):
        tool_main(
            *(ROOT / "tools/train.py", config, "--work-dir", tmp_path / "w"),
            *("--cfg-options", f"data_root={data}"),
        )


@pytest.mark.fault("images and label maps")
def test_images_of_several_sizes_cannot_be_in_one_batch_of_a_segmentor(toy_data_roots, tmp_path):
    data = shutil.copytree(toy_data_roots["segmentation"], tmp_path / "data")
    for kind in ("images", "annotations"):
        path = min(data.glob(f"{kind}/validation/*"))
        Image.open(path).rotate(90, expand=True).save(path)
    command = (ROOT / "tools/train.py", SEGMENTOR, "--work-dir", tmp_path / "w", "--cfg-options")
    options = (f"data_root={data}", "train_cfg.max_iters=1", "val_dataloader.batch_size=3")
    said = r"images of val_dataloader have several sizes, .* batch of 3: .*batch_size=1"
    with pytest.raises(SystemExit, match=said):
        tool_main(*command, *options)
    assert not list(tmp_path.glob("w/*.pth"))


@pytest.mark.fault("configs and command lines")
def test_a_norm_over_one_value_is_said_to_be_the_batch_size():
    cfg = load_config(str(SEGMENTOR))
    said = r"train_dataloader.batch_size=1 is too small"
    with pytest.raises(SystemExit, match=said), config_errors_in_one_line(cfg):
        nn.BatchNorm2d(4)(torch.zeros(1, 4, 1, 1))
