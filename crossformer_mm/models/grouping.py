"""Which tokens of a feature map attend to each other: pure functions on shapes and tensors.

Short distance attention (SDA) and the three rules of long distance attention (LDA) are one and
the same rearrangement. The map is cut into regions of ``group * interval`` tokens a side; inside a
region, the tokens ``interval`` apart form a group. Along one axis a position is

    position = (region * group + member) * interval + offset

and two tokens share a group when they agree on ``region`` and ``offset`` along both axes. Swin's
shifted windows are regions that begin ``shift`` tokens later, and a smaller one before them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LDA_MODES = ("fixed_interval", "fixed_group", "adaptive_interval")
LONG_RANGES = ("lda", "swin", "pvt")


class GroupPlan(NamedTuple):
    """How one attention call splits a map; all lengths are in tokens.

    A full group has ``group_height * group_width`` tokens, ``interval`` apart. Where the map is
    not a multiple of the region, the groups at the bottom and right have fewer real tokens. With a
    ``shift``, those at the top and left have ``shift`` tokens a side.
    """

    height: int
    width: int
    group_height: int
    group_width: int
    interval: int
    shift: int = 0

    @property
    def regions(self) -> tuple[int, int]:
        """Regions that cover the map's height and width."""
        rows = _divide_up(self.height, self.group_height * self.interval)
        return rows, _divide_up(self.width, self.group_width * self.interval)

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the map rounded up to whole regions."""
        rows, columns = self.regions
        return rows * self.group_height * self.interval, columns * self.group_width * self.interval

    @property
    def is_filled(self) -> bool:
        """Whether the map is made of whole regions, without padding."""
        return self.padded_size == (self.height, self.width)


def plan_groups(
    height: int,
    width: int,
    group_size: int,
    interval: int,
    lda_mode: str,
    long_distance: bool,
    long_range: str = "lda",
    may_grow: bool = True,
) -> GroupPlan:
    """Choose the groups for one block on one map (CrossFormer, section 3.2).

    A map with a side of at most ``group_size`` is not split by interval: SDA and LDA are then the
    same, with groups as large as the map's smaller side (``fixed_interval``) or its larger one.
    With ``long_range='swin'``, windows shifted by half their side stand in place of LDA. Without
    ``may_grow`` it is always the smaller side, so that no group is larger than ``group_size`` but
    in LDA under ``fixed_interval``.
    """
    if min(height, width) <= group_size:
        takes_smaller = lda_mode == "fixed_interval" or not may_grow
        side = min(height, width) if takes_smaller else max(height, width)
        return GroupPlan(height, width, side, side, interval=1)
    if not long_distance:
        return GroupPlan(height, width, group_size, group_size, interval=1)
    if long_range == "swin":
        shift = group_size // 2
        return GroupPlan(height, width, group_size, group_size, interval=1, shift=shift)
    if lda_mode == "fixed_interval":
        rows, columns = _divide_up(height, interval), _divide_up(width, interval)
        return GroupPlan(height, width, rows, columns, interval)
    if lda_mode == "adaptive_interval":
        interval = _divide_up(max(height, width), group_size)
    return GroupPlan(height, width, group_size, group_size, interval)


def _divide_up(length: int, part: int) -> int:
    return -(-length // part)


def to_regions(x: Tensor, plan: GroupPlan) -> Tensor:
    """Pad a map (B, H, W, C) with zeros to whole regions, the first of which begins at its edge."""
    height, width = plan.padded_size
    x = F.pad(x, (0, 0, 0, width - plan.width, 0, height - plan.height))
    return x.roll((-plan.shift, -plan.shift), dims=(1, 2)) if plan.shift else x


def from_regions(x: Tensor, plan: GroupPlan) -> Tensor:
    """Undo :func:`to_regions`."""
    x = x.roll((plan.shift, plan.shift), dims=(1, 2)) if plan.shift else x
    return x[:, : plan.height, : plan.width]


def partition(x: Tensor, plan: GroupPlan) -> Tensor:
    """Pad a map with zeros and split it: (B, H, W, C) -> (B, groups, tokens, C)."""
    x, (rows, columns) = to_regions(x, plan), plan.regions
    in_rows, in_columns = (plan.group_height, plan.interval), (plan.group_width, plan.interval)
    x = x.reshape(x.shape[0], rows, *in_rows, columns, *in_columns, x.shape[-1])
    # (B, region y, member y, offset y, region x, member x, offset x, C)
    return x.permute(0, 1, 3, 4, 6, 2, 5, 7).flatten(5, 6).flatten(1, 4)


def merge(groups: Tensor, plan: GroupPlan) -> Tensor:
    """Undo :func:`partition`, padding removed: (B, groups, tokens, C) -> (B, H, W, C)."""
    batch, channels = groups.shape[0], groups.shape[-1]
    (rows, columns), step = plan.regions, plan.interval
    members = (plan.group_height, plan.group_width)
    x = groups.reshape(batch, rows, step, columns, step, *members, channels)
    # (B, region y, offset y, region x, offset x, member y, member x, C)
    x = x.permute(0, 1, 5, 2, 3, 6, 4, 7).reshape(batch, *plan.padded_size, channels)
    return from_regions(x, plan)


def real_tokens(plan: GroupPlan, device: torch.device) -> Tensor | None:
    """Mark what is not padding: (groups, tokens) of bool, or None where nothing is padded."""
    if plan.is_filled:
        return None
    ones = torch.ones(1, plan.height, plan.width, 1, dtype=torch.bool, device=device)
    return partition(ones, plan)[0, ..., 0]


def allowed_keys(plan: GroupPlan, device: torch.device) -> Tensor | None:
    """Mark the keys of each query: (groups, 1 or tokens, tokens) of bool, or None where it is all.

    Rolling a map brings its two ends into one group, and they must not see each other (Swin
    Transformer, section 3.2).
    """
    if not plan.shift:
        real = real_tokens(plan, device)
        return None if real is None else real[:, None]
    is_first = [
        torch.arange(side, device=device) < plan.shift for side in (plan.height, plan.width)
    ]
    places = 1 + 2 * is_first[0][:, None] + is_first[1].long()  # 0 is padding
    places = partition(places[None, ..., None], plan)[0, ..., 0]
    return places[:, :, None] == places[:, None]


class AxisPart(NamedTuple):
    """Positions along one axis whose groups have the same number of real members."""

    regions: range
    members: int
    offsets: range
    start: int = 0  # of the first region


class Rectangle(NamedTuple):
    """Groups of ``rows.members * columns.members`` real tokens each; no padding among them."""

    rows: AxisPart
    columns: AxisPart

    @property
    def groups(self) -> int:
        """Groups of one map."""
        rows, columns = self
        return len(rows.regions) * len(rows.offsets) * len(columns.regions) * len(columns.offsets)

    @property
    def group_tokens(self) -> int:
        """Real tokens of one group."""
        return self.rows.members * self.columns.members


def rectangles(plan: GroupPlan) -> list[Rectangle]:
    """The real tokens of a map, as at most nine rectangles of groups of equal shape."""
    rows = _axis_parts(plan.height, plan.group_height, plan.interval, plan.shift)
    columns = _axis_parts(plan.width, plan.group_width, plan.interval, plan.shift)
    return [Rectangle(row, column) for row in rows for column in columns]


def _axis_parts(size: int, group: int, interval: int, shift: int) -> list[AxisPart]:
    full, rest = divmod(size - shift, group * interval)
    members, longer = divmod(rest, interval)
    parts = [
        AxisPart(range(1), shift, range(1)),
        AxisPart(range(full), group, range(interval), shift),
        AxisPart(range(full, full + 1), members + 1, range(longer), shift),
        AxisPart(range(full, full + 1), members, range(longer, interval), shift),
    ]
    return [part for part in parts if part.regions and part.members and part.offsets]


def split_rectangle(rectangle: Rectangle, max_groups: int) -> Iterator[Rectangle]:
    """Cut a rectangle between rows of groups, into pieces of at most about ``max_groups``."""
    rows, columns = rectangle
    in_a_row = len(columns.regions) * len(columns.offsets)
    offsets_at_once = max(1, max_groups // in_a_row)
    regions_at_once = max(1, max_groups // (in_a_row * len(rows.offsets)))
    for regions in _split_range(rows.regions, regions_at_once):
        for offsets in _split_range(rows.offsets, offsets_at_once):
            yield Rectangle(rows._replace(regions=regions, offsets=offsets), columns)


def _split_range(whole: range, at_once: int) -> list[range]:
    return [whole[start : start + at_once] for start in range(0, len(whole), at_once)]


def _view_groups(
    x: Tensor, plan: GroupPlan, rectangle: Rectangle, parts: int, num_heads: int
) -> Tensor:
    """View the groups of a rectangle, by head, in their map (B, H, W, parts * C), contiguous.

    (parts, heads, B, region y, offset y, region x, offset x, member y, member x, C / heads).
    """
    batch, _, width, channels = x.shape
    sizes, strides, start = [batch], [x.stride(0)], x.storage_offset()
    groups = (plan.group_height, plan.group_width)
    for part, group, stride in zip(rectangle, groups, (width * channels, channels), strict=True):
        sizes += [len(part.regions), part.members, len(part.offsets)]
        strides += [group * plan.interval * stride, plan.interval * stride, stride]
        first = part.start + part.regions.start * group * plan.interval + part.offsets.start
        start += first * stride
    view = x.as_strided([*sizes, channels], [*strides, 1], start)
    view = view.unflatten(-1, (parts, num_heads, channels // (parts * num_heads)))
    return view.permute(7, 8, 0, 1, 3, 4, 6, 2, 5, 9)


def take_groups(
    x: Tensor, plan: GroupPlan, rectangle: Rectangle, parts: int, num_heads: int
) -> Tensor:
    """Copy the groups of a rectangle out of their map, by head, for ``parts`` such as q, k and v.

    (B, H, W, parts * C), contiguous -> (parts, heads, groups, tokens, C / heads), with the groups
    of all images one after another.
    """
    view = _view_groups(x, plan, rectangle, parts, num_heads)
    shape = (parts, num_heads, -1, rectangle.group_tokens, view.shape[-1])
    return view.reshape(shape).contiguous()


def put_groups(groups: Tensor, x: Tensor, plan: GroupPlan, rectangle: Rectangle) -> None:
    """Undo :func:`take_groups`: write (parts, heads, groups, tokens, C / heads) into the map."""
    view = _view_groups(x, plan, rectangle, *groups.shape[:2])
    view.copy_(groups.reshape(view.shape))
