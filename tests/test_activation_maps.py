"""Class activation maps by the grad-cam package, as mmpretrain's vis_cam.py draws them."""

import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIGS
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_model


def channels_first(x: torch.Tensor) -> torch.Tensor:
    """The ``reshape_transform`` of docs/backbone.md."""
    return x.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    cfg = load_config(str(CONFIGS / "classification/crossformer-nano_toy-imagenet.py"))
    model = build_model(cfg).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def cam_by_hand(model: nn.Module, layer: nn.Module, image: torch.Tensor, label: int) -> np.ndarray:
    """Selvaraju et al., equations 1 and 2, on a map (B, H, W, C) or (B, C, H, W)."""
    kept = []
    hook = layer.register_forward_hook(lambda module, inputs, out: kept.append(out))
    score = model(image)[0, label]
    hook.remove()
    [features] = kept
    [grads] = torch.autograd.grad(score, [features])
    if features.shape[1] == features.shape[2] != features.shape[3]:  # channels last
        features, grads = channels_first(features), channels_first(grads)
    cam = (grads.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)[0].relu()
    cam = cam.detach().numpy()
    return (cam - cam.min()) / (cam.max() - cam.min() + 1e-7)


@pytest.mark.parametrize("layer", ["norm", "layers.3.blocks.0.norm2", "layers.2.blocks.1"])
def test_activation_maps_are_those_of_the_formula(classifier, layer):
    image = torch.randn(1, 3, 224, 224)
    module = classifier.backbone.get_submodule(layer)
    transform = None if layer == "norm" else channels_first
    cam = GradCAM(classifier, [module], reshape_transform=transform)
    side = 7 if layer != "layers.2.blocks.1" else 14
    found = cam(image, [ClassifierOutputTarget(3)])[0]
    expected = cam_by_hand(classifier, module, image, 3)
    assert expected.shape == (side, side) and expected.std() > 0.05
    np.testing.assert_allclose(found, cv2.resize(expected, (224, 224)), atol=0.05)
    assert list(classifier.backbone.named_modules())[-1][0] == "norm"  # what vis_cam.py chooses
