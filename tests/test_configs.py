"""Every shipped config: its data pipelines, a training step and a prediction, on small images."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from crossformer_mm.engine.launch import load_config
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.build import build_model

pytestmark = pytest.mark.families

PER_TASK = {"classification": 8 + 1, "detection": 19 + 3, "segmentation": 18 + 2}
LEAVES = sorted(CONFIGS.glob("*/*.py"))
SIDE = 64


def test_how_many_there_are():
    found = {task: len(list((CONFIGS / task).glob("*.py"))) for task in PER_TASK}
    assert found == PER_TASK
    assert len(LEAVES) == sum(PER_TASK.values()) == 51


def shrink(value: object) -> object:
    """Make every image size in a pipeline small: at most ``SIDE`` for the shorter side."""
    if isinstance(value, dict):
        return {
            key: _shrink_size(entry) if key in ("scale", "crop_size", "size") else shrink(entry)
            for key, entry in value.items()
            if key != "scales"
        } | ({"scales": [_shrink_size(s) for s in value["scales"]]} if "scales" in value else {})
    if isinstance(value, (list, tuple)):
        return type(value)(shrink(entry) for entry in value)
    return value


def _shrink_size(size: object) -> object:
    if isinstance(size, int):
        return min(size, SIDE)
    factor = SIDE / min(size)
    return tuple(round(side * factor) for side in size) if factor < 1 else size


def read(config: Path, data_roots: dict[str, Path]) -> Config:
    """A config with small images and the toy data of its task."""
    cfg = load_config(str(config), {"data_root": str(data_roots[config.parent.name])})
    cfg = Config(shrink(cfg.to_dict()), filename=cfg.filename)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    cfg.train_dataloader.batch_size = 2
    cfg.val_dataloader.batch_size = 1
    return cfg


def take_two_images(cfg: Config) -> None:
    """Have all data sets end after two images, and be read without worker processes."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.indices = 2


@lru_cache(maxsize=16)
def first_batch(scope: str, loader: str) -> dict:
    """The first batch of a loader given as text, so that configs that share it share the batch."""
    with DefaultScope.overwrite_default_scope(scope):
        return next(iter(Runner.build_dataloader(Config.fromstring(loader, ".py").loader, seed=0)))


def batch_of(cfg: Config, loader: str) -> dict:
    text = Config(dict(loader=cfg[loader])).pretty_text
    return first_batch(cfg.default_scope, text)


@pytest.mark.parametrize("config", LEAVES, ids=lambda path: path.stem)
def test_it_trains_and_predicts(config, toy_data_roots):
    cfg = read(config, toy_data_roots)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build_model(cfg)).train()
    assert type(model.backbone) is CrossFormer

    inputs = model.data_preprocessor(batch_of(cfg, "train_dataloader"), True)
    loss, _ = model.parse_losses(model(**inputs, mode="loss"))
    assert loss.isfinite() and loss > 0
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters())

    model.eval()
    with torch.no_grad():
        (prediction,) = model.test_step(batch_of(cfg, "val_dataloader"))
    check_prediction(cfg.default_scope, prediction)


def check_prediction(scope: str, prediction: object) -> None:
    if scope == "mmpretrain":
        assert prediction.pred_score.shape == (1000,)
        assert prediction.pred_score.sum() == pytest.approx(1, abs=1e-4)
    elif scope == "mmseg":
        labels = prediction.pred_sem_seg.data
        assert (
            labels.shape == (1, *prediction.ori_shape) and 0 <= labels.min() <= labels.max() < 150
        )
    else:
        boxes = prediction.pred_instances
        assert boxes.bboxes.shape == (len(boxes.scores), 4) and len(boxes.scores) <= 100
        if "masks" in boxes:
            assert boxes.masks.shape == (len(boxes.scores), *prediction.ori_shape)


def test_the_published_group_sizes_of_dense_models():
    groups = {"7s": ((7, 7, 7, 7), (8, 4, 2, 1)), "14s": ((14, 14, 7, 7), (16, 8, 2, 1))}
    for config in LEAVES:
        if config.parent.name == "classification" or "nano" in config.stem:
            continue
        backbone = Config.fromfile(config).model.backbone
        expected = groups["14s" if "-g14_" in config.stem else "7s"]
        assert (tuple(backbone.group_size), tuple(backbone.interval)) == expected, config.stem
        # The rule of every dense checkpoint that the authors published
        assert backbone.get("lda_mode", "fixed_interval") == "fixed_interval", config.stem


def test_plus_plus_classifiers_use_fixed_groups():
    for config in (CONFIGS / "classification").glob("crossformer-*_8xb128_in1k.py"):
        backbone = Config.fromfile(config).model.backbone
        expected = "fixed_group" if "-pp-" in config.stem else None
        assert backbone.get("lda_mode") == expected, config.stem
        assert "group_size" not in backbone and "interval" not in backbone  # the architecture's own


@pytest.mark.parametrize("config", LEAVES, ids=lambda path: path.stem)
def test_the_name_says_the_batch_and_the_data(config):
    cfg = Config.fromfile(config)
    roots = dict(
        classification="data/imagenet/",
        detection="data/coco/",
        segmentation="data/ade/ADEChallengeData2016/",
    )
    toys = dict(
        classification="data/toy_imagenet/",
        detection="data/toy_coco/",
        segmentation="data/toy_ade/",
    )
    is_toy = "_toy-" in config.stem
    assert cfg.data_root == (toys if is_toy else roots)[config.parent.name]
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == cfg.data_root
    if is_toy:
        return
    devices, batch = {"classification": (8, 128), "detection": (8, 2)}.get(
        config.parent.name, (4, 4) if config.stem.startswith("fpn") else (8, 2)
    )
    if "xb" in config.stem:
        assert f"_{devices}xb{batch}" in config.stem
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=devices * batch)
