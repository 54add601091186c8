"""Triton kernels of grouped attention and the functions that launch them; importing needs Triton.

Vocabulary of the kernels. A group is named by the flat position of its first token in the batch of
maps; its real tokens are a rectangle of ``rows x columns`` members, ``interval`` apart on the map.
The rows and columns of a tile are ``slots``, each holding one member. A slot past the end repeats
the group's first token, so that every address is valid without masking the load; its probability
is zero and its result is not stored. Groups that are all padding come last along each axis, and no
program ever sees them.

Logits are kept times log2(e), because the hardware's exponential has base 2.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossformer_mm.models.grouping import GroupPlan

LOG2_E = tl.constexpr(1.4426950408889634)
# What the gradients of the bias of single pairs may take before they are added up by offset.
WORKSPACE_BYTES = 64 << 20
# Fills the largest GPUs; a constant, so that the order of sums does not depend on the GPU.
WANTED_WARPS = 4096
# Longer groups do not fit the single tile of the one-pass backward kernel.
ONE_TILE_TOKENS = 64

# Specialising on these would compile anew for the first even, 16-fold or 1-token size that comes.
SIZES = [
    *("height", "width", "group_height", "group_width", "interval", "groups_y", "groups_x"),
    *("num_heads", "num_groups", "slices", "first_query", "last_query"),
]


@triton.jit
def _group(index, height, width, group_height, group_width, interval, groups_y, groups_x):
    """First token of the index-th group of the batch, and its real rows and columns."""
    group_x, group_y = index % groups_x, index // groups_x % groups_y
    top = group_y // interval * group_height * interval + group_y % interval
    left = group_x // interval * group_width * interval + group_x % interval
    rows = tl.minimum(group_height, tl.cdiv(height - top, interval))
    columns = tl.minimum(group_width, tl.cdiv(width - left, interval))
    batch = (index // groups_x // groups_y).to(tl.int64)
    return (batch * height + top) * width + left, rows, columns


@triton.jit
def _members(slots, first, rows, columns, width, interval, group_width):
    """Token and entry of the bias table of some slots, one per real member, and whether it has one.

    The bias of a pair is at the query's entry minus the key's, seen from the table's middle.
    """
    y, x = slots // columns, slots % columns
    real = y < rows
    y, x = tl.where(real, y, 0), tl.where(real, x, 0)
    return first + (y * width + x) * interval, y * (2 * group_width - 1) + x, real


@triton.jit
def _members_as_in_full_group(
    slots, group, height, width, group_height, group_width, interval, groups_y, groups_x
):
    """Token of some slots, numbered as in a full group, and whether it is real."""
    first, rows, columns = _group(
        group, height, width, group_height, group_width, interval, groups_y, groups_x
    )
    y, x = slots // group_width, slots % group_width
    real = (y < rows) & (x < columns)
    y, x = tl.where(real, y, 0), tl.where(real, x, 0)
    return first + (y * width + x) * interval, real


@triton.jit
def _block_of_group(
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads, BLOCK
):
    """The head, first slot and group of a program that computes one block of one group."""
    head, rest = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    blocks = tl.cdiv(group_height * group_width, BLOCK)
    first, rows, columns = _group(
        rest // blocks, height, width, group_height, group_width, interval, groups_y, groups_x
    )
    return head, rest % blocks * BLOCK, first, rows, columns


@triton.jit
def _middle_of_table(table, head, group_height, group_width):
    row = head * (2 * group_height - 1) + group_height - 1
    return table + row * (2 * group_width - 1) + group_width - 1


@triton.jit
def _bias_of_full_group(table, head, queries, keys, group_height, group_width):
    """Biases of pairs of slots, numbered as in a full group: the same for all groups."""
    tokens = group_height * group_width
    queries, keys = tl.where(queries < tokens, queries, 0), tl.where(keys < tokens, keys, 0)
    q_entry = queries // group_width * (2 * group_width - 1) + queries % group_width
    k_entry = keys // group_width * (2 * group_width - 1) + keys % group_width
    table = _middle_of_table(table, head, group_height, group_width)
    return tl.load(table + (q_entry[:, None] - k_entry[None, :]))


@triton.jit
def _tile(start, tokens, heads, head, HEAD_DIM: tl.constexpr):
    """Pointers to one of the ``heads`` heads of some tokens: (tokens, HEAD_DIM)."""
    start += head * HEAD_DIM
    return start + tokens[:, None] * (heads * HEAD_DIM) + tl.arange(0, HEAD_DIM)[None, :]


@triton.jit
def _load_kv(qkv, tokens, num_heads, head, HEAD_DIM: tl.constexpr):
    """One head's k and v of some tokens; q comes before them."""
    k = tl.load(_tile(qkv, tokens, 3 * num_heads, head + num_heads, HEAD_DIM))
    v = tl.load(_tile(qkv, tokens, 3 * num_heads, head + 2 * num_heads, HEAD_DIM))
    return k, v


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _logits(rows, columns, bias, visible, HEAD_DIM: tl.constexpr):
    logits = _product(rows, tl.trans(columns)) * (HEAD_DIM**-0.5 * LOG2_E) + bias
    return tl.where(visible, logits, float("-inf"))


