"""The same tools train and test classifiers and segmentors; the config's scope says which."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, SMALL_ARCH, metrics_of, tool_main

pytestmark = pytest.mark.families

COMMON = f"""
custom_imports = dict(imports=['crossformer_mm'], allow_failed_imports=False)
backbone = dict(type='CrossFormer', arch={SMALL_ARCH})
norm = dict(mean=[127.5] * 3, std=[64.0] * 3)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3))
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
val_cfg = dict()
test_cfg = dict()
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
load, default_hooks = dict(type='LoadImageFromFile'), dict()
"""
CONFIGS = {
    "accuracy/top1": """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=2, to_rgb=True, **norm),
    backbone=dict(**backbone, out_indices=(3,), final_norm=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=128, topk=(1,)))
dataset = dict(type='CustomDataset', data_prefix='DATA/images',
               pipeline=[load, dict(type='PackInputs')])
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
default_hooks['visualization'] = dict(type='VisualizationHook')
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
""",
    "mIoU": """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64), **norm),
    backbone=backbone,
    decode_head=dict(
        type='FCNHead', in_channels=16, in_index=0, channels=16, num_convs=1, num_classes=2,
        concat_input=False, norm_cfg=dict(type='BN')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
dataset = dict(
    type='BaseSegDataset', data_root='DATA', metainfo=dict(classes=('dark', 'light')),
    data_prefix=dict(img_path='images', seg_map_path='masks'), img_suffix='.png',
    pipeline=[load, dict(type='LoadAnnotations'), dict(type='PackSegInputs')])
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
default_hooks['visualization'] = dict(type='SegVisualizationHook')
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
""",
}
DATASETS = """
train_dataloader['dataset'] = val_dataloader['dataset'] = dataset
test_dataloader = val_dataloader
"""


def write_data(folder: Path) -> None:
    """Noisy images: 8 dark ones, 8 light ones, with a strip of the other kind at the left."""
    rng = np.random.default_rng(0)
    for index in range(16):
        kind = index % 2
        mask = np.full((64, 64), kind, np.uint8)
        mask[:, : rng.integers(8, 24)] = 1 - kind
        image = 80 + 100 * mask[..., None] + rng.normal(0, 10, (64, 64, 3))
        for part, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", mask)):
            file = folder / part / ("dark", "light")[kind] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), pixels)


@pytest.mark.parametrize(("metric", "least"), [("accuracy/top1", 100), ("mIoU", 80)])
def test_a_model_of_another_task_learns_is_tested_and_drawn(metric, least, tmp_path):
    write_data(tmp_path)
    config, work, pictures = (tmp_path / name for name in ("config.py", "work", "pictures"))
    config.write_text((COMMON + CONFIGS[metric] + DATASETS).replace("DATA", str(tmp_path)))
    tool_main(ROOT / "tools/train.py", config, "--work-dir", work)
    tool_main(
        *(ROOT / "tools/test.py", config, work / "epoch_4.pth", "--work-dir", work),
        *("--show-dir", pictures, "--out", tmp_path / "predictions.pkl"),
    )
    assert metrics_of(work)[metric] >= least
    assert (tmp_path / "predictions.pkl").stat().st_size > 0
    assert len([p for p in pictures.rglob("*") if p.suffix in (".png", ".jpg")]) == 16
