"""Errors in the data: each ends a tool with a message that names the file or folder."""

import shutil
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import CONFIGS, ROOT, tool_main
from mmengine.registry import init_default_scope

from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.runner import CheckedRunner, DataError

TRAIN = ROOT / "tools/train.py"
CLASSIFY = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
DETECT = CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py"
SEGMENT = CONFIGS / "segmentation/fpn_crossformer-nano_toy-ade.py"
CONFIG_OF = dict(classification=CLASSIFY, detection=DETECT, segmentation=SEGMENT)


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
    with pytest.raises(SystemExit) as exit_info:
        train(task, data, tmp_path / "work")
    message = exit_info.value.code
    assert message.startswith(f"error: {missing.format(data)}")
    assert "set --cfg-options data_root=DIR" in message
    assert not (tmp_path / "work").exists()


def test_an_empty_folder(copied):
    data = copied("segmentation")
    for image in (data / "images/training").iterdir():
        image.unlink()
    message = read("segmentation", data)
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
def test_an_unreadable_image(copied, task, pattern, content):
    data = copied(task)
    bad = only_bad_image(data, pattern)
    bad.write_bytes(content)
    message = read(task, data)
    assert "LoadImageFromFile failed on image" in message
    assert str(bad) in message


def test_a_missing_image(copied):
    data = copied("classification")
    bad = only_bad_image(data, "train/*/*.JPEG")
    bad.unlink()
    message = read("classification", data)
    assert "LoadImageFromFile failed on image" in message and str(bad) in message


def test_a_missing_annotation_file(copied, tmp_path):
    data = copied("detection")
    file = data / "annotations/instances_val2017.json"
    file.unlink()
    with pytest.raises(SystemExit, match=f"^error: annotation file {file}"):
        train("detection", data, tmp_path / "work")


def test_a_broken_annotation_file(copied):
    data = copied("detection")
    (data / "annotations/instances_train2017.json").write_text('{"images": [')
    message = read("detection", data)
    assert "data set CocoDataset" in message and "instances_train2017.json" in message


def test_a_missing_label_map(copied):
    data = copied("segmentation")
    bad = only_bad_image(data, "annotations/training/*.png")
    bad.unlink()
    message = read("segmentation", data)
    assert "LoadAnnotations failed on" in message and f"label map {bad}" in message


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
def test_labels_that_do_not_belong(copied, damage, expected):
    data = copied("segmentation")
    bad = only_bad_image(data, "annotations/training/*.png")
    cv2.imwrite(str(bad), damage(cv2.imread(str(bad), cv2.IMREAD_UNCHANGED)))
    message = read("segmentation", data)
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
