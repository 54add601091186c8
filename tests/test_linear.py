"""Linear layers fused with their bias and GELU: the same values, and only where nothing minds."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from crossformer_mm.models import linear as module
from crossformer_mm.models.linear import linear

LAYER = nn.Linear(24, 40)


class Operators(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def is_fused(layer: nn.Module, x: Tensor) -> bool:
    with Operators() as operators:
        linear(layer, x)
    return any("linear_pointwise" in name for name in operators.names)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 5, 24), (0, 24)])
def test_values_are_those_of_the_layer(shape, gelu):
    torch.manual_seed(0)
    x = torch.randn(shape)
    expected = LAYER.double()(x.double())
    expected = F.gelu(expected) if gelu else expected
    with torch.inference_mode():
        found = linear(LAYER.float(), x, gelu)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_it_is_fused_without_gradients_and_only_where_nothing_minds():
    x = torch.randn(7, 24)
    with torch.no_grad():
        assert is_fused(LAYER, x)
        assert not is_fused(LAYER.to(torch.bfloat16), x.bfloat16())
        assert not is_fused(LAYER.float(), x[:0])
        handle = LAYER.register_forward_hook(lambda *args: None)
        assert not is_fused(LAYER, x)
        handle.remove()
        assert not is_fused(type("Other", (nn.Linear,), {})(24, 40), x)
    assert not is_fused(LAYER, x)
    assert is_fused(LAYER.requires_grad_(False), x)
    assert not is_fused(LAYER, x.requires_grad_())
    LAYER.requires_grad_(True)


def test_gradients_are_those_of_the_layer():
    x = torch.randn(7, 24, requires_grad=True)
    found = torch.autograd.grad(linear(LAYER, x, gelu=True).sum(), [x, *LAYER.parameters()])
    expected = torch.autograd.grad(F.gelu(LAYER(x)).sum(), [x, *LAYER.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(
    not hasattr(flop_counter, "flop_registry"), reason="torch 2.1 takes no formulas"
)
def test_the_flop_counter_sees_it():
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as counter:
        linear(LAYER, torch.randn(2, 3, 24))
    assert counter.get_total_flops() == 2 * 6 * 24 * 40


def test_traced_programs_use_ordinary_operators(monkeypatch):
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return linear(LAYER, x, gelu=True)

    with torch.no_grad():
        program = torch.export.export(Layer(), (torch.randn(3, 24),))
    assert "linear_pointwise" not in str(program.graph)


def test_without_the_operator_the_layer_runs(monkeypatch):
    monkeypatch.setattr(module, "_FUSED", None)
    x = torch.randn(7, 24)
    with torch.no_grad():
        assert torch.equal(linear(LAYER, x), LAYER(x))
