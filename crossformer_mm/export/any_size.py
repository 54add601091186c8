"""Layers of the libraries' heads, written so that one graph takes maps of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WholeUpsample(nn.Module):
    """Enlarge maps by a whole factor, where mmseg's module would round a product of floats.

    Args:
        factor: By how much height and width grow.
        options: Other arguments of :func:`torch.nn.functional.interpolate`.
    """

    def __init__(self, factor: int, **options: object) -> None:
        super().__init__()
        self.factor = factor
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, factor * H, factor * W)."""
        height, width = x.shape[2:]
        return F.interpolate(x, (height * self.factor, width * self.factor), **self.options)


class AdaptivePool(nn.Module):
    """Average pooling to a fixed size, as two matrix products, which are the same for any map.

    Args:
        size: Height and width of the result.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, size, size)."""
        rows, columns = (self._weights(length, x) for length in x.shape[2:])
        return F.linear(F.linear(x, columns).transpose(2, 3), rows).transpose(2, 3)

    def _weights(self, length: int, like: Tensor) -> Tensor:
        """What each of ``length`` positions contributes to each bin: (size, length)."""
        bins = torch.arange(self.size, device=like.device)[:, None]
        position = torch.arange(length, device=like.device)
        # Bin i begins at i * length / size, rounded down, and ends where the next, rounded up.
        inside = (position >= bins * length // self.size) & (
            position < ((bins + 1) * length + self.size - 1) // self.size
        )
        inside = inside.to(like.dtype)
        return inside / inside.sum(dim=1, keepdim=True)


def replace_size_dependent(head: nn.Module) -> None:
    """Replace, in place, the modules that would fix the size of the image while it is traced."""
    for parent in list(head.modules()):
        for name, child in parent.named_children():
            replacement = _replacement(child)
            if replacement is not None:
                setattr(parent, name, replacement)


def _replacement(module: nn.Module) -> nn.Module | None:
    # Pooling to one value is the mean, which is traced as such.
    if isinstance(module, nn.AdaptiveAvgPool2d) and _is_above_one(module.output_size):
        return AdaptivePool(module.output_size)
    is_mmsegs = type(module).__name__ == "Upsample" and not isinstance(module, nn.Upsample)
    factor = getattr(module, "scale_factor", None)
    if is_mmsegs and not module.size and isinstance(factor, float) and factor.is_integer():
        return WholeUpsample(int(factor), mode=module.mode, align_corners=module.align_corners)
    return None


def _is_above_one(size: object) -> bool:
    return isinstance(size, int) and size > 1
