"""Grouped attention as one PyTorch operator, computed by Triton kernels on an NVIDIA GPU.

The kernels read q, k and v where the projection wrote them and never store a score, a permuted map
or padding. Importing this module needs neither Triton nor a GPU; :func:`can_run` tells
whether the operator can run.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from crossformer_mm.models.attention import eager
from crossformer_mm.models.grouping import GroupPlan

HEAD_DIMS = (16, 32, 64)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def can_run(x: Tensor, plan: GroupPlan, num_heads: int) -> str | None:
    """None, or the reason why not.

    It needs Triton, torch 2.4, and a GPU of compute capability 8.0 (A100) or later. With the
    environment variable ``TRITON_INTERPRET=1``, tensors on a CPU will do.
    """
    if not hasattr(torch.library, "custom_op"):
        return f"it needs torch 2.4, and this is {torch.__version__}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    head_dims, dtype = x.shape[-1] // num_heads, _linear_dtype(x)
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


def _linear_dtype(x: Tensor) -> torch.dtype:
    """The type that linear layers give for ``x``, autocast considered."""
    if torch.is_autocast_enabled() and x.is_cuda:
        return torch.get_autocast_gpu_dtype()
    return x.dtype


def attend(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Attention within groups, fused (CrossFormer, section 3.2).

    The same function as :func:`.eager.attend`, in memory linear in the tokens. Logits, softmax and
    sums are in float32 whatever the dtype of ``qkv``. Gradients are the same in every bit from run
    to run. Where second derivatives are asked for, the gradients come from the formula.

    Args:
        qkv: (B, H, W, 3 * C); channels are q, k, v, each heads x head dim.
        table: Bias table (2 * group height - 1, 2 * group width - 1, heads).
        plan: The groups.
        num_heads: Attention heads, of 16, 32 or 64 channels.

    Returns:
        (B, H, W, C), in the dtype of ``qkv``.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    output, _ = grouped_attention(
        qkv.contiguous(),
        table.float().contiguous(),
        plan.group_height,
        plan.group_width,
        plan.interval,
        num_heads,
    )
    return output


def _forward(
    qkv: Tensor,
    table: Tensor,
    group_height: int,
    group_width: int,
    interval: int,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    _check_shapes(qkv, table, group_height, group_width, num_heads)
    from crossformer_mm.models.attention.triton_kernels import launch_forward

    plan = GroupPlan(*qkv.shape[1:3], group_height, group_width, interval)
    return launch_forward(qkv, table, plan, num_heads)


def _backward(
    grad_output: Tensor,
    qkv: Tensor,
    table: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    group_height: int,
    group_width: int,
    interval: int,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    from crossformer_mm.models.attention.triton_kernels import launch_backward

    plan = GroupPlan(*qkv.shape[1:3], group_height, group_width, interval)
    return launch_backward(grad_output.contiguous(), qkv, table, output, logsumexp, plan, num_heads)


def _check_shapes(
    qkv: Tensor, table: Tensor, group_height: int, group_width: int, num_heads: int
) -> None:
    """Raise what would otherwise be a read out of bounds or a wrong result."""
    if qkv.shape[-1] not in [3 * num_heads * head_dim for head_dim in HEAD_DIMS]:
        raise ValueError(
            f"{qkv.shape[-1]} channels are not q, k and v of {num_heads} heads of 16, 32 or 64"
        )
    expected = (2 * group_height - 1, 2 * group_width - 1, num_heads)
    if table.shape != expected:
        raise ValueError(f"the bias table is {tuple(table.shape)} but should be {expected}")


def _forward_fake(qkv, table, group_height, group_width, interval, num_heads):
    batch, height, width, channels = qkv.shape
    output = qkv.new_empty(batch, height, width, channels // 3)
    return output, qkv.new_empty(batch, height, width, num_heads, dtype=torch.float32)


def _backward_fake(grad_output, qkv, table, *_):
    return torch.empty_like(qkv), torch.empty_like(table)


def _save_for_backward(ctx, inputs, output) -> None:
    qkv, table, *ctx.settings = inputs
    ctx.save_for_backward(qkv, table, *output)
    ctx.mark_non_differentiable(output[1])


def _call_backward(ctx, grad_output: Tensor, _) -> tuple:
    qkv, table, *_ = ctx.saved_tensors
    if torch.is_grad_enabled():  # for second derivatives
        *groups, num_heads = ctx.settings
        formula = eager.attend(qkv, table, GroupPlan(*qkv.shape[1:3], *groups), num_heads)
        grads = eager.differentiable_gradients(formula, (qkv, table), grad_output)
    else:
        grads = grouped_attention_backward(grad_output, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * len(ctx.settings)


if hasattr(torch.library, "custom_op"):
    grouped_attention = torch.library.custom_op(
        "crossformer_mm::grouped_attention", _forward, mutates_args=()
    )
    grouped_attention_backward = torch.library.custom_op(
        "crossformer_mm::grouped_attention_backward", _backward, mutates_args=()
    )
    grouped_attention.register_fake(_forward_fake)
    grouped_attention_backward.register_fake(_backward_fake)
    grouped_attention.register_autograd(_call_backward, setup_context=_save_for_backward)
