"""The optimizers and schedules that the configs build, against the recipes of the papers."""

from pathlib import Path

import pytest
import torch
from conftest import CONFIGS
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from crossformer_mm import CrossFormer
from crossformer_mm.engine.launch import replace_gpu_only_parts

CLASSIFICATION = "classification/crossformer-small_8xb128_in1k"
DETECTION_1X = "detection/mask-rcnn_crossformer-s_fpn_1x_coco"
DETECTION_3X = "detection/mask-rcnn_crossformer-s-g14_fpn_ms-crop-3x_coco"
SEMANTIC_FPN = "segmentation/fpn_crossformer-s_4xb4-80k_ade20k-512x512"
UPERNET = "segmentation/upernet_crossformer-s_8xb2-160k_ade20k-512x512"
ARCH = dict(embed_dims=32, depths=(1, 1, 4, 1), num_heads=(1, 2, 4, 8), amplitude_cooling=True)


def read(name: str) -> Config:
    return Config.fromfile(CONFIGS / f"{name}.py")


def build_wrapper(cfg: Config, model: nn.Module):
    cfg.optim_wrapper.type = "OptimWrapper"
    cfg.optim_wrapper.pop("loss_scale", None)
    return build_optim_wrapper(model, cfg.optim_wrapper)


def learning_rates(cfg: Config, iterations_per_epoch: int) -> list[float]:
    """The learning rate at every iteration; schedules by epoch step at the ends of epochs."""
    wrapper = build_wrapper(cfg, nn.Linear(2, 2))
    schedulers = [
        PARAM_SCHEDULERS.build(
            scheduler, default_args=dict(optimizer=wrapper, epoch_length=iterations_per_epoch)
        )
        for scheduler in cfg.param_scheduler
    ]
    total = cfg.train_cfg.get("max_iters") or cfg.train_cfg.max_epochs * iterations_per_epoch
    rates = []
    for iteration in range(total):
        rates.append(wrapper.param_groups[0]["lr"])
        for scheduler in schedulers:
            if not scheduler.by_epoch or (iteration + 1) % iterations_per_epoch == 0:
                scheduler.step()
    return rates


def test_classification_warms_up_and_decays_by_iteration():
    cfg, epoch = read(CLASSIFICATION), 10
    rates = learning_rates(cfg, epoch)
    assert len(rates) == 300 * epoch
    # Per 512 images: from 5e-7 up to 5e-4 in 20 epochs, down to 5e-6; the batch is 1024.
    assert rates[0] == pytest.approx(2 * 5e-7)
    assert rates[20 * epoch] == pytest.approx(2 * 5e-4)
    assert rates[-1] == pytest.approx(2 * 5e-6, rel=1e-2)
    warmup, decay = rates[: 20 * epoch], rates[20 * epoch :]
    assert all(a < b for a, b in zip(warmup, warmup[1:], strict=False))
    assert all(a > b for a, b in zip(decay, decay[1:], strict=False))
    assert decay[140 * epoch] == pytest.approx((2 * 5e-4 + 2 * 5e-6) / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "epochs", "warmup", "drops"),
    [(DETECTION_1X, 12, 500, (8, 11)), (DETECTION_3X, 36, 1000, (27, 33))],
)
def test_detection_steps_down_twice(name, epochs, warmup, drops):
    epoch = 600
    rates = learning_rates(read(name), epoch)
    assert len(rates) == epochs * epoch
    assert rates[0] == pytest.approx(1e-7)
    assert rates[warmup - 2] < rates[warmup] == pytest.approx(1e-4)
    for iteration in range(warmup, len(rates), 100):
        passed = sum(iteration >= drop * epoch for drop in drops)
        assert rates[iteration] == pytest.approx(1e-4 / 10**passed)


def test_semantic_fpn_decays_as_a_polynomial():
    rates = learning_rates(read(SEMANTIC_FPN), 1)
    assert len(rates) == 80000
    for iteration in (0, 1, 20000, 40000, 79999):
        expected = 1e-4 * (1 - iteration / 80000) ** 0.9
        assert rates[iteration] == pytest.approx(expected, abs=1e-8)


def test_upernet_warms_up_and_decays_linearly():
    rates = learning_rates(read(UPERNET), 1)
    assert len(rates) == 160000
    assert rates[0] == pytest.approx(6e-11) and rates[1500] == pytest.approx(6e-5)
    middle = 1500 + (160000 - 1500) // 2
    assert rates[middle] == pytest.approx(3e-5, rel=1e-3) and rates[-1] < 1e-9


