"""The sdpa path as PyTorch operators, for torch.compile and torch.export.

Which tokens form a group is computed with NumPy and Python loops, which compilers cannot follow
for maps of changing size. Behind these operators they need not.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from crossformer_mm.models.chunked_attention import attention_backward, attention_forward
from crossformer_mm.models.grouping import GroupPlan, order_tokens

# torch.library.custom_op came with torch 2.4.
CAN_COMPILE = hasattr(torch.library, "custom_op")


def _token_order(
    like: Tensor, height: int, width: int, group_height: int, group_width: int, interval: int
) -> tuple[Tensor, Tensor]:
    sorted_tokens = order_tokens(GroupPlan(height, width, group_height, group_width, interval))
    # Copies: compiled code may write into what an operator returned.
    order = torch.tensor(sorted_tokens.order, device=like.device)
    return order, torch.tensor(sorted_tokens.inverse, device=like.device)


def _token_order_fake(like, height, width, group_height, group_width, interval):
    shape = (height * width,)
    return like.new_empty(shape, dtype=torch.int64), like.new_empty(shape, dtype=torch.int64)


def _forward(
    qkv: Tensor,
    table: Tensor,
    height: int,
    width: int,
    group_height: int,
    group_width: int,
    interval: int,
    num_heads: int,
) -> Tensor:
    plan = GroupPlan(height, width, group_height, group_width, interval)
    return attention_forward(qkv, table, order_tokens(plan).runs, num_heads)


def _forward_fake(qkv, table, *settings):
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


def _backward(
    grad: Tensor,
    qkv: Tensor,
    table: Tensor,
    height: int,
    width: int,
    group_height: int,
    group_width: int,
    interval: int,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    plan = GroupPlan(height, width, group_height, group_width, interval)
    return attention_backward(qkv, table, grad, order_tokens(plan).runs, num_heads)


def _backward_fake(grad, qkv, table, *settings):
    return torch.empty_like(qkv), torch.empty_like(table)


def _save_for_backward(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    qkv, table, *ctx.settings = inputs
    ctx.save_for_backward(qkv, table)


def _call_backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
    grads = sorted_attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * len(ctx.settings)


token_order = sorted_attention = None
if CAN_COMPILE:
    token_order = torch.library.custom_op(
        "crossformer_mm::token_order", _token_order, mutates_args=()
    )
    sorted_attention = torch.library.custom_op(
        "crossformer_mm::sorted_attention", _forward, mutates_args=()
    )
    sorted_attention_backward = torch.library.custom_op(
        "crossformer_mm::sorted_attention_backward", _backward, mutates_args=()
    )
    token_order.register_fake(_token_order_fake)
    sorted_attention.register_fake(_forward_fake)
    sorted_attention_backward.register_fake(_backward_fake)
    sorted_attention.register_autograd(_call_backward, setup_context=_save_for_backward)
