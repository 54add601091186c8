"""Mixed precision on a CPU: training in bfloat16, and what stays in float32 there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.utils import apply_to
from torch import nn


def has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16, which Linux lists by name."""
    # x86: avx512_bf16, amx_bf16; ARM: bf16. Of torch's functions, those of 2.1 do not tell.
    file = Path("/proc/cpuinfo")
    return file.exists() and "bf16" in file.read_text()


class CPUAmpOptimWrapper(OptimWrapper):
    """mmengine's ``AmpOptimWrapper`` for a CPU: bfloat16 if the processor has it, else float32.

    It scales no loss, as bfloat16 has the range of float32: its checkpoints are those of float32.
    """

    def __init__(self, loss_scale: object = None, dtype: object = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.enabled = has_bf16()
        reason = "float32: this processor has no instructions for bfloat16, and there is no GPU"
        print_log(f"Training in {'bfloat16' if self.enabled else reason}", "current")

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute losses in mixed precision."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16, self.enabled):
            yield


def keep_float32(model: nn.Module) -> None:
    """Have RoI extractors take float32, and heads give it: to losses, and to boxes and scores.

    On a CPU, neither mmcv's RoIAlign nor its NMS takes bfloat16.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RoIExtractor"):
            module.register_forward_pre_hook(_cast)
        elif type(module).__name__.endswith("Head"):
            module.register_forward_hook(_cast)


def _cast(module: nn.Module, *values: object) -> object:
    """Turn a module's inputs, for a hook before it, or outputs, for one after it, into float32."""

    def is_half(value: object) -> bool:
        return torch.is_tensor(value) and value.dtype == torch.bfloat16

    return apply_to(values[-1], is_half, torch.Tensor.float)
