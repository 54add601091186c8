"""The attention of one token, spread out over the map."""

import torch
from torch import Tensor

from crossformer_mm.models.chunked_attention import split_heads
from crossformer_mm.models.grouping import partition
from crossformer_mm.models.position_bias import expand_rows
from crossformer_mm.visualization.groups import Token, members_of_group
from crossformer_mm.visualization.recording import AttentionCall


@torch.no_grad()
def attention_of_token(call: AttentionCall, token: Token) -> Tensor:
    """Compute how much a token attends to every token of the map.

    Returns:
        (heads, H, W); each head sums to one, and is zero outside of the token's group.
    """
    plan, layer = call.plan, call.attention
    index, members = members_of_group(plan, token)
    place = int((members == token[0] * plan.width + token[1]).nonzero())
    real = (members >= 0).to(call.x.device)
    group = partition(call.x, plan)[0, index]  # (tokens, C)
    query, key, _ = split_heads(layer.qkv(group), layer.num_heads)  # (heads, tokens, C / heads)
    logits = (key @ query[:, place, :, None])[..., 0] * query.shape[-1] ** -0.5
    weights = (logits + _bias_of_place(call, place))[:, real].softmax(dim=-1)
    spread = weights.new_zeros(layer.num_heads, plan.height * plan.width)
    spread[:, members.to(call.x.device)[real]] = weights
    return spread.view(-1, plan.height, plan.width).cpu()


def _bias_of_place(call: AttentionCall, place: int) -> Tensor:
    """The position bias between one place of a group and all others: (heads, tokens)."""
    row, column = divmod(place, call.plan.group_width)
    table = call.attention.pos(call.plan.group_height, call.plan.group_width)
    return expand_rows(table, range(row, row + 1))[:, column]


@torch.no_grad()
def bias_table(call: AttentionCall) -> Tensor:
    """The learned bias of every offset between tokens of a group: (heads, 2h - 1, 2w - 1)."""
    table = call.attention.pos(call.plan.group_height, call.plan.group_width)
    return table.permute(2, 0, 1).cpu()
