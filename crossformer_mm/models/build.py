"""Build the model of a config, with weights or without memory for them."""

from copy import deepcopy

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model as mmengine's runner does, from the scope that the config names."""
    model_cfg = deepcopy(cfg.model)  # mmdet's DETRs write into theirs
    if "data_preprocessor" in cfg:
        model_cfg.setdefault("data_preprocessor", cfg.data_preprocessor)
    with MODELS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
        return registry.build(model_cfg)


def build_on_meta(cfg: Config) -> nn.Module:
    """Build a config's model without memory for its weights, in evaluation mode.

    Models that compute with numbers from tensors while they are built, as Swin does, take memory
    until they are built.
    """
    try:
        with torch.device("meta"):
            model = build_model(cfg)
    except RuntimeError:
        model = build_model(cfg).to("meta")
    model.eval()  # mmdet's Swin returns None here
    return model


def image_channels(cfg: Config) -> int:
    """The number of channels of the images that a config's backbone takes."""
    return cfg.model.backbone.get("in_channels", 3)
