"""Cross-scale embedding layers (CrossFormer, section 3.1): parallel convolutions of one stride."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ParallelConvs(nn.ModuleList):
    """Convolutions with kernels of different sizes over the same centres, channels side by side.

    ``channels`` gives the output channels of each kernel size.
    """

    def __init__(self, in_channels: int, channels: Mapping[int, int], stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out, kernel, stride=stride, padding=(kernel - stride) // 2)
            for kernel, out in channels.items()
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Zero-pad at the bottom and right: (B, C, H, W) -> (B, ceil(H / s), ceil(W / s), out)."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        return torch.cat([conv(x) for conv in self], dim=1).permute(0, 2, 3, 1)


class CrossScaleStem(nn.Module):
    """Turn an image into the tokens of the first stage.

    The smallest kernel gets the most channels: D/2, D/4, D/8, D/8 for kernels 4, 8, 16, 32. The
    channels ``embed_dims`` D of the tokens are a multiple of 8.

    Args:
        in_channels: Channels of the image.
        embed_dims: D.
        cross_scale: False gives all channels to the smallest kernel (CrossFormer, table 5).
        pos_embed: What adds positions to the tokens, if anything does.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        cross_scale: bool = True,
        pos_embed: nn.Module | None = None,
    ) -> None:
        super().__init__()
        kernels = {4: embed_dims}
        if cross_scale:
            kernels = {4: embed_dims // 2, 8: embed_dims // 4, 16: embed_dims // 8}
            kernels[32] = kernels[16]
        self.projs = ParallelConvs(in_channels, kernels, stride=4)
        self.norm = nn.LayerNorm(embed_dims)
        self.pos_embed = nn.Identity() if pos_embed is None else pos_embed

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, ceil(H / 4), ceil(W / 4), D)."""
        return self.pos_embed(self.norm(self.projs(image)))


class CrossScaleDownsample(nn.Module):
    """Halve the map and double the ``embed_dims`` channels C between two stages.

    Without ``cross_scale``, the kernel of 2 gets all channels.
    """

    def __init__(self, embed_dims: int, cross_scale: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dims)
        kernels = {2: embed_dims, 4: embed_dims} if cross_scale else {2: 2 * embed_dims}
        self.reductions = ParallelConvs(embed_dims, kernels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 * C)."""
        return self.reductions(self.norm(x).permute(0, 3, 1, 2))
