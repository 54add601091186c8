"""Training with large groups in memory linear in the tokens.

PyTorch's fused attention takes the position bias as a matrix, and where that needs a gradient it
falls back to storing every score. Here the forward pass is fused in training too, and the backward
pass computes the scores again, in pieces that stay in the processor's cache, and sums the gradient
of the bias table as it goes.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossformer_mm.models.attention import sdpa
from crossformer_mm.models.attention.eager import differentiable_gradients
from crossformer_mm.models.attention.rectangles import Attention, attend_in_rectangles
from crossformer_mm.models.grouping import GroupPlan, Rectangle
from crossformer_mm.models.position_bias import expand_rows, expand_table, split_table, sum_rows

# Numbers of scores and of values of the bias; chosen with tools/benchmark.py.
SCORES_AT_ONCE = 2**21
BIAS_AT_ONCE = 2**19

can_run = sdpa.can_run


def attend(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Attend as :mod:`.sdpa` does, with another backward pass for large groups."""
    everything = qkv.shape[1:3].numel() ** 2 * num_heads
    return attend_in_rectangles(qkv, table, plan, num_heads, attention_for, everything)


def attention_for(table: Tensor, rectangle: Rectangle) -> Attention:
    """Attention in groups of one shape; small ones need no care."""
    if rectangle.group_tokens <= sdpa.SMALL_GROUP:
        return sdpa.attention_for(table, rectangle)
    return partial(_ChunkedAttention.apply, table)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, qkv: Tensor) -> Tensor:
        ctx.save_for_backward(table, qkv)
        return sdpa.fused_in_pieces(table, qkv)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, qkv = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            output = sdpa.multiply(expand_table(table), qkv)
            return tuple(differentiable_gradients(output, (table, qkv), grad))
        wide = torch.promote_types(qkv.dtype, torch.float32)
        with torch.autocast(qkv.device.type, enabled=False):
            grad_table, grad_qkv = _backward(table.to(wide), qkv.to(wide), grad.to(wide))
        return grad_table.to(table.dtype), grad_qkv.to(qkv.dtype)


def _backward(table: Tensor, qkv: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the table and of q, k and v from that of the output.

    With P the softmax of the scores S, the gradients are dV = P' dO, dP = dO V',
    dS = P * (dP - rowsum(P * dP)), dQ = dS K and dK = dS' Q, and the bias gets the sum of dS.
    """
    grad_table, gradients = table.new_zeros(table.shape), torch.empty_like(qkv)
    groups, tokens = qkv.shape[2:4]
    # (heads * groups, tokens, C / heads)
    q, k, v = qkv.flatten(1, 2)
    dq, dk, dv = gradients.flatten(1, 2)
    d_out = grad.flatten(0, 1)
    scale = q.shape[-1] ** -0.5
    heads_at_once = max(1, BIAS_AT_ONCE // (groups * tokens**2))
    rows_at_once = max(1, BIAS_AT_ONCE // (tokens * (table.shape[1] + 1) // 2))
    for heads, rows, queries in split_table(table, heads_at_once, rows_at_once):
        bias = expand_rows(table[..., heads], rows)
        d_bias = torch.zeros_like(bias)
        beta = int(rows.start > 0)  # the first rows write, the others add
        step = len(bias) * min(groups, max(1, SCORES_AT_ONCE // bias.numel()))
        start, stop = heads.start * groups, (heads.start + len(bias)) * groups
        # Memory that is asked for anew in each round would cost a fifth of the time.
        buffers = bias.new_empty(3, step, *bias.shape[1:])
        for first in range(start, stop, step):
            some = slice(first, min(first + step, stop))
            s, p, ds = buffers[:, : some.stop - first]
            by_head = (len(bias), -1, *bias.shape[1:])
            s.view(by_head).copy_(bias[:, None])
            s.baddbmm_(q[some, queries], k[some].mT, alpha=scale)
            torch.softmax(s, dim=-1, out=p)
            dv[some].baddbmm_(p.mT, d_out[some, queries], beta=beta)
            dp = torch.bmm(d_out[some, queries], v[some].mT, out=s)
            torch._softmax_backward_data(dp, p, -1, p.dtype, grad_input=ds)
            d_bias += ds.view(by_head).sum(dim=1)
            dq[some, queries] = torch.bmm(ds, k[some]).mul_(scale)
            dk[some].baddbmm_(ds.mT, q[some, queries], beta=beta, alpha=scale)
        sum_rows(d_bias, rows, into=grad_table[..., heads])
    return grad_table, gradients
