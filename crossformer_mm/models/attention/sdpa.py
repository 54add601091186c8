"""PyTorch's fused attention on rectangles of real tokens, so that padding never enters.

A group of a few dozen tokens is too small for the fused kernel of a CPU, which takes one after
another: there, as many are multiplied at once as stay in the processor's cache.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from crossformer_mm.models.attention.rectangles import Attention, attend_in_rectangles, why_not
from crossformer_mm.models.grouping import GroupPlan, Rectangle
from crossformer_mm.models.position_bias import expand_rows, expand_table, split_table

# Numbers of scores and of values of the bias; chosen with tools/benchmark.py.
SCORES_AT_ONCE = 2**18
BIAS_AT_ONCE = 2**22
SMALL_GROUP = 64  # tokens


def can_run(x: Tensor, plan: GroupPlan, num_heads: int) -> str | None:
    """Needs values in memory, and nothing that records or transforms the operations."""
    return why_not(x)


def attend(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Attend with PyTorch's fused attention."""
    return attend_in_rectangles(qkv, table, plan, num_heads, attention_for, SCORES_AT_ONCE)


def attention_for(table: Tensor, rectangle: Rectangle) -> Attention:
    """Attention in groups of one shape, with the bias looked up once where it is not too large."""
    if table.device.type == "cpu" and rectangle.group_tokens <= SMALL_GROUP:
        return partial(multiply, expand_table(table))
    if rectangle.group_tokens**2 * table.shape[-1] <= BIAS_AT_ONCE:
        return partial(_fused, expand_table(table))
    return partial(fused_in_pieces, table)


def multiply(bias: Tensor, qkv: Tensor) -> Tensor:
    """Attention with the bias (heads, tokens, tokens)."""
    q, k, v = qkv
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    scores += bias[:, None].to(scores.dtype)
    return scores.softmax(dim=-1) @ v


def _fused(bias: Tensor, qkv: Sequence[Tensor]) -> Tensor:
    q, k, v = qkv
    # A bias wider than q is silently wrong in some of PyTorch's fused kernels.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None].to(q.dtype))


def fused_in_pieces(table: Tensor, qkv: Tensor) -> Tensor:
    """Attention with some heads and rows of queries at a time, so that their bias stays small."""
    output = torch.empty_like(qkv[0])
    tokens = qkv.shape[-2]
    heads_at_once = max(1, BIAS_AT_ONCE // tokens**2)
    rows_at_once = max(1, BIAS_AT_ONCE // (tokens * (table.shape[1] + 1) // 2))
    for heads, rows, queries in split_table(table, heads_at_once, rows_at_once):
        q, k, v = qkv[:, heads]
        bias = expand_rows(table[..., heads], rows)
        output[heads, :, queries] = _fused(bias, (q[:, :, queries], k, v))
    return output
