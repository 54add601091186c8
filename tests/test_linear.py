"""Linear layers fused with their bias and GELU: the same values, and only where nothing minds."""

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from crossformer_mm.models import linear as module
from crossformer_mm.models.linear import linear, mlp

LAYER, BACK, SQUARE = nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 24)

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN"
)


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


SHAPES = [(7, 24), (2, 3, 5, 24), (0, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_layers(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    narrow, wide = linear(LAYER, x), mlp(LAYER, BACK, x)
    with torch.inference_mode():
        assert torch.equal(linear(LAYER, x), narrow)
        assert_close(mlp(LAYER, BACK, x), wide)
    one, other = copy.deepcopy(LAYER).double(), copy.deepcopy(BACK).double()
    assert_close(narrow, one(x.double()))
    assert_close(wide, other(F.gelu(one(x.double()))))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)


@needs_onednn
def test_it_is_fused_only_where_nothing_minds():
    x = torch.randn(7, 24)
    assert is_fused(LAYER, x)
    assert not is_fused(copy.deepcopy(LAYER).bfloat16(), x.bfloat16())
    assert not is_fused(LAYER, x[:0])
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fused(LAYER, x)
    handle = LAYER.register_forward_hook(lambda *args: None)
    assert not is_fused(LAYER, x)
    handle.remove()
    assert not is_fused(type("Other", (nn.Linear,), {})(24, 40), x)


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2), (3,), (0, 1, 2), (4, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_layers(shape, frozen):
    torch.manual_seed(0)
    x, layers = torch.randn(shape), copy.deepcopy(nn.ModuleList([LAYER, BACK]))
    tensors = [x, *layers.parameters()]
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i not in frozen)
    found = gradients(mlp(*layers, x), tensors)
    expected = gradients(layers[1](F.gelu(layers[0](x))), tensors)
    found += gradients(linear(layers[0], x), tensors[:3])
    expected += gradients(layers[0](x), tensors[:3])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def gradients(output: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    needed = [t for t in tensors if t.requires_grad]
    return list(torch.autograd.grad((output * weights).sum(), needed)) if needed else []


@needs_onednn
def test_there_are_no_second_derivatives():
    x = torch.randn(7, 24, requires_grad=True)
    loss = mlp(LAYER, BACK, x).square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


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
            return mlp(LAYER, BACK, linear(SQUARE, x))

    with torch.no_grad():
        program = torch.export.export(Layer(), (torch.randn(3, 24),))
    assert "linear_pointwise" not in str(program.graph)


def test_without_the_operator_the_layer_runs(monkeypatch):
    monkeypatch.setattr(module, "_FUSED", None)
    x = torch.randn(7, 24)
    with torch.no_grad():
        assert torch.equal(linear(LAYER, x), LAYER(x))
        assert torch.equal(mlp(LAYER, BACK, x), BACK(F.gelu(LAYER(x))))
