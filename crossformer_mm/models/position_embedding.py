"""Absolute position embedding: a learned vector for every place of the first stage's map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 56  # tokens along a side of the map of a 224 x 224 image


class AbsolutePositionEmbedding(nn.Module):
    """Add a learned map to the tokens, resized to other maps than its own (CrossFormer, table 6).

    Args:
        embed_dims: Channels D of the tokens.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, embed_dims, SIDE, SIDE))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values."""
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        embedding = self.embedding
        if x.shape[1:3] != (SIDE, SIDE):
            embedding = F.interpolate(embedding, size=x.shape[1:3], mode="bicubic")
        return x + embedding.permute(0, 2, 3, 1)
