"""Attention from all tokens to a smaller map, as in PVT (v1, arXiv 2102.12122, section 3.3)."""

import torch.nn.functional as F
from torch import Tensor, nn

REDUCTIONS = (8, 4, 2, 1)  # by stage
BACKENDS = ("auto", "eager", "sdpa")


class ReducedAttention(nn.Module):
    """Every token attends to a map that a convolution has reduced R times along each side.

    Args:
        embed_dims: Channels C.
        num_heads: Attention heads.
        reduction: R; the map is padded with zeros to a multiple of it. 1 leaves the map as it is.
        attn_backend: ``'eager'`` computes the formula as it reads, ``'sdpa'`` and ``'auto'`` use
            PyTorch's fused attention.

    Raises:
        ValueError: If ``attn_backend`` is another one.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, reduction: int, attn_backend: str = "auto"
    ) -> None:
        super().__init__()
        if attn_backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise ValueError(f"long_range='pvt' runs as {known}, not attn_backend={attn_backend!r}")
        self.num_heads, self.reduction = num_heads, reduction
        self.attn_backend = attn_backend
        self.q = nn.Linear(embed_dims, embed_dims)
        self.kv = nn.Linear(embed_dims, embed_dims * 2)
        self.proj = nn.Linear(embed_dims, embed_dims)
        if reduction > 1:
            self.sr = nn.Conv2d(embed_dims, embed_dims, reduction, stride=reduction)
            self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        tokens, shape = x.flatten(1, 2), (self.num_heads, -1)
        q = self.q(tokens).unflatten(-1, shape).transpose(1, 2)
        # two of (B, heads, tokens, C / heads)
        k, v = self.kv(self.reduce(x)).unflatten(-1, (2, *shape)).permute(2, 0, 3, 1, 4)
        if self.attn_backend == "eager":
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            attended = scores.softmax(dim=-1).to(v.dtype) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(x.shape))

    def reduce(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / R) * ceil(W / R), C)."""
        if self.reduction == 1:
            return x.flatten(1, 2)
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.reduction, 0, -height % self.reduction))
        return self.norm(self.sr(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
