"""The published training recipes, number by number, against the configs of the two papers.

What the papers leave to the libraries, such as anchors, is as in mmdet's and mmseg's own configs.
"""

import json
import re
from functools import cache
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import CONFIGS
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from crossformer_mm import CrossFormer
from crossformer_mm.models.architectures import ARCH_ZOO, SHORT_NAMES

# embed_dims, depths, num_heads, drop_path_rate
ARCHITECTURES = {
    "tiny": (64, (1, 1, 8, 6), (2, 4, 8, 16), 0.1),
    "small": (96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "base": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "large": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "pp-small": (64, (2, 2, 18, 2), (2, 4, 8, 16), 0.2),
    "pp-base": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "pp-large": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "pp-huge": (128, (6, 6, 18, 2), (4, 8, 16, 32), 0.5),
}
GROUPS = {
    "7s": dict(group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1)),
    "14s": dict(group_size=(14, 14, 7, 7), interval=(16, 8, 2, 1)),
    "++": dict(group_size=(4, 4, 14, 7), interval=(4, 2, 1, 1)),
}
# An entry says all that a config has below that name; null is for what it must not have.
RECIPES = yaml.safe_load("""
load: &load {type: LoadImageFromFile}
flip: &flip {type: RandomFlip, prob: 0.5}
colours: &colours {mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375]}
bicubic: &bicubic {backend: pillow, interpolation: bicubic}

in1k:
  auto_scale_lr.base_batch_size: 1024
  train_dataloader.batch_size: 128
  optim_wrapper.type: AmpOptimWrapper
  optim_wrapper.optimizer: {type: AdamW, lr: 0.001, weight_decay: 0.05}
  optim_wrapper.clip_grad: {max_norm: 5.0}
  data_preprocessor: {num_classes: 1000, to_rgb: true, <<: *colours}
  model: {type: ImageClassifier, neck: {type: GlobalAveragePooling}}
  model.head: {type: LinearClsHead, num_classes: 1000, cal_acc: false,
               init_cfg: {type: TruncNormal, layer: Linear, std: 0.02, bias: 0.0},
               loss: {type: LabelSmoothLoss, label_smooth_val: 0.1, mode: original}}
  model.train_cfg: {augments: [{type: Mixup, alpha: 0.8}, {type: CutMix, alpha: 1.0}]}
  train_dataloader.dataset.pipeline: # of images in OpenCV's order of colours
  - *load
  - {type: RandomResizedCrop, scale: 224, <<: *bicubic}
  - {type: RandomFlip, prob: 0.5, direction: horizontal}
  - {type: RandAugment, policies: timm_increasing, num_policies: 2, total_level: 10,
     magnitude_level: 9, magnitude_std: 0.5,
     hparams: {pad_val: [104, 116, 124], interpolation: bicubic}}
  - {type: RandomErasing, erase_prob: 0.25, mode: rand, min_area_ratio: 0.02,
     max_area_ratio: 0.3333333333333333,
     fill_color: [103.53, 116.28, 123.675], fill_std: [57.375, 57.12, 58.395]}
  - {type: PackInputs}
  test_dataloader.dataset.pipeline:
    [*load, {type: ResizeEdge, scale: 256, edge: short, <<: *bicubic},
     {type: CenterCrop, crop_size: 224}, {type: PackInputs}]

dense: &dense
  auto_scale_lr.base_batch_size: 16
  train_dataloader.batch_size: 2
  optim_wrapper.type: OptimWrapper
  optim_wrapper.optimizer: {type: AdamW, lr: 0.0001, weight_decay: 0.0001}
  optim_wrapper.clip_grad: null
1x: &coco
  <<: *dense
  model.data_preprocessor: {type: DetDataPreprocessor, bgr_to_rgb: true, pad_mask: true,
                            pad_size_divisor: 32, <<: *colours}
  train_dataloader.dataset.pipeline:
    [*load, &boxes {type: LoadAnnotations, with_bbox: true, with_mask: true},
     &resize {type: Resize, scale: [1333, 800], keep_ratio: true}, *flip, {type: PackDetInputs}]
  test_dataloader.dataset.pipeline:
    [*load, *resize, *boxes, {type: PackDetInputs,
      meta_keys: [img_id, img_path, ori_shape, img_shape, scale_factor]}]
ms-crop-3x:
  <<: *coco
  optim_wrapper.optimizer: {type: AdamW, lr: 0.0001, weight_decay: 0.05}
  train_dataloader.dataset.pipeline:
  - *load
  - *boxes
  - *flip
  - type: RandomChoice
    transforms:
    - - &sizes {type: RandomChoiceResize, keep_ratio: true, scales: [
          [480, 1333], [512, 1333], [544, 1333], [576, 1333], [608, 1333], [640, 1333],
          [672, 1333], [704, 1333], [736, 1333], [768, 1333], [800, 1333]]}
    - - {<<: *sizes, scales: [[400, 1333], [500, 1333], [600, 1333]]}
      - {type: RandomCrop, crop_type: absolute_range, crop_size: [384, 600],
         allow_negative_crop: true}
      - *sizes
  - {type: PackDetInputs}
4conv1fc-giou: {type: ConvFCBBoxHead, num_shared_convs: 4, num_shared_fcs: 1,
                conv_out_channels: 256, norm_cfg: {type: SyncBN, requires_grad: true},
                reg_class_agnostic: false, reg_decoded_bbox: true,
                loss_bbox: {type: GIoULoss, loss_weight: 10.0}}

4xb4-80k: &ade
  <<: *dense
  train_dataloader.batch_size: 4
  model.data_preprocessor: {type: SegDataPreProcessor, bgr_to_rgb: true, size: [512, 512],
                            pad_val: 0, seg_pad_val: 255, <<: *colours}
  model.test_cfg: {mode: whole}
  model.decode_head.num_classes: 150
  train_dataloader.dataset.pipeline:
  - *load
  - &labels {type: LoadAnnotations}
  - &check {type: CheckSegLabels}
  - {type: RandomResize, scale: [2048, 512], ratio_range: [0.5, 2.0], keep_ratio: true}
  - {type: RandomCrop, crop_size: [512, 512], cat_max_ratio: 0.75}
  - *flip
  - {type: PhotoMetricDistortion}
  - &pack {type: PackSegInputs}
  test_dataloader.dataset.pipeline:
    [*load, &full {type: Resize, scale: [2048, 512], keep_ratio: true},
     &multiple {type: ResizeToMultiple, size_divisor: 32}, *labels, *check, *pack]
  tta_pipeline.1.transforms:
    [[{<<: *full, scale: [1024, 256]}, {<<: *full, scale: [1536, 384]}, *full,
      {<<: *full, scale: [2560, 640]}, {<<: *full, scale: [3072, 768]},
      {<<: *full, scale: [3584, 896]}], [*multiple],
     [{type: RandomFlip, prob: 0.0}, {type: RandomFlip, prob: 1.0}], [*labels], [*check], [*pack]]
8xb2-160k:
  <<: *ade
  train_dataloader.batch_size: 2
  optim_wrapper.optimizer: {type: AdamW, lr: 0.00006, weight_decay: 0.01, betas: [0.9, 0.999]}
  model.auxiliary_head: {type: FCNHead, num_classes: 150, in_index: 2, channels: 256,
                         loss_decode: {loss_weight: 0.4}}
""")
# Iterations (of epochs of 10, 600, 600), those of warm-up, the factor of the learning rate that it
# begins with, and the factor at iteration i after it
SCHEDULES = {
    "in1k": (3000, 200, 1e-3, lambda i: 0.505 + 0.495 * np.cos(np.pi * (i - 200) / 2800)),
    "1x": (7200, 500, 1e-3, lambda i: 10.0 ** -((i >= 4800) + 1.0 * (i >= 6600))),
    "ms-crop-3x": (21600, 1000, 1e-3, lambda i: 10.0 ** -((i >= 16200) + 1.0 * (i >= 19800))),
    "4xb4-80k": (80000, 0, 1, lambda i: (1 - i / 79999) ** 0.9),
    "8xb2-160k": (160000, 1500, 1e-6, lambda i: 1 - (i - 1500) / 158499),
}
NOT_DECAYED = {"in1k": ("norm", "bias"), "ms-crop-3x": ("norm",), "8xb2-160k": ("norm",)}


