"""Attention as the formula reads: pad, multiply, add the bias, mask, softmax, multiply.

What is traced, exported, compiled and transformed, and what the other backends are compared with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossformer_mm.models.grouping import GroupPlan, allowed_keys, merge, partition
from crossformer_mm.models.position_bias import expand_table


def can_run(x: Tensor, plan: GroupPlan, num_heads: int) -> str | None:
    """It always can."""
    return None


def attend(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Attend with the formula, padding and all."""
    return merge(attend_groups(partition(qkv, plan), table, plan, num_heads), plan)


def attend_groups(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """The same on padded groups: (B, groups, tokens, 3 * C) -> (B, groups, tokens, C)."""
    head_dims = qkv.shape[-1] // (3 * num_heads)
    # three of (B, groups, heads, tokens, C / heads)
    q, k, v = qkv.unflatten(-1, (3, num_heads, head_dims)).movedim(-3, 0).transpose(-3, -2)
    logits = q @ k.transpose(-2, -1) * head_dims**-0.5
    logits = logits + expand_table(table).to(logits.dtype)
    allowed = allowed_keys(plan, qkv.device)
    if allowed is not None:
        logits = logits.masked_fill(~allowed[:, None], torch.finfo(logits.dtype).min)
    output = logits.softmax(dim=-1).to(v.dtype) @ v
    return output.transpose(2, 3).flatten(3)


def differentiable_gradients(
    output: Tensor, inputs: Sequence[Tensor], grad: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, for those inputs that need one."""
    needed = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(output, needed, grad, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]