@triton.jit(do_not_specialize=SIZES)
def _one_tile_forward_kernel(
    qkv, table, output, logsumexp,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    num_groups, slices, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Groups that fit one tile. One program: one slice of the groups, one head."""
    head, part = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    slots = tl.arange(0, BLOCK)
    bias = _bias_of_full_group(table, head, slots, slots, group_height, group_width)
    for group in range(part, num_groups, slices):
        token, real = _members_as_in_full_group(
            slots, group, height, width, group_height, group_width, interval, groups_y, groups_x
        )
        q = tl.load(_tile(qkv, token, 3 * num_heads, head, HEAD_DIM))
        k, v = _load_kv(qkv, token, num_heads, head, HEAD_DIM)
        logits = _logits(q, k, bias, real[None, :], HEAD_DIM)
        maximum = tl.max(logits, 1)
        weights = tl.exp2(logits - maximum[:, None])
        total = tl.sum(weights, 1)
        result = _product(weights.to(v.dtype), v) / total[:, None]
        tl.store(_tile(output, token, num_heads, head, HEAD_DIM), result, mask=real[:, None])
        tl.store(logsumexp + token * num_heads + head, maximum + tl.log2(total), mask=real)


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    qkv, table, output, logsumexp,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: one block of queries of one group, one head."""
    head, first_query, first, rows, columns = _block_of_group(
        height, width, group_height, group_width, interval, groups_y, groups_x, num_heads, BLOCK_M
    )
    if first_query >= rows * columns:
        return
    table = _middle_of_table(table, head, group_height, group_width)

    slots = first_query + tl.arange(0, BLOCK_M)
    q_token, q_entry, q_real = _members(slots, first, rows, columns, width, interval, group_width)
    q = tl.load(_tile(qkv, q_token, 3 * num_heads, head, HEAD_DIM))
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start in range(0, rows * columns, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_token, k_entry, real = _members(keys, first, rows, columns, width, interval, group_width)
        k, v = _load_kv(qkv, k_token, num_heads, head, HEAD_DIM)
        bias = tl.load(table + (q_entry[:, None] - k_entry[None, :]))
        logits = _logits(q, k, bias, real[None, :], HEAD_DIM)
        # Every block of keys starts with a real one, so the maximum is finite.
        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        shrink = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(logits - new_maximum[:, None])
        total = total * shrink + tl.sum(weights, 1)
        weighted = weighted * shrink[:, None] + _product(weights.to(v.dtype), v)
        maximum = new_maximum

    result = weighted / total[:, None]
    tl.store(_tile(output, q_token, num_heads, head, HEAD_DIM), result, mask=q_real[:, None])
    tl.store(logsumexp + q_token * num_heads + head, maximum + tl.log2(total), mask=q_real)


@triton.jit(do_not_specialize=SIZES)
def _one_tile_backward_kernel(
    grad_output, qkv, table, logsumexp, grad_qkv, partial,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    num_groups, slices, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Everything for groups that fit one tile. One program: one slice of the groups, one head."""
    head, part = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    slots = tl.arange(0, BLOCK)
    bias = _bias_of_full_group(table, head, slots, slots, group_height, group_width)
    grad_bias = tl.zeros([BLOCK, BLOCK], tl.float32)
    for group in range(part, num_groups, slices):
        token, real = _members_as_in_full_group(
            slots, group, height, width, group_height, group_width, interval, groups_y, groups_x
        )
        q = tl.load(_tile(qkv, token, 3 * num_heads, head, HEAD_DIM))
        k, v = _load_kv(qkv, token, num_heads, head, HEAD_DIM)
        grad = tl.load(_tile(grad_output, token, num_heads, head, HEAD_DIM))
        row_logsumexp = tl.load(logsumexp + token * num_heads + head)
        logits = _logits(q, k, bias, real[:, None] & real[None, :], HEAD_DIM)
        weights = tl.exp2(logits - row_logsumexp[:, None])
        grad_weights = _product(grad, tl.trans(v))
        # The rows of P * dP sum to those of dO * O, and are at hand.
        grad_weights -= tl.sum(weights * grad_weights, 1)[:, None]
        grad_logits = weights * grad_weights
        grad_bias += grad_logits

        grad_v = _product(tl.trans(weights.to(q.dtype)), grad)
        rounded = grad_logits.to(q.dtype)
        grad_q = _product(rounded, k) * HEAD_DIM**-0.5
        grad_k = _product(tl.trans(rounded), q) * HEAD_DIM**-0.5
        target = _tile(grad_qkv, token, 3 * num_heads, head, HEAD_DIM)
        tl.store(target, grad_q, mask=real[:, None])
        tl.store(target + num_heads * HEAD_DIM, grad_k, mask=real[:, None])
        tl.store(target + 2 * num_heads * HEAD_DIM, grad_v, mask=real[:, None])

    tokens = group_height * group_width
    inside = slots < tokens
    partial += (part * num_heads + head).to(tl.int64) * tokens * tokens
    target = partial + slots[:, None] * tokens + slots[None, :]
    tl.store(target, grad_bias, mask=inside[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES)
def _grad_query_kernel(
    grad_output, qkv, table, output, logsumexp, grad_qkv, delta,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dQ and delta = rowsum(dO * O). One program: one block of queries of one group, one head."""
    head, first_query, first, rows, columns = _block_of_group(
        height, width, group_height, group_width, interval, groups_y, groups_x, num_heads, BLOCK_M
    )
    if first_query >= rows * columns:
        return
    table = _middle_of_table(table, head, group_height, group_width)

    slots = first_query + tl.arange(0, BLOCK_M)
    q_token, q_entry, q_real = _members(slots, first, rows, columns, width, interval, group_width)
    q = tl.load(_tile(qkv, q_token, 3 * num_heads, head, HEAD_DIM))
    grad = tl.load(_tile(grad_output, q_token, num_heads, head, HEAD_DIM))
    result = tl.load(_tile(output, q_token, num_heads, head, HEAD_DIM))
    row_delta = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    row_logsumexp = tl.load(logsumexp + q_token * num_heads + head)
    grad_q = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start in range(0, rows * columns, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_token, k_entry, real = _members(keys, first, rows, columns, width, interval, group_width)
        k, v = _load_kv(qkv, k_token, num_heads, head, HEAD_DIM)
        bias = tl.load(table + (q_entry[:, None] - k_entry[None, :]))
        weights = tl.exp2(_logits(q, k, bias, real[None, :], HEAD_DIM) - row_logsumexp[:, None])
        grad_logits = weights * (_product(grad, tl.trans(v)) - row_delta[:, None])
        grad_q += _product(grad_logits.to(k.dtype), k)

    target = _tile(grad_qkv, q_token, 3 * num_heads, head, HEAD_DIM)
    tl.store(target, grad_q * HEAD_DIM**-0.5, mask=q_real[:, None])
    tl.store(delta + q_token * num_heads + head, row_delta, mask=q_real)


@triton.jit(do_not_specialize=SIZES)
def _grad_key_kernel(
    grad_output, qkv, table, logsumexp, delta, grad_qkv,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dK and dV, from transposed logits. One program: one block of keys of one group, one head."""
    head, first_key, first, rows, columns = _block_of_group(
        height, width, group_height, group_width, interval, groups_y, groups_x, num_heads, BLOCK_M
    )
    if first_key >= rows * columns:
        return
    table = _middle_of_table(table, head, group_height, group_width)

    keys = first_key + tl.arange(0, BLOCK_M)
    k_token, k_entry, k_real = _members(keys, first, rows, columns, width, interval, group_width)
    k, v = _load_kv(qkv, k_token, num_heads, head, HEAD_DIM)
    grad_k = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    grad_v = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start in range(0, rows * columns, BLOCK_N):
        slots = start + tl.arange(0, BLOCK_N)
        q_token, q_entry, real = _members(slots, first, rows, columns, width, interval, group_width)
        q = tl.load(_tile(qkv, q_token, 3 * num_heads, head, HEAD_DIM))
        grad = tl.load(_tile(grad_output, q_token, num_heads, head, HEAD_DIM))
        row_logsumexp = tl.load(logsumexp + q_token * num_heads + head)
        row_delta = tl.load(delta + q_token * num_heads + head)
        bias = tl.load(table + (q_entry[None, :] - k_entry[:, None]))
        weights = tl.exp2(_logits(k, q, bias, real[None, :], HEAD_DIM) - row_logsumexp[None, :])
        grad_v += _product(weights.to(q.dtype), grad)
        grad_logits = weights * (_product(v, tl.trans(grad)) - row_delta[None, :])
        grad_k += _product(grad_logits.to(q.dtype), q)

    target = _tile(grad_qkv, k_token, 3 * num_heads, head, HEAD_DIM)
    tl.store(target + num_heads * HEAD_DIM, grad_k * HEAD_DIM**-0.5, mask=k_real[:, None])
    tl.store(target + 2 * num_heads * HEAD_DIM, grad_v, mask=k_real[:, None])


@triton.jit(do_not_specialize=SIZES)
def _grad_bias_kernel(
    grad_output, qkv, table, logsumexp, delta, partial,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    num_groups, slices, first_query, last_query,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum dS over one slice of the groups. One program: one tile of queries x keys, one head."""
    tokens = group_height * group_width
    key_blocks = tl.cdiv(tokens, BLOCK_N)
    query_blocks = tl.cdiv(last_query - first_query, BLOCK_M)
    head, rest = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    key_block, rest = rest % key_blocks, rest // key_blocks
    query_block, part = rest % query_blocks, rest // query_blocks
    queries = first_query + query_block * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = key_block * BLOCK_N + tl.arange(0, BLOCK_N)
    bias = _bias_of_full_group(table, head, queries, keys, group_height, group_width)
    grad_bias = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(part, num_groups, slices):
        q_token, q_real = _members_as_in_full_group(
            queries, group, height, width, group_height, group_width, interval, groups_y, groups_x
        )
        k_token, k_real = _members_as_in_full_group(
            keys, group, height, width, group_height, group_width, interval, groups_y, groups_x
        )
        q = tl.load(_tile(qkv, q_token, 3 * num_heads, head, HEAD_DIM))
        k, v = _load_kv(qkv, k_token, num_heads, head, HEAD_DIM)
        grad = tl.load(_tile(grad_output, q_token, num_heads, head, HEAD_DIM))
        row_logsumexp = tl.load(logsumexp + q_token * num_heads + head)
        row_delta = tl.load(delta + q_token * num_heads + head)
        logits = _logits(q, k, bias, q_real[:, None] & k_real[None, :], HEAD_DIM)
        weights = tl.exp2(logits - row_logsumexp[:, None])
        grad_bias += weights * (_product(grad, tl.trans(v)) - row_delta[:, None])

    partial += (part * num_heads + head).to(tl.int64) * (last_query - first_query) * tokens
    target = partial + (queries - first_query)[:, None] * tokens + keys[None, :]
    tl.store(target, grad_bias, mask=(queries < last_query)[:, None] & (keys < tokens)[None, :])


@triton.jit(do_not_specialize=SIZES)
def _sum_offsets_kernel(
    grad_bias, grad_table, group_height, group_width, num_heads, first_query, last_query,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add dS of all pairs at one offset. One program: one dy, a block of dx, one head."""
    table_height, table_width = 2 * group_height - 1, 2 * group_width - 1
    blocks = tl.cdiv(table_width, BLOCK_N)
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    entry_y, head = rest % table_height, rest // table_height
    entry_x = block * BLOCK_N + tl.arange(0, BLOCK_N)
    dy, dx = entry_y - (group_height - 1), entry_x - (group_width - 1)

    tokens = group_height * group_width
    grad_bias += head.to(tl.int64) * (last_query - first_query) * tokens
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # Other rows of queries have no key dy rows above them.
    begin = tl.maximum(first_query, tl.maximum(dy, 0) * group_width)
    end = tl.minimum(last_query, tl.minimum(group_height, group_height + dy) * group_width)
    for start in range(begin, end, BLOCK_M):
        query = start + tl.arange(0, BLOCK_M)
        key_y = query // group_width - dy
        key_x = (query % group_width)[:, None] - dx[None, :]
        pair = (query < end)[:, None] & (key_x >= 0) & (key_x < group_width)
        row = (query - first_query) * tokens + key_y * group_width
        total += tl.load(grad_bias + (row[:, None] + key_x), mask=pair, other=0.0)

    target = grad_table + (entry_y * table_width + entry_x) * num_heads + head
    inside = entry_x < table_width
    before = tl.load(target, mask=inside, other=0.0)
    tl.store(target, before + tl.sum(total, 0), mask=inside)


class Tile(NamedTuple):
    """Tokens whose results a program computes, tokens it reads at a time, warps, and pipelining."""

    own: int
    other: int
    warps: int
    stages: int


def choose_tile(tokens: int, dtype: torch.dtype, backward: bool = False) -> Tile:
    """Choose the tile for groups of ``tokens`` tokens.

    Up to 64 tokens, the smallest square that holds the group. Tensor cores want 16 rows per warp.
    The biases stay in registers, and the next group's tokens are read ahead. Longer groups wait for
    the lookups of biases: reading ahead would take them through shared memory, and many small
    programs per SM hide the waiting better. Backward has more sums at once, so its tiles are half
    as large. Products in float32 use no tensor cores and keep all operands in registers: smaller
    tiles, more warps.
    """
    single = dtype == torch.float32
    for side in (16, 32, ONE_TILE_TOKENS):
        if tokens <= side:
            return Tile(side, side, side // (8 if single else 16), 1 if single else 2)
    if single:
        return Tile(32, 32, 4, 1)
    return Tile(64, 32 if backward else 64, 4, 1)


def count_groups(size: int, group: int, interval: int) -> int:
    """Count the groups along one axis that have at least one real token."""
    full_regions, last = divmod(size - 1, group * interval)
    return full_regions * interval + min(interval, last + 1)


def launch_forward(qkv, table, plan: GroupPlan, num_heads: int) -> tuple[Tensor, Tensor]:
    """Attend within groups, from contiguous tensors and a table in float32.

    Returns:
        The output (B, H, W, C), and the base-2 logarithm of the softmax's denominator
        (B, H, W, heads) in float32.
    """
    output = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    logsumexp = qkv.new_empty(*qkv.shape[:3], num_heads, dtype=torch.float32)
    values = _values(qkv, table, plan, num_heads, output=output, logsumexp=logsumexp)
    tokens, num_groups = plan.group_height * plan.group_width, values["num_groups"]
    tile = choose_tile(tokens, qkv.dtype)
    if tokens <= ONE_TILE_TOKENS:
        slices = _count_slices(num_groups, num_heads, tile)
        _launch(_one_tile_forward_kernel, num_heads * slices, tile, values, slices=slices)
    else:
        programs = num_heads * triton.cdiv(tokens, tile.own) * num_groups
        _launch(_forward_kernel, programs, tile, values)
    return output, logsumexp


def launch_backward(grad_output, qkv, table, output, logsumexp, plan: GroupPlan, num_heads: int):
    """Compute the gradients of ``qkv`` and ``table``; the order of all sums is fixed.

    ``grad_output`` is contiguous; the rest is what :func:`launch_forward` took and returned.
    """
    grad_qkv, grad_table = torch.empty_like(qkv), torch.zeros_like(table)
    tensors = dict(grad_output=grad_output, output=output, logsumexp=logsumexp)
    results = dict(grad_qkv=grad_qkv, grad_table=grad_table, delta=torch.empty_like(logsumexp))
    values = _values(qkv, table, plan, num_heads, **tensors, **results)
    tokens, num_groups = plan.group_height * plan.group_width, values["num_groups"]
    tile = choose_tile(tokens, qkv.dtype, backward=True)
    bytes_per_query = 4 * num_heads * tokens
    if tokens <= ONE_TILE_TOKENS:
        kernel, chunk = _one_tile_backward_kernel, tokens
    else:
        programs = num_heads * triton.cdiv(tokens, tile.own) * num_groups
        _launch(_grad_query_kernel, programs, tile, values)
        _launch(_grad_key_kernel, programs, tile, values)
        # The biases stay in registers here as for short groups, so reading ahead pays.
        kernel, tile = _grad_bias_kernel, tile._replace(stages=2)
        # As many queries at a time as the workspace holds.
        chunk = max(1, WORKSPACE_BYTES // (bytes_per_query * tile.own)) * tile.own
    for first in range(0, tokens, chunk):
        last = min(first + chunk, tokens)
        tiles = triton.cdiv(last - first, tile.own) * triton.cdiv(tokens, tile.other) * num_heads
        slices = _count_slices(num_groups, tiles, tile, bytes_per_query * (last - first))
        partial = table.new_empty(slices, num_heads, last - first, tokens)
        work = dict(slices=slices, partial=partial, first_query=first, last_query=last)
        _launch(kernel, tiles * slices, tile, values, **work)
        grad_bias = partial.sum(0) if slices != 1 else partial
        by_offset = Tile(own=16, other=32, warps=4, stages=3)
        programs = num_heads * len(table) * triton.cdiv(table.shape[1], by_offset.other)
        _launch(_sum_offsets_kernel, programs, by_offset, values, grad_bias=grad_bias, **work)
    return grad_qkv, grad_table


def _count_slices(num_groups: int, programs: int, tile: Tile, workspace: int = 1) -> int:
    """Split the groups to fill the GPU; ``programs`` and ``workspace`` bytes are of one slice."""
    wanted = min(WANTED_WARPS // (programs * tile.warps), WORKSPACE_BYTES // workspace)
    return min(num_groups, max(1, wanted))


def _values(
    qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int, **tensors: Tensor
) -> dict[str, object]:
    """What all kernels of one call share, by the names of their parameters."""
    groups_y = count_groups(plan.height, plan.group_height, plan.interval)
    groups_x = count_groups(plan.width, plan.group_width, plan.interval)
    num_groups = len(qkv) * groups_y * groups_x
    sizes = dict(groups_y=groups_y, groups_x=groups_x, num_heads=num_heads, num_groups=num_groups)
    # Heads first, so that one head's biases share cache lines, and in the unit of the logits.
    scaled = table.new_empty(table.shape[2], *table.shape[:2])
    torch.mul(table.permute(2, 0, 1), LOG2_E.value, out=scaled)
    sizes["HEAD_DIM"] = qkv.shape[-1] // (3 * num_heads)
    return dict(qkv=qkv, table=scaled, **tensors, **plan._asdict(), **sizes)


def _launch(kernel, programs: int, tile: Tile, values: dict, **work: object) -> None:
    """Run a kernel on those of the values that it has a parameter for."""
    if programs == 0:
        return
    values = dict(values, **work, BLOCK=tile.own, BLOCK_M=tile.own, BLOCK_N=tile.other)
    arguments = {name: values[name] for name in kernel.arg_names}
    device = values["qkv"].device
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](**arguments, num_warps=tile.warps, num_stages=tile.stages)
