"""Multi-head self-attention inside the groups of a feature map, and which backend computes it.

A backend is a module with two functions:

- ``can_run(x, plan, num_heads)``: None, or the reason why it cannot take the tokens (B, H, W, C).
- ``attend(qkv, table, plan, num_heads)``: self-attention within the groups (CrossFormer, section
  3.2). From q, k and v (B, H, W, 3 * C), each by heads, and the table of position biases
  (2 * group height - 1, 2 * group width - 1, heads), to (B, H, W, C).
"""

from functools import cache

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from crossformer_mm.models.attention import chunked, eager, sdpa, triton
from crossformer_mm.models.grouping import GroupPlan, merge, partition
from crossformer_mm.models.position_bias import build_position_bias

BACKENDS = {"eager": eager, "sdpa": sdpa, "chunked": chunked, "triton": triton}
#: What ``attn_backend`` may be.
ATTN_BACKENDS = ("auto", *BACKENDS)
# Scores that may be in memory at once where nothing else speaks against the formula as it reads.
EAGER_SCORES = 2**24


class GroupedAttention(nn.Module):
    """Self-attention within groups, with a position bias (CrossFormer, section 3.2).

    ``attn_backend`` is one of :data:`ATTN_BACKENDS`, see :func:`choose_backend`; ``position_bias``
    as in :class:`.CrossFormer`, and ``group_size`` the largest side of groups under ``'rpb'``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_backend: str = "auto",
        position_bias: str = "dpb",
        group_size: int = 7,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_backend = attn_backend
        self.qkv = nn.Linear(embed_dims, embed_dims * 3)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.pos = build_position_bias(position_bias, embed_dims, num_heads, group_size)

    def forward(self, x: Tensor, plan: GroupPlan) -> Tensor:
        """Attend within the groups of ``plan``: (B, H, W, C) -> (B, H, W, C)."""
        backend, reason = choose_backend(self.attn_backend, x, plan, self.num_heads)
        _log_once(backend, reason)
        table = self.bias_table(plan, x)
        if backend == "eager":  # padding goes through the linear layers too, as published FLOPs do
            qkv = self.qkv(partition(x, plan))
            attended = eager.attend_groups(qkv, table, plan, self.num_heads)
            return merge(self.proj(attended), plan)
        return self.proj(BACKENDS[backend].attend(self.qkv(x), table, plan, self.num_heads))

    def bias_table(self, plan: GroupPlan, x: Tensor) -> Tensor:
        """The biases of all offsets in a group of ``plan``, as :class:`DynamicPositionBias`."""
        if self.pos is None:
            sides = (2 * plan.group_height - 1, 2 * plan.group_width - 1)
            return x.new_zeros(*sides, self.num_heads)
        return self.pos(plan.group_height, plan.group_width)


def choose_backend(
    attn_backend: str, x: Tensor, plan: GroupPlan, num_heads: int
) -> tuple[str, str]:
    """Decide how attention is computed; all backends give the same result.

    - ``'eager'`` pads, masks and multiplies matrices as the paper's formula reads.
    - ``'sdpa'`` uses PyTorch's fused attention, without padding.
    - ``'chunked'`` is ``'sdpa'`` with a backward pass in memory linear in the tokens.
    - ``'triton'`` are kernels for NVIDIA GPUs that have not run on one yet; never chosen by itself.
    - ``'auto'`` takes the first three in turn where each is the fastest.

    Returns:
        The backend for the tokens ``x`` (B, H, W, C), and why.

    Raises:
        RuntimeError: If the backend that is asked for cannot run; the message says why.
    """
    if attn_backend != "auto":
        reason = BACKENDS[attn_backend].can_run(x, plan, num_heads)
        if reason is not None:
            raise RuntimeError(f"attn_backend={attn_backend!r} cannot run: {reason}; use 'auto'")
        return attn_backend, "it is asked for"
    reason = sdpa.can_run(x, plan, num_heads)
    if reason is not None:
        return "eager", reason
    group_tokens = plan.group_height * plan.group_width
    on_cpu, is_small = x.device.type == "cpu", group_tokens <= sdpa.SMALL_GROUP
    scores = x.shape[:3].numel() * group_tokens * num_heads
    if on_cpu and is_small and plan.is_filled and scores <= EAGER_SCORES:
        return "eager", "small groups fill the map"
    large_bias = group_tokens**2 * num_heads > sdpa.BIAS_AT_ONCE
    if torch.is_grad_enabled() and not is_small and (on_cpu or large_bias):
        return "chunked", "groups are large, and gradients are needed"
    return "sdpa", "it is the fastest without padding"


@cache
def _log_once(backend: str, reason: str) -> None:
    print_log(f"Attention runs on {backend!r}: {reason}", logger="current")
