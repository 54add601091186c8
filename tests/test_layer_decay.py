"""Layer-wise learning rate decay in the models of all three libraries, as the docs say it."""

import re

import pytest
from conftest import ROOT
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from test_bad_data import CONFIG_OF
from torch import nn

from crossformer_mm import CrossFormer, CrossFormerLayerDecayConstructor
from crossformer_mm.engine.amp import CPUAmpOptimWrapper
from crossformer_mm.engine.config import load_config

NANO_DEPTHS = (1, 1, 2, 2)
ADAMW = dict(type="AdamW", lr=1e-3, weight_decay=0.1)


def expected_scale(name: str, decay_rate: float) -> float:
    """The factor of a parameter's learning rate, from the authors' names of parameters."""
    depth = sum(NANO_DEPTHS)
    if "backbone.patch_embed." in name:
        return decay_rate ** (depth + 1)
    if block := re.search(r"backbone\.layers\.(\d)\.blocks\.(\d)\.", name):
        stage, index = map(int, block.groups())
        return decay_rate ** (depth + 1 - (sum(NANO_DEPTHS[:stage]) + index + 1))
    if downsample := re.search(r"backbone\.layers\.(\d)\.downsample\.", name):
        return decay_rate ** (depth + 1 - sum(NANO_DEPTHS[: int(downsample[1]) + 1]))
    return 1.0


@pytest.mark.parametrize("task", CONFIG_OF)
def test_layer_decay_in_every_library(tmp_path, task):
    page = (ROOT / "docs/training.md").read_text()
    lines = re.search(r"^## Layer decay\n.*?```python\n(.*?)```", page, re.M | re.S)[1]
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = {str(CONFIG_OF[task])!r}\n{lines}")
    cfg = load_config(str(path))
    if cfg.optim_wrapper.type == "AmpOptimWrapper":  # mmengine's needs a GPU
        cfg.optim_wrapper.type = CPUAmpOptimWrapper
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(groups) == len(names)
    for name, parameter in names.items():
        group = groups[id(parameter)]
        expected = cfg.optim_wrapper.optimizer.lr * expected_scale(name, 0.8)
        assert group["lr"] == pytest.approx(expected, rel=1e-9), name
        decay = cfg.optim_wrapper.optimizer.weight_decay if parameter.ndim > 1 else 0.0
        assert group["weight_decay"] == decay, name
    assert {expected_scale(name, 0.8) for name in names} == {0.8**i for i in range(8)} | {1.0}


def layer_decay(model: nn.Module, optimizer: dict = ADAMW, **paramwise: object) -> OptimWrapper:
    return CrossFormerLayerDecayConstructor(dict(optimizer=optimizer), paramwise)(model)


def tiny_model() -> nn.Module:
    arch = dict(embed_dims=16, depths=NANO_DEPTHS, num_heads=(1, 1, 2, 2))
    backbone = CrossFormer(arch, group_size=4, interval=1, final_norm=True, frozen_stages=1)
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(128, 2)))


def test_layer_decay_keeps_the_other_options_by_parameter():
    model = tiny_model()
    keys = {"head.weight": dict(lr_mult=10), "layers.3.blocks.1": dict(lr_mult=2, decay_mult=3)}
    wrapper = layer_decay(model, decay_rate=0.5, norm_decay_mult=1.0, custom_keys=keys)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group["params"]}
    backbone, head = model["backbone"], model["head"]
    for parameter, rate, weight_decay in (
        (head.weight, 1e-2, 0.1),
        (head.bias, 1e-3, 0),
        (backbone.layers[3].blocks[1].norm1.weight, 1e-3 * 2 * 0.5, 0.3),
        (backbone.norm.weight, 1e-3, 0.1),
    ):
        assert groups[id(parameter)]["lr"] == pytest.approx(rate)
        assert groups[id(parameter)]["weight_decay"] == pytest.approx(weight_decay)
    assert id(backbone.patch_embed.norm.weight) not in groups, "frozen"


def test_layer_decay_acts_without_weight_decay():
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9)
    groups = layer_decay(tiny_model(), optimizer, decay_rate=0.5).optimizer.param_groups
    assert len({group["lr"] for group in groups}) == sum(NANO_DEPTHS[1:]) + 1
    assert all("weight_decay" not in group or group["weight_decay"] == 0 for group in groups)


@pytest.mark.parametrize("decay_rate", [None, 0, -0.5, 1.5, "0.8", True])
def test_a_wrong_decay_rate_is_named(decay_rate):
    paramwise = {} if decay_rate is None else dict(decay_rate=decay_rate)
    with pytest.raises(ValueError, match=rf"decay_rate must be .*not {decay_rate!r}"):
        layer_decay(tiny_model(), **paramwise)


def test_layer_decay_needs_a_crossformer_and_a_learning_rate():
    with pytest.raises(ValueError, match="no CrossFormer"):
        layer_decay(nn.Linear(2, 2), decay_rate=0.8)
    with pytest.raises(ValueError, match="learning rate"):
        layer_decay(tiny_model(), dict(type="AdamW"), decay_rate=0.8)
