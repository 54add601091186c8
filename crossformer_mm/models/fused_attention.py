"""Grouped attention as one PyTorch operator, computed by Triton kernels on an NVIDIA GPU.

The kernels read q, k and v where the projection wrote them and never store a score, a permuted map
or padding. Importing this module needs neither Triton nor a GPU; :func:`is_available` tells
whether the operator can run.
"""

import os
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from crossformer_mm.import_hooks import when_imported
from crossformer_mm.models.grouping import GroupPlan

HEAD_DIMS = (16, 32, 64)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# torch.library.custom_op came with torch 2.4.
_CAN_RUN = hasattr(torch.library, "custom_op") and find_spec("triton") is not None


def is_available(device: torch.device, head_dim: int, dtype: torch.dtype) -> bool:
    """Tell whether :func:`fused_attention` can compute this.

    It needs Triton, torch 2.4, and a GPU of compute capability 8.0 (A100) or later. With the
    environment variable ``TRITON_INTERPRET=1``, tensors on a CPU will do.
    """
    if not _CAN_RUN or head_dim not in HEAD_DIMS or dtype not in DTYPES:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_properties(device).major >= 8


def fused_attention(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Attention within groups, fused (CrossFormer, section 3.2).

    The same function as :func:`~crossformer_mm.models.attention.plain_attention`, in memory linear
    in the tokens. Logits, softmax and sums are in float32 whatever the dtype of ``qkv``. Gradients
    are the same in every bit from run to run; there are no second derivatives.

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
    from crossformer_mm.models.triton_kernels import launch_forward

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
    from crossformer_mm.models.triton_kernels import launch_backward

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
    grads = grouped_attention_backward(grad_output, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * len(ctx.settings)


def _real_pairs(size: int, group: int, interval: int) -> int:
    """Count the ordered pairs of real tokens that share a group, along one axis."""
    full_regions = size // (group * interval)
    rest = size - full_regions * group * interval
    members, longer = rest // interval, rest % interval
    pairs = longer * (members + 1) ** 2 + (interval - longer) * members**2
    return full_regions * interval * group**2 + pairs


def _forward_flops(
    qkv_shape, table_shape, group_height, group_width, interval, num_heads, *_, **__
) -> int:
    """Count both matrix products over the pairs of real tokens; padding costs nothing."""
    batch, height, width, channels = qkv_shape
    pairs_y = _real_pairs(height, group_height, interval)
    pairs_x = _real_pairs(width, group_width, interval)
    return 2 * 2 * batch * pairs_y * pairs_x * (channels // 3)


def _backward_flops(
    grad_shape, qkv_shape, table_shape, output_shape, logsumexp_shape, *settings, **__
) -> int:
    """Count five matrix products, without what the gradient of the table computes again."""
    return 5 * _forward_flops(qkv_shape, table_shape, *settings) // 2


def _register_flop_formulas(flop_counter: ModuleType) -> None:
    ops = torch.ops.crossformer_mm
    flop_counter.register_flop_formula(ops.grouped_attention)(_forward_flops)
    flop_counter.register_flop_formula(ops.grouped_attention_backward)(_backward_flops)


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
    # That module imports Triton, which takes time and memory.
    when_imported("torch.utils.flop_counter", _register_flop_formulas)
