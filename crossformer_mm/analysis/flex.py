"""PyTorch's FlexAttention with the same position bias, for the benchmark to compare with."""

from functools import cache, partial

import torch
from torch import Tensor, nn

from crossformer_mm.models import GroupedAttention
from crossformer_mm.models.grouping import GroupPlan, merge, partition, real_tokens

# Where there are more kinds of groups than it compiles for, it fails rather than being slow.
_compile = cache(partial(torch.compile, dynamic=False, fullgraph=True))


def can_run(x: Tensor, plan: GroupPlan, num_heads: int) -> str | None:
    """Needs a GPU: on a CPU it is not fused."""
    return None if x.is_cuda else "it needs a GPU"


def attend(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Attend as a backend does; on a CPU not fused, and without gradients."""
    from torch.nn.attention.flex_attention import flex_attention  # since torch 2.5

    groups = partition(qkv, plan).flatten(0, 1).unflatten(-1, (3, num_heads, -1))
    q, k, v = groups.permute(2, 0, 3, 1, 4)  # each (B * groups, heads, tokens, C / heads)
    rows, columns = (torch.arange(n, device=qkv.device) for n in plan[2:4])
    entries = (rows[:, None] * (2 * plan.group_width - 1) + columns).flatten()
    biases, middle = table.permute(2, 0, 1).flatten(1), entries[-1]
    real, groups_per_map = real_tokens(plan, qkv.device), q.shape[0] // qkv.shape[0]

    def add_bias(score, group, head, query, key):
        score = score + biases[head, entries[query] - entries[key] + middle]
        if real is None:
            return score
        # Not minus infinity: a group may be nothing but padding.
        return torch.where(real[group % groups_per_map, key], score, torch.finfo(q.dtype).min)

    fuse = qkv.is_cuda and not torch.compiler.is_compiling()
    attention = _compile(flex_attention) if fuse else flex_attention
    attended = attention(q, k, v, add_bias).transpose(1, 2).flatten(2)
    return merge(attended.unflatten(0, (-1, groups_per_map)), plan)


class FlexGroupedAttention(GroupedAttention):
    """Grouped attention with the weights it has, computed by FlexAttention."""

    def forward(self, x: Tensor, plan: GroupPlan) -> Tensor:
        """Attend within the groups of ``plan``: (B, H, W, C) -> (B, H, W, C)."""
        if plan.shift:
            raise ValueError("FlexAttention is measured without shifted windows")
        table = self.bias_table(plan, x)
        return self.proj(attend(self.qkv(x), table, plan, self.num_heads))


def use_flex(model: nn.Module) -> nn.Module:
    """Let FlexAttention compute all grouped attention of a model."""
    for module in model.modules():
        if type(module) is GroupedAttention:
            module.__class__ = FlexGroupedAttention
    return model
