"""Which tokens share a group, how much they attend to each other, and the bias between them."""

from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.attention import GroupedAttention
from crossformer_mm.models.grouping import (
    LDA_MODES,
    GroupPlan,
    allowed_keys,
    partition,
    plan_groups,
)

Token = tuple[int, int]  # row and column on a stage's map
#: SDA, and LDA under each of its modes.
RULES = ("SDA", *(f"LDA {mode}" for mode in LDA_MODES))


class AttentionCall(NamedTuple):
    """One call of an attention layer: the tokens ``x`` (1, H, W, C) that it got, and the groups."""

    stage: int
    block: int
    long_distance: bool
    layer: GroupedAttention
    x: Tensor
    plan: GroupPlan


class Recording(NamedTuple):
    """All attention calls in order, and the output of each stage that ran, (1, H, W, C)."""

    calls: list[AttentionCall]
    stage_maps: list[Tensor]


@torch.no_grad()
def record(backbone: CrossFormer, image: Tensor) -> Recording:
    """Run the backbone on an image (1, C, H, W); forward hooks note what happens inside."""
    calls, stage_maps = [], []

    def note_call(place: tuple, layer: GroupedAttention, inputs: tuple) -> None:
        calls.append(AttentionCall(*place, layer, *inputs))

    with ExitStack() as hooks:
        for number, stage in enumerate(backbone.layers):
            note_map = stage.register_forward_hook(lambda *args: stage_maps.append(args[-1]))
            hooks.enter_context(note_map)
            for index, block in enumerate(stage.blocks):
                note = partial(note_call, (number, index, block.long_distance))
                if isinstance(block.attn, GroupedAttention):
                    hooks.enter_context(block.attn.register_forward_pre_hook(note))
        backbone(image)
    return Recording(calls, stage_maps)


def plan_by_rule(
    rule: str, size: Token, group_size: int, interval: int, own_mode: str
) -> GroupPlan:
    """Plan the groups on a map of ``size`` tokens under one of :data:`RULES`.

    For SDA, the model's own ``lda_mode`` decides the shape of groups on very small maps.
    """
    kind, _, mode = rule.partition(" ")
    return plan_groups(*size, group_size, interval, mode or own_mode, long_distance=kind == "LDA")


def plans_of_stage(backbone: CrossFormer, stage: int, size: Token) -> dict[str, GroupPlan]:
    """Plan the groups on a map of ``size`` tokens under each of :data:`RULES`.

    Group size and interval are those of the stage's last block.
    """
    block = backbone.layers[stage].blocks[-1]
    own = (size, block.group_size, block.interval, block.lda_mode)
    plans = {rule: plan_by_rule(rule, *own) for rule in RULES}
    if block.long_range == "swin":
        plans["shifted windows"] = block.plan(*size)
    return plans


def group_of_token(plan: GroupPlan, token: Token) -> Tensor:
    """Mark the tokens that share a group with one: (H, W) of bool."""
    numbers = torch.arange(1, plan.height * plan.width + 1).view(1, plan.height, plan.width, 1)
    groups = partition(numbers, plan)[0, ..., 0]  # (groups, tokens), 0 where it is padding
    (group,), (place,) = torch.where(groups == token[0] * plan.width + token[1] + 1)
    own, allowed = groups[group], allowed_keys(plan, groups.device)
    if allowed is not None:
        own = own[allowed[group].expand(len(own), -1)[place]]
    return torch.isin(numbers[0, ..., 0], own)


@torch.no_grad()
def attention_of_token(call: AttentionCall, token: Token) -> Tensor:
    """Compute how much a token attends to each: (heads, H, W), zero outside of its group."""
    plan, layer, (row, column) = call.plan, call.layer, token
    rows, columns = group_of_token(plan, token).to(call.x.device).nonzero(as_tuple=True)
    qkv = layer.qkv(call.x[0, rows, columns]).unflatten(-1, (3, layer.num_heads, -1))
    itself = (rows == row) & (columns == column)
    query, keys = qkv[itself, 0], qkv[:, 1]  # (1, heads, d), (tokens, heads, d)
    # Query minus key, in places of the group.
    down, right = (row - rows) // plan.interval, (column - columns) // plan.interval
    bias = bias_table(call)[:, down + plan.group_height - 1, right + plan.group_width - 1]
    logits = (keys * query).sum(dim=-1).T * query.shape[-1] ** -0.5 + bias  # (heads, tokens)
    attention = call.x.new_zeros(layer.num_heads, plan.height, plan.width)
    attention[:, rows, columns] = logits.softmax(dim=1)
    return attention.cpu()


@torch.no_grad()
def bias_table(call: AttentionCall) -> Tensor:
    """Compute the bias of every offset, query minus key: (heads, 2 * rows - 1, 2 * columns - 1)."""
    return call.layer.bias_table(call.plan, call.x).permute(2, 0, 1)
