"""Linear layers that use oneDNN's fused kernels where PyTorch does not by itself."""

import math
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from crossformer_mm.import_hooks import when_imported
from crossformer_mm.models.position_bias import is_traced

# torch.compile's own CPU code calls this operator; in eager mode nothing does.
_FUSED = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer: (..., C) -> (..., D).

    On a CPU and in float32, oneDNN computes it; then there are no second derivatives.
    """
    if not _can_fuse(layer, x):
        return layer(x)
    if _needs_grad(x, layer.weight, layer.bias):
        return _Linear.apply(x, layer.weight, layer.bias)
    return _multiply(x, layer.weight, layer.bias)


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _can_fuse(layer: nn.Linear, x: Tensor) -> bool:
    # First: compilers cannot follow the other questions.
    if is_traced(x) or torch.jit.is_tracing() or _FUSED is None:
        return False
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_cpu_enabled() and x.numel() > 0
    same_type = x.dtype == layer.weight.dtype == torch.float32
    # Whoever watches or replaces the layer's own computation gets it.
    own = type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)
    return on_cpu and same_type and own and torch.backends.mkldnn.is_available()


def mlp(fc1: nn.Linear, fc2: nn.Linear, x: Tensor) -> Tensor:
    """Apply two linear layers with GELU between them: (..., C) -> (..., C).

    As :func:`linear`; with gradients, that of GELU overwrites what it comes from.
    """
    if not (_can_fuse(fc1, x) and _can_fuse(fc2, x)):
        return fc2(F.gelu(fc1(x)))
    weights = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    if _needs_grad(x, *weights):
        return _Mlp.apply(x, *weights)
    return _multiply(_multiply(x, fc1.weight, fc1.bias, gelu=True), fc2.weight, fc2.bias)


class _Linear(torch.autograd.Function):
    """A linear layer whose output and gradients come from oneDNN, where it is the faster one."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        grad_x = _multiply(grad, weight.t()) if needed[0] else None
        return grad_x, *_parameter_gradients(x, grad, needed[1:])


class _Mlp(torch.autograd.Function):
    """Two such layers with GELU between them."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        hidden = _multiply(x, weight1, bias1)
        activated = F.gelu(hidden)
        ctx.save_for_backward(x, hidden, activated, weight1, weight2)
        return _multiply(activated, weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, activated, weight1, weight2 = ctx.saved_tensors
        needed = ctx.needs_input_grad
        grad_layer2 = _parameter_gradients(activated, grad, needed[3:])
        grad_hidden = _multiply(grad, weight2.t())
        torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
        grad_x = _multiply(grad_hidden, weight1.t()) if needed[0] else None
        return grad_x, *_parameter_gradients(x, grad_hidden, needed[1:3]), *grad_layer2


def _parameter_gradients(
    x: Tensor, grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a layer's weight and bias, where needed, from that of its output."""
    x, grad = x.flatten(0, -2), grad.flatten(0, -2)
    grad_weight = _transposed_product(grad, x) if needed[0] else None
    return grad_weight, grad.sum(dim=0) if needed[1] else None


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (N, C) -> (D, C), by whichever library is faster at it."""
    return _multiply(a.t(), b.t()) if a.shape[1] < b.shape[1] else a.t() @ b


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    return _FUSED(x, weight, bias, "gelu" if gelu else "none", [], "none")


def _register_flop_formula(flop_counter: ModuleType) -> None:
    """Let PyTorch's FLOP counter see the fused operator, which it does not know."""

    def count(x_shape: tuple, weight_shape: tuple, *rest: object, **named: object) -> int:
        outputs, channels = weight_shape
        return 2 * outputs * math.prod(x_shape[:-1]) * channels

    # torch 2.1 takes no formulas.
    known = getattr(flop_counter, "flop_registry", None)
    if _FUSED is not None and known is not None and _FUSED not in known:
        flop_counter.register_flop_formula(_FUSED)(count)


when_imported("torch.utils.flop_counter", _register_flop_formula)
