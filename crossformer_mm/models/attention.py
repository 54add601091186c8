"""Multi-head self-attention inside the groups of a feature map."""

import torch
from torch import Tensor, nn

from crossformer_mm.models.chunked_attention import attend, attend_in_map, split_heads
from crossformer_mm.models.fused_attention import fused_attention, is_available
from crossformer_mm.models.grouping import (
    GroupPlan,
    merge,
    order_tokens,
    partition,
    real_tokens,
)
from crossformer_mm.models.linear import linear
from crossformer_mm.models.position_bias import DynamicPositionBias, expand_table, is_compiling
from crossformer_mm.models.sorted_attention import CAN_COMPILE, sorted_attention, token_order

ATTENTION_PATHS = ("auto", "fused", "sdpa", "plain")


class GroupedAttention(nn.Module):
    """Self-attention within groups, with a dynamic position bias (CrossFormer, section 3.2).

    Args:
        embed_dims: Channels C.
        num_heads: Attention heads, a divisor of C.
        attention_path: ``'fused'`` is a Triton kernel for NVIDIA GPUs that reads the map in place.
            ``'sdpa'`` splits the map so that padding never enters, and uses PyTorch's fused
            attention, or tiles that fit into a cache. ``'auto'`` takes the first of these that can
            run. ``'plain'`` pads, masks and multiplies matrices as the paper's formula reads. All
            give the same result.
    """

    def __init__(self, embed_dims: int, num_heads: int, attention_path: str = "auto") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_path = attention_path
        self.qkv = nn.Linear(embed_dims, embed_dims * 3)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.pos = DynamicPositionBias(embed_dims, num_heads)

    def path_for(self, device: torch.device, dtype: torch.dtype) -> str:
        """Say which path runs for queries of this type: ``'fused'``, ``'sdpa'`` or ``'plain'``.

        Raises:
            RuntimeError: If the fused path is asked for where it cannot run.
        """
        if self.attention_path not in ("auto", "fused"):
            return self.attention_path
        if is_available(device, self.proj.in_features // self.num_heads, dtype):
            return "fused"
        if self.attention_path == "fused":
            raise RuntimeError(
                f"attention_path='fused' cannot run for {dtype} on {device}: it needs Triton, a "
                "GPU of compute capability 8.0, and heads of 16, 32 or 64 channels; use 'auto'"
            )
        return "sdpa"

    def forward(self, x: Tensor, plan: GroupPlan) -> Tensor:
        """Attend within the groups of ``plan``: (B, H, W, C) -> (B, H, W, C)."""
        table = self.pos.table(plan.group_height, plan.group_width)
        path = self.path_for(x.device, _linear_dtype(x))
        if path == "plain":
            return self._padded_attention(x, table, plan)
        if path == "sdpa":
            return self._sorted_attention(x, table, plan)
        return self.proj(fused_attention(self.qkv(x), table, plan, self.num_heads))

    def _padded_attention(self, x: Tensor, table: Tensor, plan: GroupPlan) -> Tensor:
        qkv = self.qkv(partition(x, plan))
        real = real_tokens(plan, x.device)
        return merge(self.proj(attend_padded(qkv, table, real, self.num_heads)), plan)

    def _sorted_attention(self, x: Tensor, table: Tensor, plan: GroupPlan) -> Tensor:
        if is_compiling() and CAN_COMPILE:
            return self._compiled_attention(x, table, plan)
        is_filled = plan.padded_size == (plan.height, plan.width)
        if is_filled and torch.is_grad_enabled() and self.qkv.weight.requires_grad:
            qkv = linear(self.qkv, x)
            return linear(self.proj, attend_in_map(qkv, table, plan, self.num_heads))
        order, inverse, runs = order_tokens(plan)
        order = torch.as_tensor(order, device=x.device)
        inverse = torch.as_tensor(inverse, device=x.device)
        qkv = linear(self.qkv, Permute.apply(x.flatten(1, 2), order, inverse))
        output = linear(self.proj, attend(qkv, table, runs, self.num_heads))
        return Permute.apply(output, inverse, order).view_as(x)

    def _compiled_attention(self, x: Tensor, table: Tensor, plan: GroupPlan) -> Tensor:
        order, inverse = token_order(x, *plan)
        qkv = self.qkv(Permute.apply(x.flatten(1, 2), order, inverse))
        output = self.proj(sorted_attention(qkv, table, *plan, self.num_heads))
        return Permute.apply(output, inverse, order).view_as(x)


def _linear_dtype(x: Tensor) -> torch.dtype:
    """The type that linear layers give for ``x``, autocast considered."""
    if torch.is_autocast_enabled() and x.is_cuda:
        return torch.get_autocast_gpu_dtype()
    return x.dtype


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
    groups = partition(qkv, plan)
    return merge(attend_padded(groups, table, real_tokens(plan, qkv.device), num_heads), plan)


def attend_padded(qkv: Tensor, table: Tensor, real: Tensor | None, num_heads: int) -> Tensor:
    """Attention in padded groups: multiply, add the bias, mask, softmax, multiply.

    Args:
        qkv: (B, groups, tokens, 3 * C).
        table: (2 * group height - 1, 2 * group width - 1, heads).
        real: (groups, tokens) of bool, False where a token is padding; None: nowhere.
        num_heads: Attention heads.

    Returns:
        (B, groups, tokens, C).
    """
    q, k, v = split_heads(qkv, num_heads)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    logits = logits + expand_table(table).to(logits.dtype)
    if real is not None:
        logits = logits.masked_fill(~real[:, None, None, :], torch.finfo(logits.dtype).min)
    output = logits.softmax(dim=-1).to(v.dtype) @ v
    return output.transpose(2, 3).flatten(3)


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
