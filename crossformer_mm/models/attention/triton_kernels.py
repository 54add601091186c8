"""Triton kernels of grouped attention and the functions that launch them; importing needs Triton.

A kernel finds the tokens of a group in ``members`` (groups, tokens), numbered through the batch of
maps. Padding has number -1: it is read as zeros, nobody attends to it, and nothing is stored for
it. The bias of a pair is at the query's entry of the table minus the key's, from its middle.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossformer_mm.models.grouping import GroupPlan, partition
from crossformer_mm.models.position_bias import split_table, sum_rows

# Tokens that a program computes, and reads, at a time: few enough for float32 in registers.
BLOCK_TOKENS = 32
# For the bias gradients of single pairs, before they are added up by offset. A program fills 4 KB
# of it, so that there are enough programs for the largest GPUs.
WORKSPACE_BYTES = 16 << 20

# Specialising on these would compile anew for the first even, 16-fold or 1-token size that comes.
SIZES = [
    *("middle", "group_tokens", "group_width", "num_heads"),
    *("num_groups", "first_query", "last_query"),
]


@triton.jit
def _members(members, group, slots, group_tokens, group_width):
    """Token at some places of a group, and its entry of the bias table."""
    token = tl.load(members + group * group_tokens + slots, mask=slots < group_tokens, other=-1)
    return token, slots // group_width * (2 * group_width - 1) + slots % group_width


@triton.jit
def _load(start, token, heads, head, HEAD_DIM: tl.constexpr):
    """One of the ``heads`` heads of some tokens: (tokens, HEAD_DIM)."""
    start += (token[:, None] * heads + head) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    return tl.load(start, mask=token[:, None] >= 0, other=0.0)


@triton.jit
def _store(start, token, heads, head, value, HEAD_DIM: tl.constexpr):
    start += (token[:, None] * heads + head) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(start, value, mask=token[:, None] >= 0)


@triton.jit
def _load_keys(qkv, token, num_heads, head, HEAD_DIM: tl.constexpr):
    """One head's k and v of some tokens; q comes before them."""
    k = _load(qkv, token, 3 * num_heads, head + num_heads, HEAD_DIM)
    v = _load(qkv, token, 3 * num_heads, head + 2 * num_heads, HEAD_DIM)
    return k, v


@triton.jit
def _load_queries(
    qkv, grad_output, logsumexp, delta, token, num_heads, head, HEAD_DIM: tl.constexpr
):
    """One head's q of some tokens, and what the backward pass knows of their results."""
    q = _load(qkv, token, 3 * num_heads, head, HEAD_DIM)
    grad = _load(grad_output, token, num_heads, head, HEAD_DIM)
    row = token * num_heads + head
    row_logsumexp = tl.load(logsumexp + row, mask=token >= 0, other=0.0)
    row_delta = tl.load(delta + row, mask=token >= 0, other=0.0)
    return q, grad, row_logsumexp, row_delta


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _logits(q, q_token, q_entry, k, k_token, k_entry, table, HEAD_DIM: tl.constexpr):
    """Logits of all pairs: minus infinity if one of the two is padding."""
    real = (q_token[:, None] >= 0) & (k_token[None, :] >= 0)
    bias = tl.load(table + q_entry[:, None] - k_entry[None, :], mask=real, other=float("-inf"))
    return _product(q, tl.trans(k)) * HEAD_DIM**-0.5 + bias


