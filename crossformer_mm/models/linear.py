"""Linear layers that use oneDNN's fused kernels where PyTorch does not by itself."""

import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformer_mm.import_hooks import when_imported
from crossformer_mm.models.position_bias import is_traced

# torch.compile's own CPU code calls this operator; in eager mode nothing does.
_FUSED = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(layer: nn.Linear, x: Tensor, gelu: bool = False) -> Tensor:
    """Apply a linear layer, and GELU to its result if ``gelu``: (..., C) -> (..., D).

    Without gradients, on a CPU and in float32, oneDNN computes both at once.
    """
    if _can_fuse(layer, x):
        return _FUSED(x, layer.weight, layer.bias, "gelu" if gelu else "none", [], "none")
    output = layer(x)
    return F.gelu(output) if gelu else output


def _can_fuse(layer: nn.Linear, x: Tensor) -> bool:
    # First: compilers cannot follow the other questions.
    if is_traced(x) or torch.jit.is_tracing() or _FUSED is None:
        return False
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_cpu_enabled() and x.numel() > 0
    same_type = x.dtype == layer.weight.dtype == torch.float32
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
    # Whoever watches or replaces the layer's own computation gets it.
    own = type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)
    return on_cpu and same_type and not needs_grad and own and torch.backends.mkldnn.is_available()


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
