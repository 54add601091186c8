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

from crossformer_mm.models.grouping import (
    EqualGroups,
    GroupPlan,
    group_by_head,
    ungroup_by_head,
)
from crossformer_mm.models.position_bias import crop_table, expand_rows, expand_table, sum_rows

# Numbers of scores; chosen with tools/benchmark.py, see docs/performance.md.
FORWARD_BIAS_ENTRIES = 2**22
FORWARD_SCORES = 2**18
BACKWARD_SCORES = 2**21
BACKWARD_BIAS_ENTRIES = 2**19
SMALL_GROUP = 64  # tokens


def attend_in_map(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Self-attention within the groups of a map that they fill (CrossFormer, section 3.2).

    Faster than :func:`attend` in training: q, k and v are copied once, for both passes.

    Args:
        qkv: (B, H, W, 3 * C), with sides that are multiples of the groups' regions.
        table: (2 * group height - 1, 2 * group width - 1, heads).
        plan: The groups.
        num_heads: Attention heads.

    Returns:
        (B, H, W, C).
    """
    return _AttendInMap.apply(qkv, table, plan, num_heads)


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
        return _AttendInRuns.apply(qkv, table, tuple(runs), num_heads)
    return attention_forward(qkv, table, runs, num_heads)


class _AttendInMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int
    ) -> Tensor:
        by_head = group_by_head(qkv, plan, num_heads, 3)
        ctx.save_for_backward(by_head, table)
        ctx.plan, ctx.num_heads = plan, num_heads
        output = _attend_by_head(by_head, table, plan.group_height, plan.group_width)
        return ungroup_by_head(output[None], plan, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_head, table = ctx.saved_tensors
        wide = _at_least_float32(table)
        grad_table = torch.zeros_like(wide)
        (d_out,) = group_by_head(grad, ctx.plan, ctx.num_heads, 1).to(wide.dtype)
        shape = ctx.plan.group_height, ctx.plan.group_width
        gradients = _backward_by_head(by_head.to(wide.dtype), wide, d_out, grad_table, *shape)
        gradients = ungroup_by_head(gradients.to(grad.dtype), ctx.plan, ctx.num_heads)
        return gradients, grad_table.to(table.dtype), None, None


class _AttendInRuns(torch.autograd.Function):
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
        cropped = crop_table(table, run.height, run.width)
        output[:, part] = _attend_in_run(qkv[:, part], cropped, run, num_heads)
    return output


def _attend_in_run(qkv: Tensor, table: Tensor, groups: EqualGroups, num_heads: int) -> Tensor:
    batch, tokens, channels = qkv.shape
    size = groups.height * groups.width
    qkv = qkv.reshape(batch * groups.count, size, channels)
    if _are_small(qkv, groups.height, groups.width):
        output = qkv.new_empty(*qkv.shape[:2], channels // 3)
        bias = expand_table(table).to(qkv.dtype)
        for some in _tiles(len(qkv), FORWARD_SCORES // bias.numel()):
            one = EqualGroups(1, groups.height, groups.width)
            q, k, v = _by_head(qkv[some], one, 3, num_heads)
            attended = _attend(q, k, v, bias)[None]
            output[some] = _undo_by_head(attended, some.stop - some.start, one, num_heads)
    else:
        q, k, v = split_heads(qkv, num_heads)
        output = _attend_in_pieces(q, k, v, table, groups.height, groups.width).transpose(1, 2)
    return output.reshape(batch, tokens, channels // 3)


def _are_small(qkv: Tensor, height: int, width: int) -> bool:
    """Tell whether batched matrix products are the faster way.

    PyTorch's fused CPU kernel takes one group after another, slowly for a few dozen tokens.
    """
    return qkv.device.type == "cpu" and height * width <= SMALL_GROUP


def _tiles(count: int, at_once: int) -> Iterator[slice]:
    step = max(1, at_once)
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def attention_backward(
    qkv: Tensor, table: Tensor, grad: Tensor, runs: Sequence[EqualGroups], num_heads: int
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of ``qkv`` and ``table`` from that of the output, (B, T, C)."""
    grad_qkv = torch.empty_like(qkv)
    wide = _at_least_float32(table)
    grad_table = torch.zeros_like(wide)
    for run, part in _split(runs):
        by_head = _by_head(qkv[:, part], run, 3, num_heads).to(wide.dtype)
        (d_out,) = _by_head(grad[:, part], run, 1, num_heads).to(wide.dtype)
        cropped = crop_table(wide, run.height, run.width)
        grad_cropped = crop_table(grad_table, run.height, run.width)
        gradients = _backward_by_head(by_head, cropped, d_out, grad_cropped, run.height, run.width)
        grad_qkv[:, part] = _undo_by_head(gradients, len(qkv), run, num_heads)
    return grad_qkv, grad_table.to(table.dtype)


def _split(runs: Sequence[EqualGroups]) -> Iterator[tuple[EqualGroups, slice]]:
    """Each run with the place of its tokens."""
    start = 0
    for run in runs:
        yield run, slice(start, start + run.tokens)
        start += run.tokens


def _by_head(x: Tensor, groups: EqualGroups, parts: int, num_heads: int) -> Tensor:
    """(B, tokens, parts * C) -> (parts, B * groups * heads, tokens of one, C / heads)."""
    count, size = len(x) * groups.count, groups.height * groups.width
    head_dims = x.shape[-1] // (parts * num_heads)
    x = x.reshape(count, size, parts, num_heads, head_dims).permute(2, 0, 3, 1, 4)
    return x.reshape(parts, count * num_heads, size, head_dims)


def _undo_by_head(x: Tensor, batch: int, groups: EqualGroups, num_heads: int) -> Tensor:
    """(parts, B * groups * heads, tokens of one, C / heads) -> (B, tokens, parts * C)."""
    parts, _, size, head_dims = x.shape
    x = x.view(parts, batch * groups.count, num_heads, size, head_dims)
    return x.permute(1, 3, 0, 2, 4).reshape(batch, groups.tokens, parts * num_heads * head_dims)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _attend_by_head(qkv: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """Attend in groups of one shape: (3, groups * heads, tokens, dims) -> (groups * heads, ...)."""
    if _are_small(qkv, height, width):
        bias = expand_table(table).to(qkv.dtype)
        output = torch.empty_like(qkv[0])
        for some in _tiles(len(output) // len(bias), FORWARD_SCORES // bias.numel()):
            some = slice(some.start * len(bias), some.stop * len(bias))
            output[some] = _attend(*qkv[:, some], bias)
        return output
    q, k, v = qkv.unflatten(1, (qkv.shape[1] // table.shape[-1], table.shape[-1]))
    return _attend_in_pieces(q, k, v, table, height, width).flatten(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Multiply matrices: (groups * heads, tokens, dims) each, and (heads, tokens, tokens)."""
    bias = bias.repeat(len(q) // len(bias), 1, 1)
    logits = torch.baddbmm(bias, q, k.mT, alpha=q.shape[-1] ** -0.5)
    return logits.softmax(dim=-1) @ v


def _attend_in_pieces(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, height: int, width: int
) -> Tensor:
    """Use PyTorch's fused attention, some queries at a time: (groups, heads, tokens, dims)."""
    pieces = [
        # A bias wider than q is silently wrong in some of PyTorch's fused kernels.
        F.scaled_dot_product_attention(
            q[:, :, queries], k, v, attn_mask=expand_rows(table, rows).to(q.dtype)[None]
        )
        for rows, queries in _split_queries(height, width, q.shape[1], FORWARD_BIAS_ENTRIES)
    ]
    return torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0]


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., tokens, 3 * C) -> three of (..., heads, tokens, C / heads)."""
    head_dims = qkv.shape[-1] // (3 * num_heads)
    q, k, v = qkv.unflatten(-1, (3, num_heads, head_dims)).movedim(-3, 0).transpose(-3, -2)
    return q, k, v


def _split_queries(
    height: int, width: int, num_heads: int, max_entries: int
) -> Iterator[tuple[range, slice]]:
    """Rows of query tokens whose bias has at most ``max_entries`` values, and their tokens."""
    step = min(height, max(1, max_entries // (num_heads * width * height * width)))
    for first in range(0, height, step):
        rows = range(first, min(first + step, height))
        yield rows, slice(rows.start * width, rows.stop * width)


def _backward_by_head(
    qkv: Tensor, table: Tensor, d_out: Tensor, grad_table: Tensor, height: int, width: int
) -> Tensor:
    """Return the gradient of ``qkv``, and add that of the table to ``grad_table``.

    With P the softmax of the scores S, the gradients are dV = P' dO, dP = dO V',
    dS = P * (dP - rowsum(P * dP)), dQ = dS K and dK = dS' Q, and the bias gets the sum of dS.
    """
    q, k, v = qkv
    gradients = torch.empty_like(qkv)
    dq, dk, dv = gradients
    scale = q.shape[-1] ** -0.5
    for rows, queries in _split_queries(height, width, table.shape[-1], BACKWARD_BIAS_ENTRIES):
        bias = expand_rows(table, rows)
        d_bias = torch.zeros_like(bias)
        beta = int(rows.start > 0)  # the first rows write, the others add
        at_once = max(1, BACKWARD_SCORES // bias.numel()) * len(bias)
        for first in range(0, len(q), at_once):
            some = slice(first, min(first + at_once, len(q)))
            copies = (some.stop - first) // len(bias)
            scores = torch.baddbmm(
                bias.repeat(copies, 1, 1), q[some, queries], k[some].mT, alpha=scale
            )
            p = scores.softmax(dim=-1)
            dv[some].baddbmm_(p.mT, d_out[some, queries], beta=beta)
            dp = torch.bmm(d_out[some, queries], v[some].mT, out=scores)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            d_bias += ds.view(copies, *bias.shape).sum(dim=0)
            dq[some, queries].baddbmm_(ds, k[some], beta=0, alpha=scale)
            dk[some].baddbmm_(ds.mT, q[some, queries], beta=beta, alpha=scale)
        sum_rows(d_bias, rows, into=grad_table)
    return gradients
