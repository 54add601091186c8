"""Linear layers that use oneDNN's fused kernels where PyTorch does not by itself."""

import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from crossformer_mm.import_hooks import when_imported
from crossformer_mm.models.position_bias import is_traced

# torch.compile's own CPU code calls this operator; in eager mode nothing does.
_FUSED = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(layer: nn.Linear, x: Tensor, gelu: bool = False) -> Tensor:
    """Apply a linear layer, and GELU to its result if ``gelu``: (..., C) -> (..., D).

    On a CPU and in float32, oneDNN computes it, without gradients together with GELU. With
    gradients, there are no second derivatives.
    """
    if not _can_fuse(layer, x):
        output = layer(x)
        return F.gelu(output) if gelu else output
    if not torch.is_grad_enabled() or not (x.requires_grad or layer.weight.requires_grad):
        return _multiply(x, layer.weight, layer.bias, gelu)
    output = _Linear.apply(x, layer.weight, layer.bias)
    return F.gelu(output) if gelu else output


def _can_fuse(layer: nn.Linear, x: Tensor) -> bool:
    # First: compilers cannot follow the other questions.
    if is_traced(x) or torch.jit.is_tracing() or _FUSED is None:
        return False
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_cpu_enabled() and x.numel() > 0
    same_type = x.dtype == layer.weight.dtype == torch.float32
    # Whoever watches or replaces the layer's own computation gets it.
    own = type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)
    return on_cpu and same_type and own and torch.backends.mkldnn.is_available()


class _Linear(torch.autograd.Function):
    """A linear layer whose output and input gradient come from oneDNN.

    PyTorch's own product is as fast for the gradient of the weight, and slower for these two.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _multiply(grad, weight.t())
        if ctx.needs_input_grad[1]:
            grad_weight = grad.flatten(0, -2).t() @ x.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(dim=0)
        return grad_x, grad_weight, grad_bias


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
