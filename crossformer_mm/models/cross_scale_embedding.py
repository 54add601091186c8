"""Cross-scale embedding layers (CrossFormer, section 3.1): parallel convolutions of one stride."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def parallel_convs(
    in_channels: int, out_channels: Sequence[int], kernel_sizes: Sequence[int], stride: int
) -> nn.ModuleList:
    """Convolutions with kernels of different sizes over the same centres."""
    return nn.ModuleList(
        nn.Conv2d(in_channels, out, kernel, stride=stride, padding=(kernel - stride) // 2)
        for out, kernel in zip(out_channels, kernel_sizes, strict=True)
    )


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and right so that ``multiple`` divides H and W."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


class CrossScaleStem(nn.Module):
    """Turn an image into the tokens of the first stage.

    The smallest kernel gets the most channels: D/2, D/4, D/8, D/8 for kernels 4, 8, 16, 32.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels D of the tokens, a multiple of 8.
    """

    stride = 4

    def __init__(self, in_channels: int, embed_dims: int) -> None:
        super().__init__()
        channels = (embed_dims // 2, embed_dims // 4, embed_dims // 8, embed_dims // 8)
        self.projs = parallel_convs(in_channels, channels, (4, 8, 16, 32), self.stride)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, ceil(H / 4), ceil(W / 4), D)."""
        image = pad_to_multiple(image, self.stride)
        maps = [conv(image) for conv in self.projs]
        return self.norm(torch.cat(maps, dim=1).permute(0, 2, 3, 1))


class CrossScaleDownsample(nn.Module):
    """Halve the map and double the channels between two stages.

    Args:
        embed_dims: Channels C of the incoming tokens.
    """

    stride = 2

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dims)
        self.reductions = parallel_convs(embed_dims, (embed_dims, embed_dims), (2, 4), self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 * C)."""
        x = pad_to_multiple(self.norm(x).permute(0, 3, 1, 2), self.stride)
        x = torch.cat([conv(x) for conv in self.reductions], dim=1)
        return x.permute(0, 2, 3, 1)
