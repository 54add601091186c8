"""torch.compile follows the backbone without a break, for maps of any size."""

import copy
import os
import shutil

import pytest
import torch
from torch import Tensor, nn

from crossformer_mm import CrossFormer
from crossformer_mm.compilation import compile_backbone
from crossformer_mm.models import sorted_attention

pytestmark = pytest.mark.skipif(not sorted_attention.CAN_COMPILE, reason="needs torch 2.4")

ARCH = {
    "embed_dims": 32,
    "depths": (2, 1, 1, 1),
    "num_heads": (2, 4, 8, 16),
    "group_size": (4, 4, 2, 1),
    "interval": (3, 2, 1, 1),
}


def outputs_and_gradients(model: nn.Module, image: Tensor) -> list[Tensor]:
    maps = model(image)
    loss = sum((m * torch.linspace(-1, 1, m.numel()).view_as(m)).sum() for m in maps)
    return [*(m.detach() for m in maps), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("lda_mode", ["fixed_interval", "fixed_group", "adaptive_interval"])
def test_the_whole_backbone_is_one_graph(lda_mode):
    model = CrossFormer(ARCH, lda_mode=lda_mode).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    image = torch.randn(1, 3, 133, 96)
    with torch.no_grad():
        for one, other in zip(compiled(image), model(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_parts_train_on_images_of_any_size():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch.manual_seed(0)
    model, expected = CrossFormer(ARCH, drop_path_rate=0.0), CrossFormer(ARCH, drop_path_rate=0.0)
    expected.load_state_dict(model.state_dict())
    assert compile_backbone(model, backend=counter) == 5 + 3
    assert list(model.state_dict()) == list(expected.state_dict())
    frames = []
    for size in ((160, 192), (131, 174), (224, 129)):
        image = torch.randn(2, 3, *size)
        found = outputs_and_gradients(model, image)
        reference = outputs_and_gradients(expected, image)
        scale = max(tensor.abs().max().item() for tensor in reference)
        for one, other in zip(found, reference, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * scale)
        frames.append(counter.frame_count)
    assert frames == [frames[0]] * 3
    torch._dynamo.reset()


def cpp_compiler() -> str | None:
    """The compiler that Inductor would take."""
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")


@pytest.mark.skipif(cpp_compiler() is None, reason="Inductor needs a C++ compiler")
def test_inductor_trains_a_block_with_all_there_is(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    arch = {**ARCH, "embed_dims": 16, "depths": (4, 1, 1, 1), "amplitude_cooling": True}
    model = CrossFormer(arch, drop_path_rate=0.0)
    block = model.layers[0].blocks[2]
    assert block.amplitude_cooling
    expected = copy.deepcopy(block)
    compile_backbone(model)
    tokens = torch.randn(2, 17, 13, 16)
    found = outputs_and_gradients(block, tokens)
    reference = outputs_and_gradients(expected, tokens)
    scale = max(tensor.abs().max().item() for tensor in reference)
    for one, other in zip(found, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * scale)
    torch._dynamo.reset()


def test_an_old_pytorch_is_refused(monkeypatch):
    monkeypatch.setattr("crossformer_mm.compilation.CAN_COMPILE", False)
    with pytest.raises(RuntimeError, match=r"compile needs torch 2\.4 or later, this is \d"):
        compile_backbone(CrossFormer(ARCH))


def test_a_model_without_a_crossformer_is_refused():
    with pytest.raises(ValueError, match="no CrossFormer"):
        compile_backbone(nn.Linear(2, 2))
