"""Which tokens of a feature map attend to each other: pure functions on shapes and tensors.

Short distance attention (SDA) and the three rules of long distance attention (LDA) are one and
the same rearrangement. The map is cut into regions of ``group * interval`` tokens a side; inside a
region, the tokens ``interval`` apart form a group. Along one axis a position is

    position = (region * group + member) * interval + offset

and two tokens share a group when they agree on ``region`` and ``offset`` along both axes.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LDA_MODES = ("fixed_interval", "fixed_group", "adaptive_interval")


class GroupPlan(NamedTuple):
    """How one attention call splits a map; all lengths are in tokens.

    A full group has ``group_height * group_width`` tokens, ``interval`` apart. Where the map is
    not a multiple of the region, the groups at the bottom and right have fewer real tokens.
    """

    height: int
    width: int
    group_height: int
    group_width: int
    interval: int

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the map rounded up to whole regions."""
        region_height = self.group_height * self.interval
        region_width = self.group_width * self.interval
        return (
            -(-self.height // region_height) * region_height,
            -(-self.width // region_width) * region_width,
        )


def plan_groups(
    height: int, width: int, group_size: int, interval: int, lda_mode: str, long_distance: bool
) -> GroupPlan:
    """Choose the groups for one block on one map (CrossFormer, section 3.2).

    A map with a side of at most ``group_size`` is not split by interval: SDA and LDA are then the
    same, with groups as large as the map's smaller side (``fixed_interval``) or its larger one.
    """
    if min(height, width) <= group_size:
        side = min(height, width) if lda_mode == "fixed_interval" else max(height, width)
        return GroupPlan(height, width, side, side, interval=1)
    if not long_distance:
        return GroupPlan(height, width, group_size, group_size, interval=1)
    if lda_mode == "fixed_interval":
        rows, columns = _divide_up(height, interval), _divide_up(width, interval)
        return GroupPlan(height, width, rows, columns, interval)
    if lda_mode == "adaptive_interval":
        interval = _divide_up(max(height, width), group_size)
    return GroupPlan(height, width, group_size, group_size, interval)


def _divide_up(length: int, part: int) -> int:
    # Not -(-length // part): in ONNX, division rounds towards zero.
    return (length + part - 1) // part


def partition(x: Tensor, plan: GroupPlan) -> Tensor:
    """Pad a map with zeros and split it: (B, H, W, C) -> (B, groups, tokens, C)."""
    batch, height, width, channels = x.shape
    padded_height, padded_width = plan.padded_size
    x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
    x = x.reshape(batch, *_split_shape(plan), channels)
    # (B, region y, member y, offset y, region x, member x, offset x, C)
    x = x.permute(0, 1, 3, 4, 6, 2, 5, 7)
    return x.flatten(5, 6).flatten(1, 4)


def merge(groups: Tensor, plan: GroupPlan) -> Tensor:
    """Undo :func:`partition`, padding removed: (B, groups, tokens, C) -> (B, H, W, C)."""
    batch, channels = groups.shape[0], groups.shape[-1]
    rows, member_y, step, columns, member_x, _ = _split_shape(plan)
    x = groups.reshape(batch, rows, step, columns, step, member_y, member_x, channels)
    # (B, region y, offset y, region x, offset x, member y, member x, C)
    x = x.permute(0, 1, 5, 2, 3, 6, 4, 7)
    x = x.reshape(batch, *plan.padded_size, channels)
    return x[:, : plan.height, : plan.width]


def group_by_head(x: Tensor, plan: GroupPlan, num_heads: int, parts: int) -> Tensor:
    """Split a map without padding into groups and heads, for each of ``parts`` such as q, k and v.

    (B, H, W, parts * C) -> (parts, B * groups * heads, tokens, C / heads).
    """
    batch, head_dims = len(x), x.shape[-1] // (parts * num_heads)
    rows, member_y, step, columns, member_x, _ = shape = _split_shape(plan)
    x = x.reshape(batch, *shape, parts, num_heads, head_dims)
    # (parts, B, region y, offset y, region x, offset x, heads, member y, member x, C / heads)
    x = x.permute(7, 0, 1, 3, 4, 6, 8, 2, 5, 9)
    count = batch * rows * columns * step**2 * num_heads
    return x.reshape(parts, count, member_y * member_x, head_dims)


def ungroup_by_head(groups: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Undo :func:`group_by_head`."""
    parts, count, _, head_dims = groups.shape
    rows, member_y, step, columns, member_x, _ = _split_shape(plan)
    batch = count // (rows * columns * step**2 * num_heads)
    x = groups.reshape(
        parts, batch, rows, step, columns, step, num_heads, member_y, member_x, head_dims
    )
    x = x.permute(1, 2, 7, 3, 4, 8, 5, 0, 6, 9)
    return x.reshape(batch, plan.height, plan.width, parts * num_heads * head_dims)


def real_tokens(plan: GroupPlan, device: torch.device) -> Tensor | None:
    """Mark what is not padding: (groups, tokens) of bool, or None where nothing is padded."""
    if plan.padded_size == (plan.height, plan.width):
        return None
    ones = torch.ones(1, plan.height, plan.width, 1, dtype=torch.bool, device=device)
    return partition(ones, plan)[0, ..., 0]


def _split_shape(plan: GroupPlan) -> tuple[int, int, int, int, int, int]:
    """(regions, members, offsets) of the padded height, then of the padded width."""
    padded_height, padded_width = plan.padded_size
    rows = padded_height // (plan.group_height * plan.interval)
    columns = padded_width // (plan.group_width * plan.interval)
    return rows, plan.group_height, plan.interval, columns, plan.group_width, plan.interval


class EqualGroups(NamedTuple):
    """A run of ``count`` groups that all have ``height * width`` real tokens."""

    count: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of tokens in the whole run."""
        return self.count * self.height * self.width


class TokenOrder(NamedTuple):
    """The tokens of a map sorted so that each group is contiguous, and padding never appears.

    ``order[i]`` is the flat map position (row * width + column) of the i-th sorted token,
    ``inverse`` undoes it, and ``runs`` says how the sorted tokens fall into groups. The real
    tokens of a group always form a rectangle, so a map has at most nine runs.
    """

    order: np.ndarray
    inverse: np.ndarray
    runs: tuple[EqualGroups, ...]


@lru_cache(maxsize=64)
def order_tokens(plan: GroupPlan) -> TokenOrder:
    """Sort the tokens of a map by group, groups of equal shape together."""
    order, runs = [], []
    for rows in _axis_groups(plan.height, plan.group_height, plan.interval):
        for columns in _axis_groups(plan.width, plan.group_width, plan.interval):
            # (groups y, groups x, members y, members x)
            tokens = rows[:, None, :, None] * plan.width + columns[None, :, None, :]
            order.append(tokens.reshape(-1))
            runs.append(EqualGroups(len(rows) * len(columns), rows.shape[1], columns.shape[1]))
    order = np.concatenate(order)
    return TokenOrder(order, np.argsort(order), tuple(runs))


def _axis_groups(size: int, group: int, interval: int) -> list[np.ndarray]:
    """Positions along one axis, a (groups, members) array for each number of members."""
    by_length: dict[int, list[range]] = {}
    for region_start in range(0, size, group * interval):
        region_end = min(region_start + group * interval, size)
        for start in range(region_start, min(region_start + interval, region_end)):
            members = range(start, region_end, interval)
            by_length.setdefault(len(members), []).append(members)
    return [np.array(groups) for groups in by_length.values()]
