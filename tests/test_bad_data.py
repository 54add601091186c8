"""Errors in the data: each ends a tool with a message that names the file or folder."""

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import CONFIGS, ROOT, tool_main

from crossformer_mm.engine.runner import DataError

TRAIN = ROOT / "tools/train.py"
CLASSIFY = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
DETECT = CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py"
SEGMENT = CONFIGS / "segmentation/fpn_crossformer-nano_toy-ade.py"
CONFIG_OF = dict(classification=CLASSIFY, detection=DETECT, segmentation=SEGMENT)


@pytest.fixture
def copied(toy_data_roots, tmp_path):
    """Copies a task's data set, so that a test may damage it."""
    return lambda task: shutil.copytree(toy_data_roots[task], tmp_path / "data")


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Trains in this process, which must fail, and returns the message."""

    def run(task: str, data: Path) -> str:
        options = [f"{loader}_dataloader.num_workers=0" for loader in ("train", "val", "test")]
        options += [f"{loader}_dataloader.persistent_workers=False" for loader in ("train", "val")]
        with pytest.raises((SystemExit, DataError)) as exit_info:
            tool_main(
                *(monkeypatch, TRAIN, CONFIG_OF[task], "--work-dir", tmp_path / "work"),
                *("--cfg-options", f"data_root={data}", "train_dataloader.batch_size=2"),
                *options,
            )
        return str(exit_info.value)

    return run


@pytest.mark.parametrize(
    ("task", "other", "missing"),
    [
        ("classification", "detection", "folder {}/train of train_dataloader (ImageNet)"),
        ("detection", "segmentation", "annotation file {}/annotations/instances_train2017.json"),
        ("segmentation", "detection", "folder {}/images/training of train_dataloader (ADE20KDat"),
    ],
)
def test_the_data_set_of_another_task(train, toy_data_roots, tmp_path, task, other, missing):
    data = toy_data_roots[other]
    message = train(task, data)
    assert message.startswith(f"error: {missing.format(data)}")
    assert "set --cfg-options data_root=DIR" in message
    assert not (tmp_path / "work").exists()


def test_an_empty_folder(train, copied):
    data = copied("segmentation")
    for image in (data / "images/training").iterdir():
        image.unlink()
    message = train("segmentation", data)
    assert "data set ADE20KDataset" in message and "cannot be read" in message
    assert str(data) in message and "images/training" in message


def only_bad_image(data: Path, pattern: str) -> Path:
    """One image of a split, which the test damages; training meets all of them in an epoch."""
    return sorted(data.glob(pattern))[0]


@pytest.mark.parametrize(
    ("task", "pattern"),
    [
        ("classification", "train/*/*.JPEG"),
        ("detection", "train2017/*.jpg"),
        ("segmentation", "images/training/*.jpg"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"<html>not an image</html>"])
def test_an_unreadable_image(train, copied, task, pattern, content):
    data = copied(task)
    bad = only_bad_image(data, pattern)
    bad.write_bytes(content)
    message = train(task, data)
    assert "LoadImageFromFile failed on image" in message
    assert str(bad) in message


def test_a_missing_image(train, copied):
    data = copied("classification")
    bad = only_bad_image(data, "train/*/*.JPEG")
    bad.unlink()
    message = train("classification", data)
    assert "LoadImageFromFile failed on image" in message and str(bad) in message


def test_a_missing_annotation_file(train, copied):
    data = copied("detection")
    (data / "annotations/instances_val2017.json").unlink()
    message = train("detection", data)
    assert message.startswith(f"error: annotation file {data}/annotations/instances_val2017.json")


def test_a_broken_annotation_file(train, copied):
    data = copied("detection")
    (data / "annotations/instances_train2017.json").write_text('{"images": [')
    message = train("detection", data)
    assert "data set CocoDataset" in message and "instances_train2017.json" in message


def test_a_missing_label_map(train, copied):
    data = copied("segmentation")
    bad = only_bad_image(data, "annotations/training/*.png")
    bad.unlink()
    message = train("segmentation", data)
    assert "LoadAnnotations failed on" in message and f"label map {bad}" in message


def test_the_last_line_names_the_file(run_tool, copied, tmp_path):
    data = copied("segmentation")
    bad = only_bad_image(data, "images/training/*.jpg")
    bad.write_bytes(b"not an image")
    result = run_tool(
        *(sys.executable, TRAIN, SEGMENT, "--work-dir", tmp_path / "work"),
        *("--cfg-options", f"data_root={data}", "train_dataloader.batch_size=2"),
        check=False,
    )
    assert result.returncode == 1
    last_line = result.stdout.strip().splitlines()[-1]
    assert "DataError: LoadImageFromFile failed on image" in last_line and str(bad) in last_line


def label_outside(labels: np.ndarray) -> np.ndarray:
    labels[5:9, 5:9] = 151
    return labels


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (label_outside, "has the labels [150] after reduce_zero_label, but classes are 0 to 149"),
        (lambda labels: labels[:-3], "(height, width)"),
        (lambda labels: np.dstack([labels] * 3), "(height, width)"),
    ],
)
def test_labels_that_do_not_belong(train, copied, damage, expected):
    data = copied("segmentation")
    bad = only_bad_image(data, "annotations/training/*.png")
    cv2.imwrite(str(bad), damage(cv2.imread(str(bad), cv2.IMREAD_UNCHANGED)))
    message = train("segmentation", data)
    assert "CheckSegLabels failed on" in message
    assert f"label map {bad}" in message and expected in message


def test_labels_are_checked_in_testing_too():
    from mmengine.config import Config

    for path in sorted((CONFIGS / "segmentation").glob("*.py")):
        cfg = Config.fromfile(path)
        for pipeline in (cfg.train_pipeline, cfg.test_pipeline):
            types = [transform.type for transform in pipeline]
            assert types.index("CheckSegLabels") == types.index("LoadAnnotations") + 1, path.stem
        tta = [transform.type for group in cfg.tta_pipeline[1].transforms for transform in group]
        assert tta.index("CheckSegLabels") == tta.index("LoadAnnotations") + 1, path.stem


def test_good_labels_pass_unchanged():
    from crossformer_mm import CheckSegLabels

    labels = np.array([[0, 149], [255, 7]], np.uint8)
    results = dict(gt_seg_map=labels.copy(), seg_map_path="x.png", ori_shape=(2, 2))
    assert CheckSegLabels(150)(results) is results
    assert (results["gt_seg_map"] == labels).all()
    assert CheckSegLabels(150)({"img": 1}) == {"img": 1}
    with pytest.raises(ValueError, match="x.png has the labels"):
        CheckSegLabels(149)(results)
