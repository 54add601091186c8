"""Multi-head self-attention inside the groups of a feature map."""

import torch
from torch import Tensor, nn

from crossformer_mm.models.chunked_attention import attend, split_heads
from crossformer_mm.models.grouping import (
    GroupPlan,
    merge,
    order_tokens,
    partition,
    real_tokens,
)
from crossformer_mm.models.position_bias import DynamicPositionBias, expand_table

ATTENTION_PATHS = ("sdpa", "plain")


class GroupedAttention(nn.Module):
    """Self-attention within groups, with a dynamic position bias (CrossFormer, section 3.2).

    Args:
        embed_dims: Channels C.
        num_heads: Attention heads, a divisor of C.
        attention_path: ``'sdpa'`` sorts the tokens by group, so that padding never enters, and
            uses PyTorch's fused attention. ``'plain'`` pads, masks and multiplies matrices as the
            paper's formula reads. Both give the same result.
    """

    def __init__(self, embed_dims: int, num_heads: int, attention_path: str = "sdpa") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_path = attention_path
        self.qkv = nn.Linear(embed_dims, embed_dims * 3)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.pos = DynamicPositionBias(embed_dims, num_heads)

    def forward(self, x: Tensor, plan: GroupPlan) -> Tensor:
        """Attend within the groups of ``plan``: (B, H, W, C) -> (B, H, W, C)."""
        table = self.pos.table(plan.group_height, plan.group_width)
        if self.attention_path == "plain":
            return self.proj(plain_attention(self.qkv(x), table, plan, self.num_heads))
        return self._sorted_attention(x, table, plan)

    def _sorted_attention(self, x: Tensor, table: Tensor, plan: GroupPlan) -> Tensor:
        order, inverse, runs = order_tokens(plan)
        order = torch.as_tensor(order, device=x.device)
        inverse = torch.as_tensor(inverse, device=x.device)
        qkv = self.qkv(Permute.apply(x.flatten(1, 2), order, inverse))
        output = self.proj(attend(qkv, table, runs, self.num_heads))
        return Permute.apply(output, inverse, order).view_as(x)


def plain_attention(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Attention as the formula reads: pad, permute, multiply, mask, softmax, multiply.

    Args:
        qkv: (B, H, W, 3 * C).
        table: (2 * group height - 1, 2 * group width - 1, heads).
        plan: The groups.
        num_heads: Attention heads.

    Returns:
        (B, H, W, C).
    """
    q, k, v = split_heads(partition(qkv, plan), num_heads)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    logits = logits + expand_table(table).to(logits.dtype)
    real = real_tokens(plan, qkv.device)
    if real is not None:
        logits = logits.masked_fill(~real[:, None, None, :], torch.finfo(logits.dtype).min)
    output = logits.softmax(dim=-1).to(v.dtype) @ v
    return merge(output.transpose(2, 3).flatten(3), plan)


class Permute(torch.autograd.Function):
    """Reorder tokens along dimension 1, with a gather for a gradient instead of a scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(order, inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: D102
        order, inverse = ctx.saved_tensors
        return Permute.apply(grad, inverse, order), None, None
