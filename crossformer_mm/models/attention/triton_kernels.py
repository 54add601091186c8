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
from crossformer_mm.models.position_bias import crop_table

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
def _members(slots, slots_per_row, rows, columns, width, interval, table_width):
    """Distance on the map from the group's first token, entry of the bias table, and reality.

    The bias of a pair is at the query's entry minus the key's, seen from the table's middle.
    """
    y, x = slots // slots_per_row, slots % slots_per_row
    real = (y < rows) & (x < columns)
    y, x = tl.where(real, y, 0), tl.where(real, x, 0)
    return (y * width + x) * interval, y * table_width + x, real


@triton.jit
def _entries(slots, group_height, group_width):
    """Entry of the bias table of each slot of a full group, as in :func:`_members`."""
    slots = tl.where(slots < group_height * group_width, slots, 0)
    return slots // group_width * (2 * group_width - 1) + slots % group_width


@triton.jit
def _middle_of_table(head, group_height, group_width):
    table_width = 2 * group_width - 1
    return (head * (2 * group_height - 1) + group_height - 1) * table_width + group_width - 1


@triton.jit
def _tile(start, tokens, token_stride, HEAD_DIM: tl.constexpr):
    """Pointers to one head's channels of some tokens: (tokens, HEAD_DIM)."""
    return start + tokens[:, None] * token_stride + tl.arange(0, HEAD_DIM)[None, :]


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _logits(rows, columns, bias, visible, SCALE: tl.constexpr):
    logits = _product(rows, tl.trans(columns)) * (SCALE * LOG2_E) + bias
    return tl.where(visible, logits, float("-inf"))


