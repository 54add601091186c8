"""The same tools train and test classifiers and segmentors; the config's scope says which."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, metrics_of

pytestmark = pytest.mark.families

COMMON = """
custom_imports = dict(imports=['crossformer_mm'], allow_failed_imports=False)
arch = dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), group_size=4,
            interval=(8, 4, 2, 1))
norm = dict(mean=[127.5] * 3, std=[64.0] * 3)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3))
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=4))

def loader(dataset, shuffle):
    return dict(batch_size=4, num_workers=0, dataset=dataset,
                sampler=dict(type='DefaultSampler', shuffle=shuffle))
"""

CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=2, to_rgb=True, **norm),
    backbone=dict(type='CrossFormer', arch=arch, out_indices=(3,), final_norm=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=128, topk=(1,)))
dataset = dict(
    type='CustomDataset', data_prefix='DATA/images',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
default_hooks['visualization'] = dict(type='VisualizationHook')
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""

SEGMENTOR = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64), **norm),
    backbone=dict(type='CrossFormer', arch=arch),
    decode_head=dict(
        type='FCNHead', in_channels=16, in_index=0, channels=16, num_convs=1, num_classes=2,
        concat_input=False, norm_cfg=dict(type='BN')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
dataset = dict(
    type='BaseSegDataset', data_root='DATA', metainfo=dict(classes=('dark', 'light')),
    data_prefix=dict(img_path='images/all', seg_map_path='masks'), img_suffix='.png',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
              dict(type='PackSegInputs')])
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
default_hooks['visualization'] = dict(type='SegVisualizationHook')
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""

LOADERS = """
train_dataloader = loader(dataset, True)
val_dataloader = test_dataloader = loader(dataset, False)
del loader
"""


def half_light_image(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy 64 x 64 image, one half of it lighter, and the mask of that half."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, : rng.integers(16, 48)] = 1
    noise = rng.normal(0, 10, (64, 64, 3))
    return (80 + 100 * mask[..., None] + noise).clip(0, 255).astype(np.uint8), mask


@pytest.fixture
def segmentation_data(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("images/all", "masks"):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(16):
        image, mask = half_light_image(rng)
        cv2.imwrite(str(tmp_path / "images/all" / f"{index}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"{index}.png"), mask)
    return tmp_path


@pytest.fixture
def classification_data(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name, light in {"dark": 60, "light": 190}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(8):
            image = rng.normal(light, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "images" / name / f"{name}{index}.png"), image)
    return tmp_path


def train_and_test(data: Path, text: str, run_tool) -> tuple[dict, Path]:
    """Train, test with pictures, and return the metrics and the folder of pictures."""
    config, work, pictures = data / "config.py", data / "work", data / "pictures"
    config.write_text((COMMON + text + LOADERS).replace("DATA", str(data)))
    run_tool(sys.executable, ROOT / "tools/train.py", config, "--work-dir", work)
    run_tool(
        *(sys.executable, ROOT / "tools/test.py", config, work / "epoch_4.pth"),
        *("--work-dir", work / "test", "--show-dir", pictures, "--out", data / "p.pkl"),
    )
    assert (data / "p.pkl").stat().st_size > 0
    return metrics_of(work / "test"), pictures


def test_a_classifier(classification_data, run_tool):
    metrics, pictures = train_and_test(classification_data, CLASSIFIER, run_tool)
    assert metrics["accuracy/top1"] == 100
    assert len(list(pictures.rglob("*.png"))) == 16


def test_a_segmentor(segmentation_data, run_tool):
    metrics, pictures = train_and_test(segmentation_data, SEGMENTOR, run_tool)
    assert metrics["mIoU"] > 80
    assert len([p for p in pictures.rglob("*") if p.suffix in (".png", ".jpg")]) == 16
