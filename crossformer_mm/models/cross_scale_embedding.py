"""Cross-scale embedding layers (CrossFormer, section 3.1): parallel convolutions of one stride."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformer_mm.models.position_bias import is_compiling


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
    # Compiled code would be specialised on the answer.
    if not is_compiling() and height % multiple == 0 and width % multiple == 0:
        return x
    rows, columns = (height + multiple - 1) // multiple, (width + multiple - 1) // multiple
    return F.pad(x, (0, columns * multiple - width, 0, rows * multiple - height))


def convolve_blocks(conv: nn.Conv2d, image: Tensor) -> Tensor:
    """Apply a convolution to blocks of stride x stride pixels instead of to pixels.

    The blocks are the channels of a smaller map, on which the convolution has stride 1. With few
    channels and a large stride and kernel, the gradient of the weight is far cheaper this way.

    Args:
        conv: A convolution whose stride divides its kernel size, but not its padding unless it
            has none, and twice its padding.
        image: (B, C, H, W); the stride divides H and W.

    Returns:
        What ``conv(image)`` returns.
    """
    stride, padding = conv.stride[0], conv.padding[0]
    blocks = F.pixel_unshuffle(F.pad(image, [padding] * 4), stride)
    return F.conv2d(blocks, F.pixel_unshuffle(conv.weight, stride), conv.bias)


class CrossScaleStem(nn.Module):
    """Turn an image into the tokens of the first stage.

    The smallest kernel gets the most channels: D/2, D/4, D/8, D/8 for kernels 4, 8, 16, 32.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels D of the tokens, a multiple of 8.
        plain: Whether to convolve the image as it comes.
    """

    stride = 4

    def __init__(self, in_channels: int, embed_dims: int, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        channels = (embed_dims // 2, embed_dims // 4, embed_dims // 8, embed_dims // 8)
        self.projs = parallel_convs(in_channels, channels, (4, 8, 16, 32), self.stride)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, ceil(H / 4), ceil(W / 4), D)."""
        image = pad_to_multiple(image, self.stride)
        if self.plain:
            maps = [conv(image) for conv in self.projs]
        # PyTorch cannot split an empty batch into blocks.
        elif torch.is_grad_enabled() and self.projs[0].weight.requires_grad and len(image) > 0:
            maps = [convolve_blocks(conv, image) for conv in self.projs]
        else:
            # The tokens come out with their channels last, and need no copy.
            image = image.contiguous(memory_format=torch.channels_last)
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
        if x.requires_grad and x[:, 0].numel() < self.reductions[-1].weight[:, 0].numel():
            # Gradients of convolutions prefer to have the channels first. Where the weight is
            # larger than the map, that saves more than it costs to move the channels.
            x = x.contiguous()
        x = torch.cat([conv(x) for conv in self.reductions], dim=1)
        return x.permute(0, 2, 3, 1)