@triton.jit(do_not_specialize=SIZES)
def _one_tile_forward_kernel(
    qkv, table, output, logsumexp,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    num_groups, slices,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Groups that fit one tile. One program: one slice of the groups, one head."""
    head, part = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    channels, table_width = num_heads * HEAD_DIM, 2 * group_width - 1
    qkv += head * HEAD_DIM
    table += _middle_of_table(head, group_height, group_width)

    # Slots are numbered as in a full group, so that the biases stay the same for all groups.
    slots = tl.arange(0, BLOCK)
    entry = _entries(slots, group_height, group_width)
    bias = tl.load(table + (entry[:, None] - entry[None, :]))
    for group in range(part, num_groups, slices):
        first, rows, columns = _group(
            group, height, width, group_height, group_width, interval, groups_y, groups_x
        )
        place, _, real = _members(slots, group_width, rows, columns, width, interval, table_width)
        token = first + place
        q = tl.load(_tile(qkv, token, 3 * channels, HEAD_DIM))
        k = tl.load(_tile(qkv + channels, token, 3 * channels, HEAD_DIM))
        v = tl.load(_tile(qkv + 2 * channels, token, 3 * channels, HEAD_DIM))
        logits = _logits(q, k, bias, real[None, :], SCALE)
        maximum = tl.max(logits, 1)
        weights = tl.exp2(logits - maximum[:, None])
        total = tl.sum(weights, 1)
        result = _product(weights.to(v.dtype), v) / total[:, None]
        target = _tile(output + head * HEAD_DIM, token, channels, HEAD_DIM)
        tl.store(target, result.to(q.dtype), mask=real[:, None])
        tl.store(logsumexp + token * num_heads + head, maximum + tl.log2(total), mask=real)


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    qkv, table, output, logsumexp,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: one block of queries of one group, one head."""
    head, rest = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    blocks = tl.cdiv(group_height * group_width, BLOCK_M)
    block, group = rest % blocks, rest // blocks
    first, rows, columns = _group(
        group, height, width, group_height, group_width, interval, groups_y, groups_x
    )
    count = rows * columns
    if block * BLOCK_M >= count:
        return
    channels, table_width = num_heads * HEAD_DIM, 2 * group_width - 1
    qkv += head * HEAD_DIM
    table += _middle_of_table(head, group_height, group_width)

    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    place, q_entry, q_real = _members(queries, columns, rows, columns, width, interval, table_width)
    q_token = first + place
    q = tl.load(_tile(qkv, q_token, 3 * channels, HEAD_DIM))
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start in range(0, count, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_place, k_entry, k_real = _members(
            keys, columns, rows, columns, width, interval, table_width
        )
        k = tl.load(_tile(qkv + channels, first + k_place, 3 * channels, HEAD_DIM))
        v = tl.load(_tile(qkv + 2 * channels, first + k_place, 3 * channels, HEAD_DIM))
        bias = tl.load(table + (q_entry[:, None] - k_entry[None, :]))
        logits = _logits(q, k, bias, k_real[None, :], SCALE)
        # Every block of keys starts with a real one, so the maximum is finite.
        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        shrink = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(logits - new_maximum[:, None])
        total = total * shrink + tl.sum(weights, 1)
        weighted = weighted * shrink[:, None] + _product(weights.to(v.dtype), v)
        maximum = new_maximum

    target = _tile(output + head * HEAD_DIM, q_token, channels, HEAD_DIM)
    tl.store(target, (weighted / total[:, None]).to(q.dtype), mask=q_real[:, None])
    tl.store(logsumexp + q_token * num_heads + head, maximum + tl.log2(total), mask=q_real)


@triton.jit(do_not_specialize=SIZES)
def _one_tile_backward_kernel(
    grad_output, qkv, table, logsumexp, grad_qkv, partial,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    num_groups, slices,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Everything for groups that fit one tile. One program: one slice of the groups, one head."""
    head, part = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    channels, table_width = num_heads * HEAD_DIM, 2 * group_width - 1
    qkv += head * HEAD_DIM
    grad_qkv += head * HEAD_DIM
    grad_output += head * HEAD_DIM
    table += _middle_of_table(head, group_height, group_width)

    slots = tl.arange(0, BLOCK)
    entry = _entries(slots, group_height, group_width)
    bias = tl.load(table + (entry[:, None] - entry[None, :]))
    grad_bias = tl.zeros([BLOCK, BLOCK], tl.float32)
    for group in range(part, num_groups, slices):
        first, rows, columns = _group(
            group, height, width, group_height, group_width, interval, groups_y, groups_x
        )
        place, _, real = _members(slots, group_width, rows, columns, width, interval, table_width)
        token = first + place
        q = tl.load(_tile(qkv, token, 3 * channels, HEAD_DIM))
        k = tl.load(_tile(qkv + channels, token, 3 * channels, HEAD_DIM))
        v = tl.load(_tile(qkv + 2 * channels, token, 3 * channels, HEAD_DIM))
        grad = tl.load(_tile(grad_output, token, channels, HEAD_DIM))
        row_logsumexp = tl.load(logsumexp + token * num_heads + head)
        logits = _logits(q, k, bias, real[:, None] & real[None, :], SCALE)
        weights = tl.exp2(logits - row_logsumexp[:, None])
        grad_weights = _product(grad, tl.trans(v))
        # The rows of P * dP sum to those of dO * O, and are at hand.
        grad_weights -= tl.sum(weights * grad_weights, 1)[:, None]
        grad_logits = weights * grad_weights
        grad_bias += grad_logits

        grad_v = _product(tl.trans(weights.to(q.dtype)), grad)
        rounded = grad_logits.to(q.dtype)
        grad_q = _product(rounded, k) * SCALE
        grad_k = _product(tl.trans(rounded), q) * SCALE
        target = _tile(grad_qkv, token, 3 * channels, HEAD_DIM)
        tl.store(target, grad_q.to(q.dtype), mask=real[:, None])
        tl.store(target + channels, grad_k.to(q.dtype), mask=real[:, None])
        tl.store(target + 2 * channels, grad_v.to(q.dtype), mask=real[:, None])

    tokens = group_height * group_width
    inside = slots < tokens
    partial += (part * num_heads + head).to(tl.int64) * tokens * tokens
    target = partial + slots[:, None] * tokens + slots[None, :]
    tl.store(target, grad_bias, mask=inside[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES)
def _grad_query_kernel(
    grad_output, qkv, table, output, logsumexp, grad_qkv, delta,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dQ and delta = rowsum(dO * O). One program: one block of queries of one group, one head."""
    head, rest = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    blocks = tl.cdiv(group_height * group_width, BLOCK_M)
    block, group = rest % blocks, rest // blocks
    first, rows, columns = _group(
        group, height, width, group_height, group_width, interval, groups_y, groups_x
    )
    count = rows * columns
    if block * BLOCK_M >= count:
        return
    channels, table_width = num_heads * HEAD_DIM, 2 * group_width - 1
    qkv += head * HEAD_DIM
    table += _middle_of_table(head, group_height, group_width)

    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    place, q_entry, q_real = _members(queries, columns, rows, columns, width, interval, table_width)
    q_token = first + place
    q = tl.load(_tile(qkv, q_token, 3 * channels, HEAD_DIM))
    grad = tl.load(_tile(grad_output + head * HEAD_DIM, q_token, channels, HEAD_DIM))
    result = tl.load(_tile(output + head * HEAD_DIM, q_token, channels, HEAD_DIM))
    row_delta = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    row_logsumexp = tl.load(logsumexp + q_token * num_heads + head)
    grad_q = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start in range(0, count, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_place, k_entry, k_real = _members(
            keys, columns, rows, columns, width, interval, table_width
        )
        k = tl.load(_tile(qkv + channels, first + k_place, 3 * channels, HEAD_DIM))
        v = tl.load(_tile(qkv + 2 * channels, first + k_place, 3 * channels, HEAD_DIM))
        bias = tl.load(table + (q_entry[:, None] - k_entry[None, :]))
        weights = tl.exp2(_logits(q, k, bias, k_real[None, :], SCALE) - row_logsumexp[:, None])
        grad_logits = weights * (_product(grad, tl.trans(v)) - row_delta[:, None])
        grad_q += _product(grad_logits.to(k.dtype), k)

    target = _tile(grad_qkv + head * HEAD_DIM, q_token, 3 * channels, HEAD_DIM)
    tl.store(target, (grad_q * SCALE).to(q.dtype), mask=q_real[:, None])
    tl.store(delta + q_token * num_heads + head, row_delta, mask=q_real)


@triton.jit(do_not_specialize=SIZES)
def _grad_key_kernel(
    grad_output, qkv, table, logsumexp, delta, grad_qkv,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dK and dV, from transposed logits. One program: one block of keys of one group, one head."""
    head, rest = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    blocks = tl.cdiv(group_height * group_width, BLOCK_N)
    block, group = rest % blocks, rest // blocks
    first, rows, columns = _group(
        group, height, width, group_height, group_width, interval, groups_y, groups_x
    )
    count = rows * columns
    if block * BLOCK_N >= count:
        return
    channels, table_width = num_heads * HEAD_DIM, 2 * group_width - 1
    qkv += head * HEAD_DIM
    grad_output += head * HEAD_DIM
    table += _middle_of_table(head, group_height, group_width)

    keys = block * BLOCK_N + tl.arange(0, BLOCK_N)
    place, k_entry, k_real = _members(keys, columns, rows, columns, width, interval, table_width)
    k_token = first + place
    k = tl.load(_tile(qkv + channels, k_token, 3 * channels, HEAD_DIM))
    v = tl.load(_tile(qkv + 2 * channels, k_token, 3 * channels, HEAD_DIM))
    grad_k = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    grad_v = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    for start in range(0, count, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        q_place, q_entry, q_real = _members(
            queries, columns, rows, columns, width, interval, table_width
        )
        q_token = first + q_place
        q = tl.load(_tile(qkv, q_token, 3 * channels, HEAD_DIM))
        grad = tl.load(_tile(grad_output, q_token, channels, HEAD_DIM))
        row_logsumexp = tl.load(logsumexp + q_token * num_heads + head)
        row_delta = tl.load(delta + q_token * num_heads + head)
        bias = tl.load(table + (q_entry[None, :] - k_entry[:, None]))
        weights = tl.exp2(_logits(k, q, bias, q_real[None, :], SCALE) - row_logsumexp[None, :])
        grad_v += _product(weights.to(q.dtype), grad)
        grad_logits = weights * (_product(v, tl.trans(grad)) - row_delta[None, :])
        grad_k += _product(grad_logits.to(q.dtype), q)

    target = _tile(grad_qkv + head * HEAD_DIM, k_token, 3 * channels, HEAD_DIM)
    tl.store(target + channels, (grad_k * SCALE).to(k.dtype), mask=k_real[:, None])
    tl.store(target + 2 * channels, grad_v.to(k.dtype), mask=k_real[:, None])


@triton.jit(do_not_specialize=SIZES)
def _grad_bias_kernel(
    grad_output, qkv, table, logsumexp, delta, partial,
    height, width, group_height, group_width, interval, groups_y, groups_x, num_heads,
    num_groups, slices, first_query, last_query,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum dS over one slice of the groups. One program: one tile of queries x keys, one head."""
    tokens = group_height * group_width
    key_blocks = tl.cdiv(tokens, BLOCK_N)
    query_blocks = tl.cdiv(last_query - first_query, BLOCK_M)
    head, rest = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    key_block, rest = rest % key_blocks, rest // key_blocks
    query_block, part = rest % query_blocks, rest // query_blocks
    channels, table_width = num_heads * HEAD_DIM, 2 * group_width - 1
    qkv += head * HEAD_DIM
    grad_output += head * HEAD_DIM
    table += _middle_of_table(head, group_height, group_width)

    queries = first_query + query_block * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = key_block * BLOCK_N + tl.arange(0, BLOCK_N)
    q_entry = _entries(queries, group_height, group_width)
    k_entry = _entries(keys, group_height, group_width)
    bias = tl.load(table + (q_entry[:, None] - k_entry[None, :]))
    grad_bias = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(part, num_groups, slices):
        first, rows, columns = _group(
            group, height, width, group_height, group_width, interval, groups_y, groups_x
        )
        q_place, _, q_real = _members(
            queries, group_width, rows, columns, width, interval, table_width
        )
        q_token = first + q_place
        k_place, _, k_real = _members(
            keys, group_width, rows, columns, width, interval, table_width
        )
        k_token = first + k_place
        q = tl.load(_tile(qkv, q_token, 3 * channels, HEAD_DIM))
        grad = tl.load(_tile(grad_output, q_token, channels, HEAD_DIM))
        k = tl.load(_tile(qkv + channels, k_token, 3 * channels, HEAD_DIM))
        v = tl.load(_tile(qkv + 2 * channels, k_token, 3 * channels, HEAD_DIM))
        row_logsumexp = tl.load(logsumexp + q_token * num_heads + head)
        row_delta = tl.load(delta + q_token * num_heads + head)
        logits = _logits(q, k, bias, q_real[:, None] & k_real[None, :], SCALE)
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

    Up to 64 tokens, the smallest square that holds the group: a 7 x 7 group fills three quarters of
    its rows. Tensor cores want 16 rows per warp. The biases stay in registers from one group to the
    next, and the next group's tokens are read ahead.

    Longer groups look up other biases in each step, and this, not arithmetic, is what they wait
    for: reading ahead would take the lookups through shared memory, so that many small programs
    per SM hide the waiting better. Backward has more sums at once, so its tiles are half as large.

    Products in float32 do not use the tensor cores and keep all operands in registers: smaller
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


def launch_forward(
    qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Attend within groups.

    Args:
        qkv: (B, H, W, 3 * C), contiguous.
        table: (2 * group height - 1, 2 * group width - 1, heads), float32.
        plan: The groups.
        num_heads: Attention heads.

    Returns:
        The output (B, H, W, C), and the base-2 logarithm of the softmax's denominator
        (B, H, W, heads) in float32.
    """
    output = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    logsumexp = qkv.new_empty(*qkv.shape[:3], num_heads, dtype=torch.float32)
    plan, table = _crop_to_map(plan, table)
    sizes, num_groups, tokens = _sizes(qkv, plan, num_heads)
    tile = choose_tile(tokens, qkv.dtype)
    constants = _constants(output, num_heads, tile)
    tensors = (qkv, _logit_table(table), output, logsumexp)
    if tokens <= ONE_TILE_TOKENS:
        slices = _count_slices(num_groups, num_heads, tile)
        arguments = (*tensors, *sizes, num_groups, slices)
        _launch(
            _one_tile_forward_kernel, num_heads * slices, *arguments, **constants, BLOCK=tile.own
        )
    else:
        programs = num_heads * triton.cdiv(tokens, tile.own) * num_groups
        blocks = dict(BLOCK_M=tile.own, BLOCK_N=tile.other)
        _launch(_forward_kernel, programs, *tensors, *sizes, **constants, **blocks)
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

    Args:
        grad_output: (B, H, W, C), contiguous.
        qkv: As for :func:`launch_forward`.
        table: As for :func:`launch_forward`.
        output: What :func:`launch_forward` returned.
        logsumexp: What :func:`launch_forward` returned.
        plan: The groups.
        num_heads: Attention heads.

    Returns:
        Tensors shaped like ``qkv`` and ``table``.
    """
    grad_qkv, grad_whole_table = torch.empty_like(qkv), torch.zeros_like(table)
    plan, table = _crop_to_map(plan, table)
    is_whole = table.shape == grad_whole_table.shape
    grad_table = grad_whole_table if is_whole else table.new_zeros(table.shape)
    table = _logit_table(table)
    if plan.group_height * plan.group_width <= ONE_TILE_TOKENS:
        tensors = (grad_output, qkv, table, logsumexp, grad_qkv)
        _one_tile_backward(*tensors, grad_table, plan, num_heads)
    else:
        delta = torch.empty_like(logsumexp)
        tensors = (grad_output, qkv, table, output, logsumexp, grad_qkv, delta)
        _grad_qkv(*tensors, plan, num_heads)
        tensors = (grad_output, qkv, table, logsumexp, delta)
        _grad_table(*tensors, grad_table, plan, num_heads)
    if not is_whole:
        crop_table(grad_whole_table, plan.group_height, plan.group_width).copy_(grad_table)
    return grad_qkv, grad_whole_table


def _one_tile_backward(
    grad_output, qkv, table, logsumexp, grad_qkv, grad_table, plan, num_heads
) -> None:
    sizes, num_groups, tokens = _sizes(qkv, plan, num_heads)
    tile = choose_tile(tokens, qkv.dtype, backward=True)
    slices = _count_slices(num_groups, num_heads, tile, 4 * num_heads * tokens**2)
    partial = table.new_empty(slices, num_heads, tokens, tokens)
    _launch(
        _one_tile_backward_kernel,
        num_heads * slices,
        *(grad_output, qkv, table, logsumexp, grad_qkv, partial, *sizes, num_groups, slices),
        **_constants(grad_output, num_heads, tile),
        BLOCK=tile.own,
    )
    _add_offsets(partial, grad_table, plan, 0, tokens)


def _grad_qkv(grad_output, qkv, table, output, logsumexp, grad_qkv, delta, plan, num_heads) -> None:
    sizes, num_groups, tokens = _sizes(qkv, plan, num_heads)
    tile = choose_tile(tokens, qkv.dtype, backward=True)
    programs = num_heads * triton.cdiv(tokens, tile.own) * num_groups
    constants = _constants(output, num_heads, tile)
    tensors = (grad_output, qkv, table, output, logsumexp, grad_qkv, delta)
    blocks = dict(BLOCK_M=tile.own, BLOCK_N=tile.other)
    _launch(_grad_query_kernel, programs, *tensors, *sizes, **constants, **blocks)
    tensors = (grad_output, qkv, table, logsumexp, delta, grad_qkv)
    blocks = dict(BLOCK_M=tile.other, BLOCK_N=tile.own)
    _launch(_grad_key_kernel, programs, *tensors, *sizes, **constants, **blocks)


def _grad_table(grad_output, qkv, table, logsumexp, delta, grad_table, plan, num_heads) -> None:
    """Sum over the groups, as many queries at a time as the workspace holds."""
    sizes, num_groups, tokens = _sizes(qkv, plan, num_heads)
    # The biases stay in registers here as for short groups, so reading ahead pays.
    tile = choose_tile(tokens, qkv.dtype, backward=True)._replace(stages=2)
    constants = dict(BLOCK_M=tile.own, BLOCK_N=tile.other)
    constants.update(_constants(grad_output, num_heads, tile))
    bytes_per_query = 4 * num_heads * tokens
    chunk = max(1, WORKSPACE_BYTES // (bytes_per_query * tile.own)) * tile.own
    for first in range(0, tokens, chunk):
        last = min(first + chunk, tokens)
        tiles = triton.cdiv(last - first, tile.own) * triton.cdiv(tokens, tile.other) * num_heads
        slices = _count_slices(num_groups, tiles, tile, bytes_per_query * (last - first))
        partial = table.new_empty(slices, num_heads, last - first, tokens)
        tensors = (grad_output, qkv, table, logsumexp, delta, partial)
        work = (num_groups, slices, first, last)
        _launch(_grad_bias_kernel, tiles * slices, *tensors, *sizes, *work, **constants)
        _add_offsets(partial, grad_table, plan, first, last)


def _crop_to_map(plan: GroupPlan, table: Tensor) -> tuple[GroupPlan, Tensor]:
    """Leave out the members of a group that no map of this size has, to have smaller tiles."""
    rows = min(plan.group_height, max(1, triton.cdiv(plan.height, plan.interval)))
    columns = min(plan.group_width, max(1, triton.cdiv(plan.width, plan.interval)))
    plan = plan._replace(group_height=rows, group_width=columns)
    return plan, crop_table(table, rows, columns)


def _add_offsets(
    partial: Tensor, grad_table: Tensor, plan: GroupPlan, first_query: int, last_query: int
) -> None:
    """Add (slices, heads, queries, keys) to the offsets of the pairs in the table's gradient."""
    grad_bias = partial.sum(0) if len(partial) != 1 else partial
    rows, columns, num_heads = grad_table.shape
    _launch(
        _sum_offsets_kernel,
        num_heads * rows * triton.cdiv(columns, 32),
        *(grad_bias, grad_table, plan.group_height, plan.group_width, num_heads),
        *(first_query, last_query),
        BLOCK_M=16,
        BLOCK_N=32,
    )


def _count_slices(num_groups: int, programs: int, tile: Tile, workspace: int = 1) -> int:
    """Split the groups to fill the GPU; ``programs`` and ``workspace`` bytes are of one slice."""
    wanted = min(WANTED_WARPS // (programs * tile.warps), WORKSPACE_BYTES // workspace)
    return min(num_groups, max(1, wanted))


def _sizes(qkv: Tensor, plan: GroupPlan, num_heads: int) -> tuple[tuple[int, ...], int, int]:
    """The kernels' common arguments, the groups of the batch, and the tokens of a full group."""
    groups_y = count_groups(plan.height, plan.group_height, plan.interval)
    groups_x = count_groups(plan.width, plan.group_width, plan.interval)
    tokens = plan.group_height * plan.group_width
    return (*plan, groups_y, groups_x, num_heads), qkv.shape[0] * groups_y * groups_x, tokens


def _constants(output: Tensor, num_heads: int, tile: Tile) -> dict[str, float]:
    head_dim = output.shape[-1] // num_heads
    options = dict(num_warps=tile.warps, num_stages=tile.stages)
    return dict(HEAD_DIM=head_dim, SCALE=head_dim**-0.5, **options)


def _logit_table(table: Tensor) -> Tensor:
    """Heads first, so that one head's biases share cache lines, and in the unit of the logits."""
    scaled = table.new_empty(table.shape[2], *table.shape[:2])
    return torch.mul(table.permute(2, 0, 1), LOG2_E.value, out=scaled)


def _launch(kernel, programs: int, *arguments, **options) -> None:
    if programs == 0:
        return
    device = arguments[0].device
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*arguments, **options)
