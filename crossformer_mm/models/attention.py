"""Multi-head self-attention inside the groups of a feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformer_mm.models.grouping import (
    EqualGroups,
    GroupPlan,
    merge,
    order_tokens,
    partition,
    real_tokens,
)
from crossformer_mm.models.position_bias import (
    DynamicPositionBias,
    crop_table,
    expand_table,
)

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
        outputs = [
            sdpa_in_groups(part, table, run, self.num_heads)
            for part, run in zip(qkv.split([run.tokens for run in runs], dim=1), runs, strict=True)
        ]
        output = self.proj(torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0])
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
    q, k, v = _split_heads(partition(qkv, plan), num_heads)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    logits = logits + expand_table(table).to(logits.dtype)
    real = real_tokens(plan, qkv.device)
    if real is not None:
        logits = logits.masked_fill(~real[:, None, None, :], torch.finfo(logits.dtype).min)
    output = logits.softmax(dim=-1).to(v.dtype) @ v
    return merge(output.transpose(2, 3).flatten(3), plan)


def sdpa_in_groups(qkv: Tensor, table: Tensor, groups: EqualGroups, num_heads: int) -> Tensor:
    """Fused attention over groups of equal shape whose tokens are contiguous.

    Args:
        qkv: (B, T, 3 * C) with T = ``groups.tokens``.
        table: Bias table of a group at least as large, heads last.
        groups: Number and shape of the groups.
        num_heads: Attention heads.

    Returns:
        (B, T, C).
    """
    batch, tokens, channels = qkv.shape
    grouped = qkv.reshape(batch * groups.count, groups.height * groups.width, channels)
    q, k, v = _split_heads(grouped, num_heads)
    # A bias wider than q is silently wrong in some of PyTorch's fused kernels.
    bias = expand_table(crop_table(table, groups.height, groups.width)).to(q.dtype)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    return output.transpose(1, 2).reshape(batch, tokens, channels // 3)


def _split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., tokens, 3 * C) -> three of (..., heads, tokens, C / heads)."""
    head_dims = qkv.shape[-1] // (3 * num_heads)
    q, k, v = qkv.unflatten(-1, (3, num_heads, head_dims)).movedim(-3, 0).transpose(-3, -2)
    return q, k, v


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
