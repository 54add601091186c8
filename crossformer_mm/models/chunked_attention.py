"""Attention over sorted groups in memory linear in the tokens, forward and backward.

PyTorch's fused attention takes the position bias as a matrix, and where that needs a gradient it
falls back to storing every score. Here the bias is expanded for a few query rows at a time, the
forward pass is fused in training too, and the backward pass computes the scores again, in pieces
that stay in the processor's cache, and sums the gradient of the bias table as it goes.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from crossformer_mm.models.grouping import EqualGroups
from crossformer_mm.models.position_bias import crop_table, expand_rows, expand_table, sum_rows

# Numbers of scores; chosen with tools/benchmark.py, see docs/performance.md.
FORWARD_BIAS_ENTRIES = 2**22
FORWARD_SCORES = 2**18
BACKWARD_SCORES = 2**21
BACKWARD_BIAS_ENTRIES = 2**19
SMALL_GROUP = 64  # tokens


def attend(qkv: Tensor, table: Tensor, runs: Sequence[EqualGroups], num_heads: int) -> Tensor:
    """Self-attention within groups whose tokens are contiguous (CrossFormer, section 3.2).

    Args:
        qkv: (B, T, 3 * C), the tokens in the order of ``runs``.
        table: (2 * group height - 1, 2 * group width - 1, heads), of the largest groups.
        runs: The groups; together they have T tokens.
        num_heads: Attention heads.

    Returns:
        (B, T, C).
    """
    if torch.is_grad_enabled() and (qkv.requires_grad or table.requires_grad):
        return _Attend.apply(qkv, table, tuple(runs), num_heads)
    return attention_forward(qkv, table, runs, num_heads)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv: Tensor, table: Tensor, runs: Sequence[EqualGroups], num_heads: int
    ) -> Tensor:
        ctx.save_for_backward(qkv, table)
        ctx.runs, ctx.num_heads = runs, num_heads
        return attention_forward(qkv, table, runs, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        qkv, table = ctx.saved_tensors
        return (*attention_backward(qkv, table, grad, ctx.runs, ctx.num_heads), None, None)


def attention_forward(
    qkv: Tensor, table: Tensor, runs: Sequence[EqualGroups], num_heads: int
) -> Tensor:
    """Compute what :func:`attend` returns, without a gradient."""
    batch, tokens, channels = qkv.shape
    output = qkv.new_empty(batch, tokens, channels // 3)
    for run, part in _split(runs):
        output[:, part] = _attend_in_run(qkv[:, part], table, run, num_heads)
    return output


def _split(runs: Sequence[EqualGroups]) -> Iterator[tuple[EqualGroups, slice]]:
    """Each run with the place of its tokens."""
    start = 0
    for run in runs:
        yield run, slice(start, start + run.tokens)
        start += run.tokens


def _attend_in_run(qkv: Tensor, table: Tensor, groups: EqualGroups, num_heads: int) -> Tensor:
    table = crop_table(table, groups.height, groups.width)
    batch, tokens, channels = qkv.shape
    size = groups.height * groups.width
    grouped = qkv.reshape(batch * groups.count, size, channels)
    if qkv.device.type == "cpu" and size <= SMALL_GROUP:
        output = _attend_in_small_groups(grouped, table, num_heads)
    else:
        output = _attend_in_large_groups(grouped, table, groups, num_heads)
    return output.reshape(batch, tokens, channels // 3)


def _attend_in_small_groups(qkv: Tensor, table: Tensor, num_heads: int) -> Tensor:
    """Multiply matrices of many groups at a time, as few as the cache holds.

    The fused kernel does one group after another, which is slower for a few dozen tokens.
    """
    count, size, channels = qkv.shape
    head_dims = channels // (3 * num_heads)
    qkv = qkv.view(count, size, 3, num_heads, head_dims)
    bias = expand_table(table).to(qkv.dtype)
    output = qkv.new_empty(count, size, num_heads, head_dims)
    at_once = max(1, FORWARD_SCORES // bias.numel())
    repeated = bias.repeat(min(at_once, count), 1, 1)
    for first in range(0, count, at_once):
        some = slice(first, min(first + at_once, count))
        q, k, v = _by_head(qkv[some], qkv.dtype)
        logits = torch.baddbmm(repeated[: len(q)], q, k.mT, alpha=head_dims**-0.5)
        attended = logits.softmax(dim=-1) @ v
        output[some] = attended.view(-1, num_heads, size, head_dims).transpose(1, 2)
    return output


def _attend_in_large_groups(
    qkv: Tensor, table: Tensor, groups: EqualGroups, num_heads: int
) -> Tensor:
    q, k, v = split_heads(qkv, num_heads)
    parts = [
        # A bias wider than q is silently wrong in some of PyTorch's fused kernels.
        F.scaled_dot_product_attention(
            q[:, :, queries], k, v, attn_mask=expand_rows(table, rows).to(q.dtype)[None]
        )
        for rows, queries in _split_queries(groups, num_heads, FORWARD_BIAS_ENTRIES)
    ]
    output = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    return output.transpose(1, 2)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., tokens, 3 * C) -> three of (..., heads, tokens, C / heads)."""
    head_dims = qkv.shape[-1] // (3 * num_heads)
    q, k, v = qkv.unflatten(-1, (3, num_heads, head_dims)).movedim(-3, 0).transpose(-3, -2)
    return q, k, v


