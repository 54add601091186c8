"""One CrossFormer block: attention and an MLP, each with a residual around it."""

import torch
from torch import Tensor, nn

from crossformer_mm.models.attention import GroupedAttention
from crossformer_mm.models.attention.rectangles import why_not
from crossformer_mm.models.attention.reduced import ReducedAttention
from crossformer_mm.models.grouping import GroupPlan, plan_groups

# Numbers of hidden values: of a piece, which stay in a processor's cache, and of the smallest map
# that is cut into pieces. Chosen with tools/benchmark.py.
HIDDEN_AT_ONCE = 2**20
HIDDEN_OF_LARGE_MAPS = 2**23


class DropPath(nn.Module):
    """Add a residual branch; in training, drop it for random samples at a rate in [0, 1)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """(B, ...), (B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0:
            return x + branch
        keep = 1 - self.rate
        kept = branch.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep)
        # A tensor of 1 / keep would be rounded in half precision, a number is not.
        return torch.addcmul(x, branch, kept, value=1 / keep)


class Mlp(nn.Module):
    """Two linear layers with a GELU between.

    On a CPU a large map goes through them piece by piece, and hooks see the pieces: the hidden
    values of all of it would not stay in the cache, and without gradients take most of the memory.
    """

    def __init__(self, embed_dims: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1 = nn.Linear(embed_dims, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        values = x.numel() // x.shape[-1] * self.hidden
        if values < HIDDEN_OF_LARGE_MAPS or x.device.type != "cpu" or why_not(x):
            return self.fc2(self.act(self.fc1(x)))
        pieces = x.flatten(0, -2).split(max(1, HIDDEN_AT_ONCE // self.hidden))
        return torch.cat([self.fc2(self.act(self.fc1(piece))) for piece in pieces]).view_as(x)


class CrossFormerBlock(nn.Module):
    """A block with short or long distance attention; the groups are those of :func:`plan_groups`.

    Args:
        embed_dims: Channels C.
        num_heads: Attention heads.
        group_size, interval, lda_mode, long_distance: As for :func:`plan_groups`.
        long_range: ``'lda'``, ``'swin'``, or ``'pvt'`` for attention to a reduced map, without
            groups.
        reduction: How many times ``'pvt'`` reduces the map.
        position_bias: See :data:`POSITION_BIASES`.
        amplitude_cooling: Whether a cooling layer follows (CrossFormer++, section 3.5).
        drop_path_rate: Probability to drop a residual branch.
        attn_backend: See :func:`choose_backend`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        group_size: int,
        interval: int,
        lda_mode: str,
        long_distance: bool,
        long_range: str = "lda",
        reduction: int = 1,
        position_bias: str = "dpb",
        amplitude_cooling: bool = False,
        drop_path_rate: float = 0.0,
        attn_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.group_size, self.interval = group_size, interval
        self.lda_mode, self.long_distance, self.long_range = lda_mode, long_distance, long_range
        self.may_grow = position_bias != "rpb"  # its table has a size
        self.norm1 = nn.LayerNorm(embed_dims)
        if long_range == "pvt":
            self.attn: nn.Module = ReducedAttention(embed_dims, num_heads, reduction, attn_backend)
        else:
            self.attn = GroupedAttention(
                embed_dims, num_heads, attn_backend, position_bias, group_size
            )
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = Mlp(embed_dims, 4 * embed_dims)
        self.drop_path = DropPath(drop_path_rate)
        self.amplitude_cooling = amplitude_cooling
        if amplitude_cooling:
            self.ex_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
            self.ex_ln = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.drop_path(x, self.attend(self.norm1(x)))
        x = self.drop_path(x, self.mlp(self.norm2(x)))
        if self.amplitude_cooling:
            x = self.ex_ln(self.ex_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x

    def attend(self, x: Tensor) -> Tensor:
        """Attend by the block's rule: (B, H, W, C) -> (B, H, W, C)."""
        if self.long_range == "pvt":
            return self.attn(x)
        return self.attn(x, self.plan(*x.shape[1:3]))

    def plan(self, height: int, width: int) -> GroupPlan:
        """The groups on a map of this size; under ``'pvt'`` there are none."""
        rule = (self.group_size, self.interval, self.lda_mode, self.long_distance, self.long_range)
        return plan_groups(height, width, *rule, self.may_grow)

    def extra_repr(self) -> str:  # noqa: D102
        if self.long_range == "pvt":
            return f"reduction={self.attn.reduction}"
        if self.long_range == "swin":
            return f"windows, shifted={self.long_distance}, group_size={self.group_size}"
        kind = f"LDA, {self.lda_mode}, interval={self.interval}" if self.long_distance else "SDA"
        return f"{kind}, group_size={self.group_size}"
