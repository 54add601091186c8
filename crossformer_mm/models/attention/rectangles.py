"""From a map to its groups and back, for backends that attend within rectangles of real tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crossformer_mm.models.grouping import (
    GroupPlan,
    Rectangle,
    put_groups,
    rectangles,
    split_rectangle,
    take_groups,
)
from crossformer_mm.models.position_bias import crop_table

# (3, heads, groups, tokens, C / heads) -> (heads, groups, tokens, C / heads)
Attention = Callable[[Tensor], Tensor]


# torch 2.1 has it under the private name only, which is slow to import.
_has_name = hasattr(torch.compiler, "is_compiling")
_is_compiling = (torch.compiler if _has_name else torch._dynamo).is_compiling


def why_not(x: Tensor) -> str | None:
    """The reason why views of a map cannot be taken as these backends do, or None."""
    if torch.jit.is_tracing() or _is_compiling():
        return "the model is traced, exported or compiled"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms the model"
    if x.device.type == "meta" or type(x) not in (Tensor, nn.Parameter):
        return f"there are no values in a {type(x).__name__} on {x.device.type}"
    return None


def attend_in_rectangles(
    qkv: Tensor,
    table: Tensor,
    plan: GroupPlan,
    num_heads: int,
    attention_for: Callable[[Tensor, Rectangle], Attention],
    scores_at_once: int,
) -> Tensor:
    """Attend as a backend does, taking at most about ``scores_at_once`` scores of an image at once.

    ``attention_for`` makes the attention within groups of one shape, from their own bias table.
    """
    qkv = qkv.contiguous()
    pieces, attentions = [], []
    for whole in rectangles(plan):
        cropped = crop_table(table, whole.rows.members, whole.columns.members)
        some = list(split_rectangle(whole, scores_at_once // (num_heads * whole.group_tokens**2)))
        pieces += some
        attentions += [attention_for(cropped, whole)] * len(some)
    if torch.is_grad_enabled():
        groups = _TakeGroups.apply(qkv, plan, pieces, 3, num_heads)
        attended = [attend(some) for attend, some in zip(attentions, groups, strict=True)]
        return _PutGroups.apply(plan, pieces, *[some[None] for some in attended])
    output = qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)
    for attend, piece in zip(attentions, pieces, strict=True):
        attended = attend(take_groups(qkv, plan, piece, 3, num_heads))
        put_groups(attended[None], output, plan, piece)
    return output


class _TakeGroups(torch.autograd.Function):
    """Take the groups of all rectangles: each token is in one of them, so nothing is added up."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plan: GroupPlan,
        pieces: list[Rectangle],
        parts: int,
        num_heads: int,
    ) -> tuple[Tensor, ...]:
        ctx.plan, ctx.pieces = plan, pieces
        return tuple(take_groups(x, plan, piece, parts, num_heads) for piece in pieces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _PutGroups.apply(ctx.plan, ctx.pieces, *grads), None, None, None, None


class _PutGroups(torch.autograd.Function):
    """Undo :class:`_TakeGroups`."""

    @staticmethod
    def forward(ctx: Any, plan: GroupPlan, pieces: list[Rectangle], *groups: Tensor) -> Tensor:
        parts, num_heads, count, _, head_dims = groups[0].shape
        ctx.settings = (plan, pieces, parts, num_heads)
        batch = count // pieces[0].groups
        x = groups[0].new_empty(batch, plan.height, plan.width, parts * num_heads * head_dims)
        for some, piece in zip(groups, pieces, strict=True):
            put_groups(some, x, plan, piece)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return None, None, *_TakeGroups.apply(grad.contiguous(), *ctx.settings)