def _split_queries(
    groups: EqualGroups, num_heads: int, max_entries: int
) -> Iterator[tuple[range, slice]]:
    """Rows of query tokens whose bias has at most ``max_entries`` values, and their tokens."""
    entries_per_row = num_heads * groups.width * groups.height * groups.width
    step = min(groups.height, max(1, max_entries // entries_per_row))
    for first in range(0, groups.height, step):
        rows = range(first, min(first + step, groups.height))
        yield rows, slice(rows.start * groups.width, rows.stop * groups.width)


def attention_backward(
    qkv: Tensor, table: Tensor, grad: Tensor, runs: Sequence[EqualGroups], num_heads: int
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of ``qkv`` and ``table`` from that of the output, (B, T, C)."""
    grad_qkv = torch.empty_like(qkv)
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    grad_table = torch.zeros_like(wide)
    for run, part in _split(runs):
        cropped = crop_table(wide, run.height, run.width)
        grad_cropped = crop_table(grad_table, run.height, run.width)
        grad_qkv[:, part] = _backward_in_run(
            qkv[:, part], cropped, grad[:, part], grad_cropped, run, num_heads
        )
    return grad_qkv, grad_table.to(table.dtype)


def _backward_in_run(
    qkv: Tensor,
    table: Tensor,
    grad: Tensor,
    grad_table: Tensor,
    groups: EqualGroups,
    num_heads: int,
) -> Tensor:
    """Return the gradient of ``qkv``, and add that of the table to ``grad_table``.

    With P the softmax of the scores S, the gradients are dV = P' dO, dP = dO V',
    dS = P * (dP - rowsum(P * dP)), dQ = dS K and dK = dS' Q, and the bias gets the sum of dS.
    """
    batch, tokens, channels = qkv.shape
    size, head_dims = groups.height * groups.width, channels // (3 * num_heads)
    count = batch * groups.count
    scale = head_dims**-0.5
    # (q k v, groups * heads, tokens, head dims), in float32 where they are narrower
    q, k, v = _by_head(qkv.reshape(count, size, 3, num_heads, head_dims), table.dtype)
    (d_out,) = _by_head(grad.reshape(count, size, 1, num_heads, head_dims), table.dtype)
    gradients = torch.zeros(3, *q.shape, dtype=q.dtype, device=q.device)
    dq, dk, dv = gradients
    for rows, queries in _split_queries(groups, num_heads, BACKWARD_BIAS_ENTRIES):
        bias = expand_rows(table, rows)
        d_bias = torch.zeros_like(bias)
        at_once = max(1, BACKWARD_SCORES // bias.numel())
        for first in range(0, count, at_once):
            some = slice(first * num_heads, min(first + at_once, count) * num_heads)
            copies = (some.stop - some.start) // num_heads
            scores = torch.baddbmm(
                bias.repeat(copies, 1, 1), q[some, queries], k[some].mT, alpha=scale
            )
            p = scores.softmax(dim=-1)
            dv[some].baddbmm_(p.mT, d_out[some, queries])
            dp = torch.bmm(d_out[some, queries], v[some].mT, out=scores)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            d_bias += ds.view(copies, *bias.shape).sum(dim=0)
            dq[some, queries].baddbmm_(ds, k[some], alpha=scale)
            dk[some].baddbmm_(ds.mT, q[some, queries], alpha=scale)
        sum_rows(d_bias, rows, into=grad_table)
    gradients = gradients.view(3, count, num_heads, size, head_dims)
    return gradients.permute(1, 3, 0, 2, 4).reshape(batch, tokens, channels).to(qkv.dtype)


def _by_head(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(groups, tokens, n, heads, dims) -> (n, groups * heads, tokens, dims), contiguous."""
    return x.permute(2, 0, 3, 1, 4).to(dtype).flatten(1, 2).contiguous()
