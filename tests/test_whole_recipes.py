"""A config of every recipe through the tools: train, be tested, go on."""

from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT, SMALL_ARCH, metrics_of, tool_main
from mmengine.config import Config
from test_configs import read, take_two_images

from crossformer_mm.checkpoints.reader import load_file

CHANNELS = [16, 32, 64, 128]
# A config of each recipe, and a metric of its evaluation; test_readme.py runs those of COCO 1x.
RECIPES = {
    "classification/crossformer-small_8xb128_in1k": "accuracy/top1",
    "detection/mask-rcnn_crossformer-s-g14_fpn_ms-crop-3x_coco": "coco/segm_mAP",
    "segmentation/fpn_crossformer-s_4xb4-80k_ade20k-512x512": "mIoU",
    "segmentation/upernet_crossformer-s_8xb2-160k_ade20k-512x512": "mIoU",
}


def use_small_backbone(cfg: Config) -> None:
    """Exchange the architecture, and the channels that the other parts expect."""
    backbone = cfg.model.backbone
    backbone.update(arch=SMALL_ARCH, group_size=None, interval=None)
    returned = [CHANNELS[i] for i in backbone.get("out_indices", range(4))]
    for name in ("neck", "decode_head", "head"):
        part = cfg.model.get(name) or {}
        if name != "decode_head" or "neck" not in cfg.model:
            if isinstance(part.get("in_channels"), list | tuple):
                part["in_channels"] = returned
            elif name == "head":
                part["in_channels"] = returned[-1]
    if "auxiliary_head" in cfg.model:
        cfg.model.auxiliary_head.in_channels = CHANNELS[cfg.model.auxiliary_head.in_index]


def predict_few_boxes(cfg: Config) -> None:
    """Let a detector be quick, and sure of something even if it has learned nothing."""
    for entry in (cfg.model.get("train_cfg") or {}, cfg.model.get("test_cfg") or {}):
        for part in (entry, *entry.values()):
            if isinstance(part, dict):
                for limit in ("max_per_img", "nms_pre"):
                    part.update({limit: 10} if limit in part else {})
                part.update(dict(score_thr=0.0) if "score_thr" in part else {})


def write_config(path: Path, cfg: Config, length: int) -> Path:
    """Write the config for so many epochs or iterations, with a checkpoint after each."""
    by_epoch = "max_epochs" in cfg.train_cfg
    cfg.train_cfg["max_epochs" if by_epoch else "max_iters"] = length
    cfg.train_cfg.val_interval = 100
    cfg.default_hooks.checkpoint.interval = 1
    take_two_images(cfg)
    cfg.dump(path)
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_is_tested_and_goes_on(name, toy_data_roots, monkeypatch, tmp_path):
    cfg = read(CONFIGS / f"{name}.py", toy_data_roots)
    use_small_backbone(cfg)
    predict_few_boxes(cfg)
    unit = "epoch" if "max_epochs" in cfg.train_cfg else "iter"
    train = (monkeypatch, ROOT / "tools/train.py")
    work_dir = ("--work-dir", tmp_path / "work")

    tool_main(*train, write_config(tmp_path / "one.py", cfg, 1), *work_dir)
    first = load_file(tmp_path / f"work/{unit}_1.pth")
    tool_main(*train, write_config(tmp_path / "two.py", cfg, 2), *work_dir, "--resume")
    second = load_file(tmp_path / f"work/{unit}_2.pth")
    assert second["meta"]["iter"] == first["meta"]["iter"] + 1
    for before, after in zip(first["param_schedulers"], second["param_schedulers"], strict=True):
        assert after["_global_step"] >= before["_global_step"]
    assert any((first["state_dict"][n] != w).any() for n, w in second["state_dict"].items())

    test = (monkeypatch, ROOT / "tools/test.py", tmp_path / "two.py")
    tool_main(*test, tmp_path / f"work/{unit}_2.pth", "--work-dir", tmp_path / "test")
    assert RECIPES[name] in metrics_of(tmp_path / "test")
