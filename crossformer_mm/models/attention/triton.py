"""Grouped attention as one PyTorch operator, computed by Triton kernels on an NVIDIA GPU.

The kernels read q, k and v where the projection wrote them and never store a score, a permuted map
or padding. Importing this module needs neither Triton nor a GPU; :func:`can_run` tells
whether the operator can run.
"""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from crossformer_mm.models.attention import eager
from crossformer_mm.models.grouping import GroupPlan
from crossformer_mm.models.position_bias import crop_table

HEAD_DIMS = (16, 32, 64)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def can_run(x: Tensor, plan: GroupPlan, num_heads: int) -> str | None:
    """Needs Triton, torch 2.4, and a GPU of compute capability 8.0 (A100) or later.

    With the environment variable ``TRITON_INTERPRET=1``, tensors on a CPU will do.
    """
    if plan.shift:
        return "its kernels do not shift windows"
    if not hasattr(torch.library, "custom_op"):
        return f"it needs torch 2.4, and this is {torch.__version__}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    head_dims, dtype = x.shape[-1] // num_heads, x.dtype
    if torch.is_autocast_enabled() and x.is_cuda:
        dtype = torch.get_autocast_gpu_dtype()
    if head_dims not in HEAD_DIMS:
        return f"heads have {head_dims} channels, not {', '.join(map(str, HEAD_DIMS))}"
    if dtype not in DTYPES:
        return f"it does not take {dtype}"
    if x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if x.device.type != "cuda" or torch.version.cuda is None:
        return f"it needs an NVIDIA GPU, and the tokens are on {x.device}"
    if torch.cuda.get_device_properties(x.device).major < 8:
        return "it needs a GPU of compute capability 8.0 or later"
    return None


def attend(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Attention within groups by kernels, in memory linear in the tokens.

    Logits, softmax and sums are in float32 whatever the dtype of ``qkv``. Gradients are the same in
    every bit from run to run. Where second derivatives are asked for, they come from the formula.

    Raises:
        ValueError: If the shapes do not belong together, or heads have not 16, 32 or 64 channels.
    """
    if qkv.shape[-1] not in [3 * num_heads * head_dim for head_dim in HEAD_DIMS]:
        raise ValueError(
            f"{qkv.shape[-1]} channels are not q, k and v of {num_heads} heads of 16, 32 or 64"
        )
    expected = (2 * plan.group_height - 1, 2 * plan.group_width - 1, num_heads)
    if table.shape != expected:
        raise ValueError(f"the bias table is {tuple(table.shape)} but should be {expected}")
    # Members of a group that no map of this size has are left out, to have smaller tiles.
    rows = min(plan.group_height, -(-plan.height // plan.interval))
    columns = min(plan.group_width, -(-plan.width // plan.interval))
    table = crop_table(table.float(), rows, columns).contiguous()
    settings = (rows, columns, plan.interval, num_heads)
    return grouped_attention(qkv.contiguous(), table, *settings)[0]


def _forward(qkv: Tensor, table: Tensor, *settings: int) -> tuple[Tensor, Tensor]:
    from crossformer_mm.models.attention.triton_kernels import launch_forward

    return launch_forward(qkv, table, *_plan_and_heads(qkv, settings))


def _backward(
    grad_output: Tensor,
    qkv: Tensor,
    table: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    *settings: int,
) -> tuple[Tensor, Tensor]:
    from crossformer_mm.models.attention.triton_kernels import launch_backward

    tensors = (grad_output.contiguous(), qkv, table, output, logsumexp)
    return launch_backward(*tensors, *_plan_and_heads(qkv, settings))


def _plan_and_heads(qkv: Tensor, settings: Sequence[int]) -> tuple[GroupPlan, int]:
    *groups, num_heads = settings
    return GroupPlan(*qkv.shape[1:3], *groups), num_heads


def _forward_fake(qkv: Tensor, table: Tensor, *settings: int) -> tuple[Tensor, Tensor]:
    output = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    return output, qkv.new_empty(*qkv.shape[:3], settings[-1], dtype=torch.float32)


def _backward_fake(
    grad_output: Tensor, qkv: Tensor, table: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(table)


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, table, *ctx.settings = inputs
    ctx.save_for_backward(qkv, table, *output)
    ctx.mark_non_differentiable(output[1])


def _call_backward(ctx: Any, grad_output: Tensor, _: object) -> tuple:
    qkv, table, *_ = ctx.saved_tensors
    if torch.is_grad_enabled():  # for second derivatives
        formula = eager.attend(qkv, table, *_plan_and_heads(qkv, ctx.settings))
        grads = eager.differentiable_gradients(formula, (qkv, table), grad_output)
    else:
        grads = grouped_attention_backward(grad_output, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * len(ctx.settings)


def _operator(name: str, function: Callable, fake: Callable, tensors: str) -> Any:
    settings = "int group_height, int group_width, int interval, int num_heads"
    schema = f"({tensors}, {settings}) -> (Tensor, Tensor)"
    operator = torch.library.custom_op(
        f"crossformer_mm::{name}", function, mutates_args=(), schema=schema
    )
    operator.register_fake(fake)
    return operator


if hasattr(torch.library, "custom_op"):
    grouped_attention = _operator(
        "grouped_attention", _forward, _forward_fake, "Tensor qkv, Tensor table"
    )
    grouped_attention.register_autograd(_call_backward, setup_context=_save_for_backward)
    grouped_attention_backward = _operator(
        "grouped_attention_backward",
        _backward,
        _backward_fake,
        "Tensor grad_output, Tensor qkv, Tensor table, Tensor output, Tensor logsumexp",
    )