@triton.jit
def _grad_logits(logits, grad, row_logsumexp, row_delta, v):
    """The weights P of attention again, and the gradients dS of the logits."""
    weights = tl.exp(logits - row_logsumexp[:, None])
    return weights, weights * (_product(grad, tl.trans(v)) - row_delta[:, None])


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    qkv, table, members, output, logsumexp, middle, group_tokens, group_width, num_heads,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one block of queries of one group, one head."""
    head, group = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    table += head * (2 * middle + 1) + middle
    slots = tl.arange(0, BLOCK)
    queries = tl.program_id(1) * BLOCK + slots
    q_token, q_entry = _members(members, group, queries, group_tokens, group_width)
    if tl.max(q_token, 0) < 0:
        return  # all of the block is padding
    q = _load(qkv, q_token, 3 * num_heads, head, HEAD_DIM)
    maximum = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    for start in range(0, group_tokens, BLOCK):
        k_token, k_entry = _members(members, group, start + slots, group_tokens, group_width)
        k, v = _load_keys(qkv, k_token, num_heads, head, HEAD_DIM)
        logits = _logits(q, q_token, q_entry, k, k_token, k_entry, table, HEAD_DIM)
        # Finite for real queries: padding never comes first in a group that has real tokens.
        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        shrink = tl.exp(maximum - new_maximum)
        weights = tl.exp(logits - new_maximum[:, None])
        total = total * shrink + tl.sum(weights, 1)
        weighted = weighted * shrink[:, None] + _product(weights.to(v.dtype), v)
        maximum = new_maximum

    _store(output, q_token, num_heads, head, weighted / total[:, None], HEAD_DIM)
    row = q_token * num_heads + head
    tl.store(logsumexp + row, maximum + tl.log(total), mask=q_token >= 0)


@triton.jit(do_not_specialize=SIZES)
def _backward_kernel(
    grad_output, qkv, table, members, logsumexp, delta, grad_qkv,
    middle, group_tokens, group_width, num_heads, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dQ, dK and dV. One program: one block of tokens of one group, one head.

    As queries the block meets all tokens of the group, and then as keys.
    """
    head, group = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    table += head * (2 * middle + 1) + middle
    slots = tl.arange(0, BLOCK)
    own = tl.program_id(1) * BLOCK + slots
    token, entry = _members(members, group, own, group_tokens, group_width)
    if tl.max(token, 0) < 0:
        return  # all of the block is padding

    # As queries.
    q, grad, row_logsumexp, row_delta = _load_queries(
        qkv, grad_output, logsumexp, delta, token, num_heads, head, HEAD_DIM
    )
    grad_q = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    for start in range(0, group_tokens, BLOCK):
        k_token, k_entry = _members(members, group, start + slots, group_tokens, group_width)
        k, v = _load_keys(qkv, k_token, num_heads, head, HEAD_DIM)
        logits = _logits(q, token, entry, k, k_token, k_entry, table, HEAD_DIM)
        _, grad_logits = _grad_logits(logits, grad, row_logsumexp, row_delta, v)
        grad_q += _product(grad_logits.to(k.dtype), k)
    _store(grad_qkv, token, 3 * num_heads, head, grad_q * HEAD_DIM**-0.5, HEAD_DIM)

    # As keys; in the same loop, it would take more registers than there are.
    k, v = _load_keys(qkv, token, num_heads, head, HEAD_DIM)
    grad_k = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    grad_v = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    for start in range(0, group_tokens, BLOCK):
        q_token, q_entry = _members(members, group, start + slots, group_tokens, group_width)
        q, grad, row_logsumexp, row_delta = _load_queries(
            qkv, grad_output, logsumexp, delta, q_token, num_heads, head, HEAD_DIM
        )
        logits = _logits(q, q_token, q_entry, k, token, entry, table, HEAD_DIM)
        weights, grad_logits = _grad_logits(logits, grad, row_logsumexp, row_delta, v)
        grad_k += _product(tl.trans(grad_logits.to(q.dtype)), q)
        grad_v += _product(tl.trans(weights.to(q.dtype)), grad)
    _store(grad_qkv, token, 3 * num_heads, head + num_heads, grad_k * HEAD_DIM**-0.5, HEAD_DIM)
    _store(grad_qkv, token, 3 * num_heads, head + 2 * num_heads, grad_v, HEAD_DIM)


