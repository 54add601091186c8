"""Position biases: what is added to the scores for the offset between two tokens of a group."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITION_BIASES = ("dpb", "dpb-residual", "rpb", "ape", "none")


class DynamicPositionBias(nn.Module):
    """A small MLP turns the offset between two tokens into biases (CrossFormer, section 3.3).

    Groups may have any shape. The MLP is ``embed_dims // 16`` wide. With ``residual``, its two
    middle layers are added to their input.
    """

    def __init__(self, embed_dims: int, num_heads: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        hidden = embed_dims // 16
        self.pos_proj = nn.Linear(2, hidden)
        self.pos1 = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.pos2 = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.pos3 = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, num_heads))

    def forward(self, height: int, width: int) -> Tensor:
        """Return the bias table (2 * height - 1, 2 * width - 1, heads) of a height x width group.

        Entry ``[dy + height - 1, dx + width - 1]`` belongs to the offset (dy, dx), query position
        minus key position.
        """
        # Of a norm, which the Sequential does not say: a quantised linear layer has none.
        weight: Tensor = self.pos1[0].weight  # type: ignore[assignment]
        rows = torch.arange(1 - height, height, device=weight.device, dtype=weight.dtype)
        columns = torch.arange(1 - width, width, device=weight.device, dtype=weight.dtype)
        offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        # Half precision cannot tell large offsets apart, and the table is small.
        device_type = "cpu" if weight.device.type == "meta" else weight.device.type
        with torch.autocast(device_type, enabled=False):
            x = self.pos_proj(offsets)
            for layer in (self.pos1, self.pos2):
                x = x + layer(x) if self.residual else layer(x)
            return self.pos3(x)


class RelativePositionBias(nn.Module):
    """A learned bias for every offset, as in Swin Transformer (section 3.2)."""

    def __init__(self, group_size: int, num_heads: int) -> None:
        super().__init__()
        self.group_size = group_size
        offsets = 2 * group_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets**2, num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, height: int, width: int) -> Tensor:
        """Return the table as :class:`DynamicPositionBias` does, for groups of up to its size.

        Raises:
            ValueError: If a group is larger.
        """
        if max(height, width) > self.group_size:
            raise ValueError(
                f"position_bias='rpb' has biases for groups of {self.group_size} x "
                f"{self.group_size} tokens, and this image needs {height} x {width}: choose "
                "lda_mode='fixed_group' or 'adaptive_interval', whose groups do not grow with the "
                "image, or position_bias='dpb'"
            )
        side = 2 * self.group_size - 1
        table = self.relative_position_bias_table
        # PyTorch's hooks on gradients cannot take a view of a parameter.
        return crop_table(table.view(side, side, -1), height, width).clone()


def build_position_bias(
    kind: str, embed_dims: int, num_heads: int, group_size: int
) -> nn.Module | None:
    """Make the bias of one block's attention, one of :data:`POSITION_BIASES`; None without one."""
    if kind == "rpb":
        return RelativePositionBias(group_size, num_heads)
    if kind in ("dpb", "dpb-residual"):
        return DynamicPositionBias(embed_dims, num_heads, residual=kind == "dpb-residual")
    return None


def crop_table(table: Tensor, height: int, width: int) -> Tensor:
    """Take the table of a smaller group: the offsets that occur in ``height x width`` tokens."""
    top = (table.shape[0] + 1) // 2 - height
    left = (table.shape[1] + 1) // 2 - width
    return table[top : top + 2 * height - 1, left : left + 2 * width - 1]


def expand_table(table: Tensor) -> Tensor:
    """Look up every pair of tokens: (2h - 1, 2w - 1, heads) -> (heads, h * w, h * w)."""
    return expand_rows(table, range((table.shape[0] + 1) // 2))


def expand_rows(table: Tensor, rows: range) -> Tensor:
    """Look up the pairs whose query is in some rows of the group, within 0 to h - 1.

    (2h - 1, 2w - 1, heads) -> (heads, len(rows) * w, h * w).
    """
    height, width = (table.shape[0] + 1) // 2, (table.shape[1] + 1) // 2
    # (heads, row of the table, xi, xj), by column xi - xj + width - 1 of the table
    columns = table.permute(2, 0, 1).unfold(2, width, 1).flip(1, -1)
    # (heads, xi, row from the last one, xj): for yi, the rows of all yj are one slice
    columns = columns.transpose(1, 2).contiguous()
    starts = [height - 1 - yi for yi in rows]
    bias = torch.stack([columns[:, :, start : start + height] for start in starts], dim=1)
    return bias.view(-1, len(rows) * width, height * width)


def split_table(
    table: Tensor, heads_at_once: int, rows_at_once: int
) -> Iterator[tuple[slice, range, slice]]:
    """Cut what :func:`expand_table` gives: heads, rows of the group, and the queries in them."""
    height, width = (table.shape[0] + 1) // 2, (table.shape[1] + 1) // 2
    for head in range(0, table.shape[-1], heads_at_once):
        for row in range(0, height, rows_at_once):
            rows = range(row, min(row + rows_at_once, height))
            yield slice(head, head + heads_at_once), rows, slice(row * width, rows.stop * width)


def sum_rows(bias: Tensor, rows: range, into: Tensor) -> None:
    """Undo :func:`expand_rows` for gradients: add every value to the entry it was looked up from.

    (heads, len(rows) * w, h * w), added in place to (2h - 1, 2w - 1, heads).
    """
    height, width = (into.shape[0] + 1) // 2, (into.shape[1] + 1) // 2
    span = len(rows) + height - 1
    columns = bias.new_zeros(into.shape[-1], width, span, width)  # as in expand_rows
    for yi, row in enumerate(reversed(bias.view(-1, len(rows), width, height, width).unbind(1))):
        columns[:, :, yi : yi + height] += row
    entries = _sum_shifted(columns.transpose(1, 2).flip(-1))  # (heads, row from the last, column)
    into[rows.start : rows.start + span] += entries.flip(1).permute(1, 2, 0)


def _sum_shifted(x: Tensor) -> Tensor:
    """(..., n, m) -> (..., n + m - 1): sum with row i moved i places to the right.

    Rows that are n zeros longer, cut anew one place shorter, each begin one place later.
    """
    n, m = x.shape[-2:]
    flat = F.pad(x, (0, n)).flatten(-2)
    return flat[..., : n * (n + m - 1)].unflatten(-1, (n, n + m - 1)).sum(dim=-2)
