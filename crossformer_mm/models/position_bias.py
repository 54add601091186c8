"""Dynamic position bias (CrossFormer, section 3.3): a small MLP turns offsets into biases."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DynamicPositionBias(nn.Module):
    """Learn the bias of every offset between two tokens of a group, for groups of any shape.

    Args:
        embed_dims: Channels of the block; the MLP is ``embed_dims // 16`` wide.
        num_heads: Attention heads, one bias each.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
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
        weight = self.pos1[0].weight  # of a norm: a quantised linear layer has none
        rows = torch.arange(1 - height, height, device=weight.device, dtype=weight.dtype)
        columns = torch.arange(1 - width, width, device=weight.device, dtype=weight.dtype)
        offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        # Half precision cannot tell large offsets apart, and the table is small.
        device_type = "cpu" if weight.device.type == "meta" else weight.device.type
        with torch.autocast(device_type, enabled=False):
            return self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))


def crop_table(table: Tensor, height: int, width: int) -> Tensor:
    """Take the table of a smaller group: the offsets that occur in ``height x width`` tokens."""
    top = (table.shape[0] + 1) // 2 - height
    left = (table.shape[1] + 1) // 2 - width
    return table[top : top + 2 * height - 1, left : left + 2 * width - 1]


def expand_table(table: Tensor) -> Tensor:
    """Look up every pair of tokens: (2h - 1, 2w - 1, heads) -> (heads, h * w, h * w)."""
    return expand_rows(table, range((table.shape[0] + 1) // 2))


def expand_rows(table: Tensor, rows: range) -> Tensor:
    """Look up the pairs whose query is in some rows of the group.

    Args:
        table: (2h - 1, 2w - 1, heads).
        rows: Rows of query tokens, within 0 to h - 1.

    Returns:
        (heads, len(rows) * w, h * w).
    """
    height, width = (table.shape[0] + 1) // 2, (table.shape[1] + 1) // 2
    # windows[yi, xi, head, a, b] = table[yi + a, xi + b, head], and a = height - 1 - yj
    windows = table.unfold(0, height, 1).unfold(1, width, 1)[rows.start : rows.stop]
    bias = windows.flip(-2, -1).permute(2, 0, 1, 3, 4)
    return bias.reshape(-1, len(rows) * width, height * width)


def sum_rows(bias: Tensor, rows: range, into: Tensor) -> None:
    """Undo :func:`expand_rows` for gradients: add every value to the entry it was looked up from.

    Args:
        bias: (heads, len(rows) * w, h * w).
        rows: As for :func:`expand_rows`.
        into: (2h - 1, 2w - 1, heads), changed in place.
    """
    height, width = (into.shape[0] + 1) // 2, (into.shape[1] + 1) // 2
    # (heads, yi, a, xi, b) with a = height - 1 - yj and b = width - 1 - xj
    windows = bias.view(-1, len(rows), width, height, width).flip(-2, -1).transpose(2, 3)
    columns = _sum_shifted(windows)  # (heads, yi, a, column of the table)
    entries = _sum_shifted(columns.permute(0, 3, 1, 2))  # (heads, column, row)
    into[rows.start : rows.start + entries.shape[-1]] += entries.permute(2, 1, 0)


def _sum_shifted(x: Tensor) -> Tensor:
    """(..., n, m) -> (..., n + m - 1): sum with row i moved i places to the right.

    Rows that are n zeros longer, cut anew one place shorter, each begin one place later.
    """
    n, m = x.shape[-2:]
    flat = F.pad(x, (0, n)).flatten(-2)
    return flat[..., : n * (n + m - 1)].unflatten(-1, (n, n + m - 1)).sum(dim=-2)