@triton.jit(do_not_specialize=SIZES)
def _grad_bias_kernel(
    grad_output, qkv, table, members, logsumexp, delta, partial,
    middle, group_tokens, group_width, num_heads, num_groups, first_query, last_query,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum dS over a slice of the groups. One program: one tile of queries x keys, one head."""
    head, first_group = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    slices = tl.num_programs(0) // num_heads
    table += head * (2 * middle + 1) + middle
    queries = first_query + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keys = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    grad_bias = tl.zeros([BLOCK, BLOCK], tl.float32)
    for group in range(first_group, num_groups, slices):
        q_token, q_entry = _members(members, group, queries, group_tokens, group_width)
        k_token, k_entry = _members(members, group, keys, group_tokens, group_width)
        q, grad, row_logsumexp, row_delta = _load_queries(
            qkv, grad_output, logsumexp, delta, q_token, num_heads, head, HEAD_DIM
        )
        k, v = _load_keys(qkv, k_token, num_heads, head, HEAD_DIM)
        logits = _logits(q, q_token, q_entry, k, k_token, k_entry, table, HEAD_DIM)
        _, grad_logits = _grad_logits(logits, grad, row_logsumexp, row_delta, v)
        grad_bias += grad_logits

    row = tl.program_id(0) * (last_query - first_query) + queries - first_query
    target = partial + row[:, None].to(tl.int64) * group_tokens + keys[None, :]
    inside = (queries < last_query)[:, None] & (keys < group_tokens)[None, :]
    tl.store(target, grad_bias, mask=inside)


def launch_forward(
    qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Attend within groups, from contiguous tensors and a table in float32.

    Returns:
        The output (B, H, W, C), and the logarithm of the softmax's denominator (B, H, W, heads) in
        float32.
    """
    output = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    logsumexp = qkv.new_empty(*qkv.shape[:3], num_heads, dtype=torch.float32)
    inputs = _inputs(qkv, table, plan, num_heads)
    groups, tokens = inputs["members"].shape
    grid = (groups * num_heads, triton.cdiv(tokens, BLOCK_TOKENS))
    with torch.cuda.device_of(qkv):  # Triton launches on the current one
        _forward_kernel[grid](output=output, logsumexp=logsumexp, **inputs)
    return output, logsumexp


def launch_backward(
    grad_output: Tensor,
    qkv: Tensor,
    table: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    plan: GroupPlan,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of ``qkv`` and ``table``; the order of all sums is fixed.

    ``grad_output`` is contiguous; the rest is what :func:`launch_forward` took and returned.
    """
    grad_qkv, grad_table = torch.empty_like(qkv), torch.zeros_like(table)
    delta = (grad_output.float() * output).unflatten(-1, (num_heads, -1)).sum(-1)
    inputs = _inputs(qkv, table, plan, num_heads)
    inputs.update(grad_output=grad_output, logsumexp=logsumexp, delta=delta)
    groups, tokens = inputs["members"].shape
    blocks = triton.cdiv(tokens, BLOCK_TOKENS)
    row_bytes = 4 * num_heads * plan.group_width * tokens
    rows_at_once = max(1, WORKSPACE_BYTES // row_bytes)
    with torch.cuda.device_of(qkv):
        _backward_kernel[groups * num_heads, blocks](grad_qkv=grad_qkv, **inputs)
        for _, rows, queries in split_table(table, num_heads, rows_at_once):
            count = queries.stop - queries.start
            slices = min(groups, max(1, WORKSPACE_BYTES // (len(rows) * row_bytes)))
            partial = table.new_empty(slices, num_heads, count, tokens)
            _grad_bias_kernel[slices * num_heads, triton.cdiv(count, BLOCK_TOKENS), blocks](
                partial=partial,
                num_groups=groups,
                first_query=queries.start,
                last_query=queries.stop,
                **inputs,
            )
            sum_rows(partial.sum(0), rows, into=grad_table)
    return grad_qkv, grad_table


def _inputs(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> dict[str, Any]:
    """What all kernels take, by the names of their parameters."""
    shape = (*qkv.shape[:3], 1)
    numbers = torch.arange(1, shape[0] * shape[1] * shape[2] + 1, device=qkv.device).view(shape)
    members = partition(numbers, plan).flatten(0, 1).squeeze(-1) - 1  # padded with zeros until now
    return dict(
        qkv=qkv,
        table=table.permute(2, 0, 1).contiguous(),  # one head's biases share cache lines
        members=members.contiguous(),
        middle=table.shape[0] * table.shape[1] // 2,
        group_tokens=plan.group_height * plan.group_width,
        group_width=plan.group_width,
        num_heads=num_heads,
        HEAD_DIM=qkv.shape[-1] // (3 * num_heads),
        BLOCK=BLOCK_TOKENS,
        num_stages=1,  # more would take lookups of biases through shared memory
    )
