"""The backbone's attention operators in ONNX, for maps of any size.

In a graph for images of changing size, PyTorch's exporter sees attention as two operators, those
of :mod:`crossformer_mm.models.sorted_attention`. Here they are written in ONNX's: tokens keep
their order, and maps are padded to whole groups as in
:func:`crossformer_mm.models.attention.plain_attention`.
"""

from collections.abc import Callable

import torch
from onnxscript import FLOAT, INT64
from onnxscript import opset18 as op

PADDING_LOGIT = -1e30


def translations() -> dict[object, Callable]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``."""
    operators = torch.ops.crossformer_mm
    return {
        operators.token_order.default: token_order,
        operators.sorted_attention.default: sorted_attention,
    }


def token_order(
    like: FLOAT,
    height: INT64,
    width: INT64,
    group_height: INT64,
    group_width: INT64,
    interval: INT64,
) -> tuple[INT64, INT64]:
    """Return the order of the tokens of a map, and its inverse: as they are."""
    order = op.Range(_scalar(0), op.Squeeze(op.Mul(_list(height), _list(width))), _scalar(1))
    return order, op.Identity(order)


def sorted_attention(
    qkv: FLOAT,
    table: FLOAT,
    height: INT64,
    width: INT64,
    group_height: INT64,
    group_width: INT64,
    interval: INT64,
    num_heads: INT64,
) -> FLOAT:
    """Attend within groups: (B, H * W, 3 * C) -> (B, H * W, C)."""
    height, width, interval = _list(height), _list(width), _list(interval)
    members_y, members_x, heads = _list(group_height), _list(group_width), _list(num_heads)
    rows = _divide_up(height, op.Mul(members_y, interval))
    columns = _divide_up(width, op.Mul(members_x, interval))
    bottom = op.Sub(op.Mul(rows, op.Mul(members_y, interval)), height)
    right = op.Sub(op.Mul(columns, op.Mul(members_x, interval)), width)
    groups = op.Mul(op.Mul(rows, columns), op.Mul(interval, interval))
    tokens = op.Mul(members_y, members_x)
    batch = op.Shape(qkv, start=0, end=1)
    split = (rows, members_y, interval, columns, members_x, interval)

    maps = op.Reshape(qkv, _join(batch, height, width, _ints(-1)))
    maps = op.Pad(maps, _join(_ints(0, 0, 0, 0, 0), bottom, right, _ints(0)))
    maps = op.Reshape(maps, _join(batch, *split, _ints(3), heads, _ints(-1)))
    # (q k v, B, region y, offset y, region x, offset x, heads, member y, member x, C / heads)
    maps = op.Transpose(maps, perm=[7, 0, 1, 3, 4, 6, 8, 2, 5, 9])
    head_dims = op.Shape(maps, start=9, end=10)
    maps = op.Reshape(maps, _join(_ints(3), batch, groups, heads, tokens, head_dims))
    q, k, v = (op.Gather(maps, _scalar(part), axis=0) for part in range(3))

    scale = op.Sqrt(op.Cast(head_dims, to=FLOAT.dtype))
    logits = op.MatMul(op.Div(q, scale), op.Transpose(k, perm=[0, 1, 2, 4, 3]))
    logits = op.Add(logits, _bias_of_pairs(table, members_y, members_x))
    real = op.ConstantOfShape(_join(height, width))
    real = op.Pad(real, _join(_ints(0, 0), bottom, right), _float(PADDING_LOGIT))
    real = op.Transpose(op.Reshape(real, _join(*split)), perm=[0, 2, 3, 5, 1, 4])
    logits = op.Add(logits, op.Reshape(real, _join(groups, _ints(1, 1), tokens)))
    output = op.MatMul(op.Softmax(logits, axis=-1), v)

    shape = _join(batch, rows, interval, columns, interval, heads, members_y, members_x, head_dims)
    # (B, region y, member y, offset y, region x, member x, offset x, heads, C / heads)
    output = op.Transpose(op.Reshape(output, shape), perm=[0, 1, 6, 2, 3, 7, 4, 5, 8])
    padded = (op.Add(height, bottom), op.Add(width, right))
    output = op.Reshape(output, _join(batch, *padded, op.Mul(heads, head_dims)))
    output = op.Slice(output, _ints(0, 0), _join(height, width), _ints(1, 2))
    return op.Reshape(output, _join(batch, op.Mul(height, width), _ints(-1)))


def _bias_of_pairs(table: FLOAT, members_y: INT64, members_x: INT64) -> FLOAT:
    """Look up every pair of tokens: (2h - 1, 2w - 1, heads) -> (heads, h * w, h * w)."""
    tokens = op.Squeeze(op.Mul(members_y, members_x))
    token = op.Range(_scalar(0), tokens, _scalar(1))
    y, x = op.Div(token, members_x), op.Mod(token, members_x)
    dy = op.Sub(op.Unsqueeze(y, _ints(1)), op.Unsqueeze(y, _ints(0)))
    dx = op.Sub(op.Unsqueeze(x, _ints(1)), op.Unsqueeze(x, _ints(0)))
    one = _ints(1)
    row, column = op.Add(dy, op.Sub(members_y, one)), op.Add(dx, op.Sub(members_x, one))
    row_length = op.Sub(op.Mul(members_x, _ints(2)), one)
    entries = op.Flatten(op.Transpose(table, perm=[2, 0, 1]), axis=1)
    return op.Gather(entries, op.Add(op.Mul(row, row_length), column), axis=1)


def _divide_up(length: INT64, part: INT64) -> INT64:
    return op.Div(op.Sub(op.Add(length, part), _ints(1)), part)


def _ints(*values: int) -> INT64:
    return op.Constant(value_ints=list(values))


def _scalar(value: int) -> INT64:
    return op.Constant(value_int=value)


def _float(value: float) -> FLOAT:
    return op.Constant(value_float=value)


def _list(number: INT64) -> INT64:
    """A number as a list of one."""
    return op.Reshape(number, _ints(-1))


def _join(*parts: INT64) -> INT64:
    return op.Concat(*parts, axis=0)
