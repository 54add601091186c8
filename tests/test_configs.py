"""Every shipped config builds, and one of each recipe trains and is tested."""

import pytest
from conftest import CONFIGS
from mmengine.config import Config

from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.runner import build_runner
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.build import build_on_meta

pytestmark = pytest.mark.families

LEAVES = sorted(CONFIGS.glob("*/*.py"))
DATA = {
    "classification": ("data/imagenet/", "data/toy_imagenet/"),
    "detection": ("data/coco/", "data/toy_coco/"),
    "segmentation": ("data/ade/ADEChallengeData2016/", "data/toy_ade/"),
}
# A config of each recipe; test_docs.py trains one of COCO 1x.
TRAINED = (
    "classification/crossformer-small_8xb128_in1k",
    "detection/mask-rcnn_crossformer-s-g14_fpn_ms-crop-3x_coco",
    "detection/cascade-mask-rcnn_crossformer-nano_fpn_4conv1fc-giou_toy-coco",
    "segmentation/fpn_crossformer-pp-s-g14_4xb4-80k_ade20k-512x512",
    "segmentation/upernet_crossformer-pp-s_8xb2-160k_ade20k-512x512",
)
METRICS = dict(classification="accuracy/top1", detection="coco/bbox_mAP", segmentation="mIoU")
# What a test can wait for: the shorter side of images, boxes that heads learn from and predict
SIDE = 64
FEWER = dict(num=16, nms_pre=20, max_per_img=20, score_thr=0.0)


def shrink(value: object, key: str = "") -> object:
    """Make images small in every pipeline of a config's dict, and boxes few."""
    if key in ("scale", "crop_size", "size"):
        sides = [value] if isinstance(value, int) else value
        factor = min(1, SIDE / min(sides))
        sides = tuple(round(side * factor) for side in sides)
        return sides[0] if isinstance(value, int) else sides
    if key in FEWER:
        return min(value, FEWER[key])
    if isinstance(value, dict):
        return {name: shrink(entry, name) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [shrink(entry, "scale" if key == "scales" else "") for entry in value]
    return value


def take_two_images(cfg: Config) -> None:
    """Have all data sets end after two images, and be read without worker processes."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.indices = 2


@pytest.mark.parametrize("config", LEAVES, ids=lambda path: path.stem)
def test_it_is_short_builds_and_reads_all_its_data_below_one_folder(config):
    cfg, is_toy = Config.fromfile(config), "_toy-" in config.stem
    assert type(build_on_meta(cfg).backbone) is CrossFormer
    assert cfg.data_root == DATA[config.parent.name][is_toy]
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == cfg.data_root
    assert len(config.read_text().splitlines()) <= (80 if is_toy else 15), "on top of its recipe"


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_and_is_tested(name, toy_data_roots, tmp_path):
    task = name.split("/")[0]
    cfg = load_config(
        str(CONFIGS / f"{name}.py"), {"data_root": str(toy_data_roots[task])}, str(tmp_path)
    )
    cfg = Config(shrink(cfg.to_dict()), filename=cfg.filename)
    take_two_images(cfg)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None

    runner = build_runner(cfg, "none", all_weights_needed=False)
    runner.train()
    learned = runner.optim_wrapper.optimizer.state
    assert {n for n, p in runner.model.named_parameters() if p not in learned} == set()
    assert METRICS[task] in runner.test()