def is_norm(name: str) -> bool:
    """Whether a backbone's parameter belongs to a LayerNorm, judged by the authors' names."""
    parts = name.split(".")
    if any(part.startswith("norm") or part == "ex_ln" for part in parts):
        return True
    return parts[-3].startswith("pos") and parts[-2] == "0"  # pos1.0, pos2.0, pos3.0


@pytest.mark.parametrize(
    ("name", "decay", "exempt"),
    [
        (CLASSIFICATION, 0.05, lambda name, p: p.ndim == 1),
        (DETECTION_1X, 1e-4, lambda name, p: False),
        (DETECTION_3X, 0.05, lambda name, p: is_norm(name)),
        (SEMANTIC_FPN, 1e-4, lambda name, p: False),
        (UPERNET, 0.01, lambda name, p: is_norm(name)),
    ],
)
def test_weight_decay(name, decay, exempt):
    model = CrossFormer(ARCH, group_size=7, interval=(8, 4, 2, 1), final_norm=True)
    wrapper = build_wrapper(read(name), model)
    decay_of = {
        id(p): group["weight_decay"] for group in wrapper.param_groups for p in group["params"]
    }
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    parameters = dict(model.named_parameters())
    assert any(is_norm(n) for n in parameters) and any("ex_ln" in n for n in parameters)
    for parameter_name, parameter in parameters.items():
        expected = 0 if exempt(parameter_name, parameter) else decay
        assert decay_of[id(parameter)] == expected, parameter_name


def test_details_of_the_recipes():
    classification = read(CLASSIFICATION)
    assert classification.optim_wrapper.type == "AmpOptimWrapper"
    assert classification.optim_wrapper.clip_grad == dict(max_norm=5.0)
    assert "clip_grad" not in read(DETECTION_1X).optim_wrapper
    upernet = read(UPERNET)
    assert tuple(upernet.optim_wrapper.optimizer.betas) == (0.9, 0.999)
    auxiliary = upernet.model.auxiliary_head
    assert (auxiliary.in_index, auxiliary.channels) == (2, 256)
    assert auxiliary.loss_decode.loss_weight == 0.4


@pytest.mark.parametrize(
    "name",
    [
        SEMANTIC_FPN,
        UPERNET,
        "detection/cascade-mask-rcnn_crossformer-s-g14_fpn_4conv1fc-giou_ms-crop-3x_coco",
    ],
)
def test_sync_bn_is_in_the_recipe_and_gives_way_on_several_cpu_processes(name):
    cfg = read(name)
    assert "'SyncBN'" in str(cfg.model)
    assert replace_gpu_only_parts(cfg) == [] and "'SyncBN'" in str(cfg.model)
    cfg.launcher = "pytorch"
    (line,) = replace_gpu_only_parts(cfg)
    assert line.startswith("BN replaces SyncBN")
    assert "'SyncBN'" not in str(cfg.model) and "'BN'" in str(cfg.model)


def test_mixed_precision_gives_way_without_a_gpu():
    cfg = read(CLASSIFICATION)
    (line,) = replace_gpu_only_parts(cfg)
    assert line.startswith("Training in float32")
    wrapper = build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)
    assert type(wrapper).__name__ == "OptimWrapper"


def test_mixed_precision_of_classification_is_switched_off_by_the_wrappers_type():
    cfg = Config.fromfile(CONFIGS / "classification/crossformer-tiny_8xb128_in1k.py")
    cfg.merge_from_dict({"optim_wrapper.type": "OptimWrapper"})
    wrapper = build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)
    assert type(wrapper) is OptimWrapper


def test_multi_scale_testing_covers_the_published_ratios():
    for path in sorted((CONFIGS / "segmentation").glob("*512x512.py")):
        transforms = Config.fromfile(path).tta_pipeline[1].transforms
        scales = [tuple(resize.scale) for resize in transforms[0]]
        expected = [(2048 * r / 4, 512 * r / 4) for r in (2, 3, 4, 5, 6, 7)]
        assert scales == expected, path.stem
        assert [t.type for group in transforms for t in group].count("ResizeToMultiple") == 1
        assert sorted(flip.prob for flip in transforms[2]) == [0, 1]


def test_leaf_configs_are_short():
    for path in CONFIGS.glob("*/*.py"):
        limit = 80 if "nano" in path.stem else 15
        assert len(Path(path).read_text().splitlines()) <= limit, path.stem