def flat(value: object, name: str = "") -> dict:
    """Every number and word in nested dicts and sequences, by a name such as ``.a.b.0.c``."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, entry in value.items() for k, v in flat(entry, f"{name}.{key}").items()}


def check(config: Path, name: str, model: dict, without: tuple[str, ...] = ()) -> None:
    """Compare a config with a recipe and the rest of its model, but for entries ``without``."""
    cfg, recipe = Config.fromfile(config), dict(RECIPES[name])
    recipe["val_dataloader.dataset.pipeline"] = recipe["test_dataloader.dataset.pipeline"]
    expected = flat({"model": model}) | flat(recipe)
    expected = {k: v for k, v in expected.items() if not k.endswith(without)}
    prefixes = tuple(f".{key}." for key in ("model", *recipe))
    found = {k: v for k, v in flat(cfg.to_dict()).items() if f"{k}.".startswith(prefixes)}
    wrong = [k for k in found | expected if found.get(k) != expected.get(k)]
    assert not wrong, [f"{k} is {found.get(k)}, not {expected.get(k)}" for k in wrong]

    training = json.dumps({k: cfg[k] for k in ("optim_wrapper", "param_scheduler", "train_cfg")})
    optimizer, (iterations, warm, first, later) = recipe["optim_wrapper.optimizer"], SCHEDULES[name]
    i = np.arange(iterations)
    factors = np.where(i < warm, first + (1 - first) * i / (warm - 1), later(i.clip(warm)))
    rates = learning_rates(training, {"in1k": 10}.get(name, 600))
    np.testing.assert_allclose(rates, optimizer["lr"] * factors, 1e-3, 1e-12)
    assert weight_decays(training) == {
        kind: {0 if kind in NOT_DECAYED.get(name, ()) else optimizer["weight_decay"]}
        for kind in ("weight", "bias", "norm")
    }


def build_wrapper(cfg: Config, model: nn.Module) -> OptimWrapper:
    return build_optim_wrapper(model, {**cfg.optim_wrapper, "type": "OptimWrapper"})


@cache
def learning_rates(training: str, epoch: int) -> np.ndarray:
    """The learning rate at every iteration; schedules by epoch step at the ends of epochs."""
    cfg = Config(json.loads(training))
    wrapper = build_wrapper(cfg, nn.Linear(2, 2))
    arguments = dict(optimizer=wrapper, epoch_length=epoch)
    schedulers = [PARAM_SCHEDULERS.build(s, default_args=arguments) for s in cfg.param_scheduler]
    rates = []
    for i in range(cfg.train_cfg.get("max_iters") or cfg.train_cfg.max_epochs * epoch):
        rates.append(wrapper.param_groups[0]["lr"])
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % epoch == 0:
                scheduler.step()
    return np.array(rates)


@cache
def weight_decays(training: str) -> dict[str, set]:
    """The weight decays of weights, of biases, and of norms with their biases."""
    arch = dict(embed_dims=32, depths=(1, 1, 4, 1), num_heads=(1, 2, 4, 8), amplitude_cooling=True)
    model = CrossFormer(arch, group_size=7, interval=(8, 4, 2, 1), final_norm=True)
    model.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    groups = build_wrapper(Config(json.loads(training)), model).param_groups
    assert len({group["lr"] for group in groups}) == 1
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found: dict[str, set] = dict(weight=set(), bias=set(), norm=set())
    for module in model.modules():
        for p in module.parameters(recurse=False):
            kind = "norm" if module.weight.ndim == 1 else "bias" if p.ndim == 1 else "weight"
            found[kind].add(decay_of[id(p)])
    return found


def shipped(task: str) -> list:
    """Every config of a task but those for toy data and of test_query_heads.py."""
    configs = sorted((CONFIGS / task).glob("*.py"))
    others = re.compile("_toy-|^dino|^mask2former")
    return [pytest.param(c, id=c.stem) for c in configs if not others.search(c.stem)]


def model_like(base: str, arch: str, groups: str | None) -> tuple[dict, list[int]]:
    """The model of a library's config over a CrossFormer, and the channels of its four maps."""
    library, name = base.split("/")
    folder = Path(find_spec(library).origin).parent / ".mim/configs/_base_/models"
    model = Config.fromfile(folder / name).model.to_dict()
    del model["data_preprocessor"]
    arch = SHORT_NAMES[arch]
    model["backbone"] = dict(type="CrossFormer", arch=arch, **GROUPS["14s" if groups else "7s"])
    return model, [ARCHITECTURES[arch][0] * 2**stage for stage in range(4)]


