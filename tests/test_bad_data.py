"""Errors in the data: each ends a tool with a message that names the file or folder."""

import re
import shutil
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import CONFIGS, ROOT, tool_main
from mmengine.registry import init_default_scope

from crossformer_mm import CheckSegLabels
from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.runner import CheckedRunner
from crossformer_mm.utils.errors import DataError

TRAIN = ROOT / "tools/train.py"
CONFIG_OF = dict(
    classification=CONFIGS / "classification/crossformer-nano_toy-imagenet.py",
    detection=CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py",
    segmentation=CONFIGS / "segmentation/fpn_crossformer-nano_toy-ade.py",
)
HTML = b"<html>not an image</html>"


@pytest.fixture
def copied(toy_data_roots, tmp_path):
    """Copies a task's data set, so that a test may damage it."""
    return lambda task: shutil.copytree(toy_data_roots[task], tmp_path / "data")


def read(task: str, data: Path) -> str:
    """Take all training samples of a task, which must fail, and return the message."""
    cfg = load_config(str(CONFIG_OF[task]), {"data_root": str(data)})
    init_default_scope(cfg.default_scope)
    loader = {**cfg.train_dataloader, "num_workers": 0, "persistent_workers": False}
    with pytest.raises(DataError) as error:
        list(islice(CheckedRunner.build_dataloader(loader, seed=0), 20))
    return str(error.value)


def train(task: str, data: Path, work_dir: Path) -> None:
    """Run the training tool in this process."""
    tool_main(
        *(TRAIN, CONFIG_OF[task], "--work-dir", work_dir),
        *("--cfg-options", f"data_root={data}", "train_dataloader.batch_size=2"),
    )


@pytest.mark.fault("images and label maps")
@pytest.mark.parametrize(
    ("task", "other", "missing"),
    [
        ("classification", "detection", "folder {}/train of train_dataloader (ImageNet)"),
        ("detection", "segmentation", "annotation file {}/annotations/instances_train2017.json"),
        ("segmentation", "detection", "folder {}/images/training of train_dataloader (ADE20KDat"),
    ],
)
def test_the_data_set_of_another_task(toy_data_roots, tmp_path, task, other, missing):
    data = toy_data_roots[other]
    named = re.escape(missing.format(data))
    with pytest.raises(SystemExit, match=rf"^error: {named}.*set --cfg-options data_root=DIR"):
        train(task, data, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.fault("images and label maps")
def test_an_empty_folder(copied):
    data = copied("segmentation")
    for image in (data / "images/training").iterdir():
        image.unlink()
    message = read("segmentation", data)
    assert "data set ADE20KDataset" in message and "cannot be read" in message
    assert str(data) in message and "images/training" in message


@pytest.mark.fault("images and label maps")
@pytest.mark.parametrize(
    ("task", "pattern", "contents"),
    [
        ("classification", "train/*/*.JPEG", [b"", HTML, None]),
        ("detection", "train2017/*.jpg", [b"", HTML]),
        ("segmentation", "images/training/*.jpg", [b"", HTML]),
    ],
)
def test_an_unreadable_or_missing_image(copied, task, pattern, contents):
    data = copied(task)
    bad = min(data.glob(pattern))  # training meets all of them in an epoch
    for content in contents:
        bad.unlink() if content is None else bad.write_bytes(content)
        message = read(task, data)
        assert "LoadImageFromFile failed on image" in message and str(bad) in message


@pytest.mark.fault("COCO JSON")
def test_a_missing_annotation_file(copied, tmp_path):
    data = copied("detection")
    file = data / "annotations/instances_val2017.json"
    file.unlink()
    with pytest.raises(SystemExit, match=f"^error: annotation file {file}"):
        train("detection", data, tmp_path / "work")


@pytest.mark.fault("COCO JSON")
def test_a_broken_annotation_file(copied):
    data = copied("detection")
    (data / "annotations/instances_train2017.json").write_text('{"images": [')
    message = read("detection", data)
    assert "instances_train2017.json is not JSON: " in message


def outside(labels: np.ndarray) -> np.ndarray:
    labels[5:9, 5:9] = 151
    return labels


@pytest.mark.fault("images and label maps")
@pytest.mark.parametrize(
    ("damage", "transform", "expected"),
    [
        (None, "LoadAnnotations", "No such file"),
        (outside, "CheckSegLabels", "[150] after reduce_zero_label, but classes are 0 to 149"),
        (lambda labels: labels[:-3], "CheckSegLabels", "(height, width)"),
        (lambda labels: np.dstack([labels] * 3), "CheckSegLabels", "(height, width)"),
    ],
)
def test_a_label_map_that_is_missing_or_does_not_belong(copied, damage, transform, expected):
    data = copied("segmentation")
    bad = min(data.glob("annotations/training/*.png"))
    labels = cv2.imread(str(bad), cv2.IMREAD_UNCHANGED)
    bad.unlink()
    if damage is not None:
        cv2.imwrite(str(bad), damage(labels))
    message = read("segmentation", data)
    for part in (f"{transform} failed on", f"label map {bad}", expected):
        assert part in message


def test_good_labels_pass_unchanged():
    labels = np.array([[0, 149], [255, 7]], np.uint8)
    results = dict(gt_seg_map=labels.copy(), seg_map_path="x.png", ori_shape=(2, 2))
    results["num_classes"] = 150
    assert CheckSegLabels()(results) is results
    assert (results["gt_seg_map"] == labels).all()
    assert CheckSegLabels()({"img": 1}) == {"img": 1}
    with pytest.raises(ValueError, match="x.png has the labels"):
        CheckSegLabels()({**results, "num_classes": 149})