def test_the_architectures_are_the_published_ones():
    names = ("embed_dims", "depths", "num_heads", "drop_path_rate")
    for arch, values in ARCHITECTURES.items():
        plus_plus = "pp" in arch
        expected = dict(zip(names, values, strict=True), **GROUPS["++" if plus_plus else "7s"])
        assert ARCH_ZOO[arch] == {**expected, "amplitude_cooling": plus_plus}
    assert ARCH_ZOO.keys() == ARCHITECTURES.keys()
    # The rule of the published dense models, unless a config says another
    assert signature(CrossFormer).parameters["lda_mode"].default == "fixed_interval"


@pytest.mark.parametrize("config", shipped("classification"))
def test_a_classifier_follows_its_recipe(config):
    arch, recipe = re.fullmatch(r"crossformer-([a-z-]+)_8xb128_(in1k)", config.stem).groups()
    backbone = dict(type="CrossFormer", arch=arch, out_indices=(3,), final_norm=True)
    backbone |= dict(lda_mode="fixed_group") if "pp" in arch else {}
    check(config, recipe, {"backbone": backbone, "head.in_channels": 8 * ARCHITECTURES[arch][0]})


@pytest.mark.parametrize("config", shipped("detection"))
def test_a_detector_follows_its_recipe(config):
    name = r"([a-z-]+)_crossformer-((?:pp-)?\w)(-g14)?_fpn(_4conv1fc-giou)?_(\S+)_coco"
    detector, arch, groups, giou, recipe = re.fullmatch(name, config.stem).groups()
    model, channels = model_like(f"mmdet/{detector}_r50_fpn.py", arch, groups)
    model["neck"]["in_channels"] = channels
    if giou:
        for head in model["roi_head"]["bbox_head"]:
            head.update(RECIPES["4conv1fc-giou"])
    if detector != "retinanet":
        return check(config, recipe, model)
    # The finest map feeds no head, so the neck is not given it.
    model["neck"]["in_channels"], model["backbone"]["out_indices"] = channels[1:], (1, 2, 3)
    check(config, recipe, model, without=("neck.start_level", "pad_mask", "with_mask"))


@pytest.mark.parametrize("config", shipped("segmentation"))
def test_a_segmentor_follows_its_recipe(config):
    name = r"(fpn|upernet)_crossformer-((?:pp-)?\w)(-g14)?_(\w+-\w+)_ade20k-512x512"
    segmentor, arch, groups, recipe = re.fullmatch(name, config.stem).groups()
    model, channels = model_like(f"mmseg/{segmentor}_r50.py", arch, groups)
    model["neck" if segmentor == "fpn" else "decode_head"]["in_channels"] = channels
    if segmentor == "upernet":
        model["auxiliary_head"]["in_channels"] = channels[2]
    check(config, recipe, model, without=("model.pretrained",))
