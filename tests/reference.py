"""A slow reference of the backbone: loops over explicit groups, no padding, no masks.

Written from the papers' definition and not from the package, so that the two can disagree. A
group is a list of tokens of the map; positions that exist only as padding are in no list, which is
what "never attended to" means. Works on a state dict with the authors' names, in its dtype, and
gradients flow to every entry.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
Token = tuple[int, int]
# The token's (row, column) on the map, and its (row, column) inside its group.
Member = tuple[Token, Token]


def reference_groups(
    height: int,
    width: int,
    group_size: int,
    interval: int,
    lda_mode: str,
    long_distance: bool,
    long_range: str = "lda",
    may_grow: bool = True,
) -> list[list[Member]]:
    """List the members of every group of one block on a map of height x width tokens."""
    side = group_size
    small_map = min(height, width) <= group_size
    if small_map:
        side = (min if lda_mode == "fixed_interval" or not may_grow else max)(height, width)
    if lda_mode == "adaptive_interval":
        interval = -(-max(height, width) // group_size)
    groups: dict[tuple[int, ...], list[Member]] = {}
    for row in range(height):
        for column in range(width):
            if small_map or not long_distance:
                key = (row // side, column // side)
                place = (row % side, column % side)
            elif long_range == "swin":  # windows end half a side in, and then every whole one
                down, right = (x - group_size // 2 + group_size for x in (row, column))
                key = (down // group_size, right // group_size)
                place = (down % group_size, right % group_size)
            elif lda_mode == "fixed_interval":
                key = (row % interval, column % interval)
                place = (row // interval, column // interval)
            else:
                edge = group_size * interval
                key = (row // edge, column // edge, row % interval, column % interval)
                place = (row % edge // interval, column % edge // interval)
            groups.setdefault(key, []).append(((row, column), place))
    return list(groups.values())


def reference_bias(
    state: State, prefix: str, places: Sequence[Token], position_bias: str = "dpb"
) -> Tensor:
    """Evaluate the position bias of every (query, key) pair: (heads, n, n)."""
    offsets = [[(qy - ky, qx - kx) for ky, kx in places] for qy, qx in places]
    if position_bias in ("ape", "none"):
        return torch.zeros(())
    if position_bias == "rpb":
        table = state[f"{prefix}.relative_position_bias_table"]
        side = int((len(table) ** 0.5 + 1) // 2)
        row = {(y, x): (y + side - 1) * (2 * side - 1) + x + side - 1 for y, x in sum(offsets, [])}
        rows = [[row[offset] for offset in offsets_of_query] for offsets_of_query in offsets]
        return table[torch.tensor(rows)].permute(2, 0, 1)
    dtype = state[f"{prefix}.pos_proj.weight"].dtype
    x = linear(state, f"{prefix}.pos_proj", torch.tensor(offsets, dtype=dtype))
    for name in ("pos1", "pos2", "pos3"):
        out = linear(state, f"{prefix}.{name}.2", layer_norm(state, f"{prefix}.{name}.0", x).relu())
        x = x + out if position_bias == "dpb-residual" and name != "pos3" else out
    return x.permute(2, 0, 1)


def reference_reduced_attention(
    state: State, prefix: str, x: Tensor, num_heads: int, reduction: int
) -> Tensor:
    """Attend to the map reduced ``reduction`` times, head after head: (B, H, W, C) -> the same."""
    reduced = x
    if reduction > 1:
        padded = zero_pad(x, reduction)
        reduced = layer_norm(
            state, f"{prefix}.norm", convolve(state, f"{prefix}.sr", padded, reduction, 0)
        )
    query = linear(state, f"{prefix}.q", x).flatten(1, 2).chunk(num_heads, dim=-1)
    keys, values = linear(state, f"{prefix}.kv", reduced).flatten(1, 2).chunk(2, dim=-1)
    heads = []
    for q, k, v in zip(query, keys.chunk(num_heads, -1), values.chunk(num_heads, -1), strict=True):
        scores = torch.einsum("bqc,bkc->bqk", q, k) / q.shape[-1] ** 0.5
        heads.append(torch.einsum("bqk,bkc->bqc", scores.softmax(-1), v))
    return linear(state, f"{prefix}.proj", torch.cat(heads, -1).view_as(x))


def reference_attention(
    state: State,
    prefix: str,
    x: Tensor,
    groups: Sequence[Sequence[Member]],
    num_heads: int,
    position_bias: str = "dpb",
) -> Tensor:
    """Attend within each group in turn: (B, H, W, C) -> (B, H, W, C)."""
    head_dims = x.shape[-1] // num_heads
    qkv = linear(state, f"{prefix}.qkv", x)
    # The 3 * C channels are first q, then k, then v; within each, head after head.
    # (B, H, W, heads, C / heads) each
    q, k, v = (part.unflatten(-1, (num_heads, head_dims)) for part in qkv.chunk(3, dim=-1))
    biases: dict[tuple[Token, ...], Tensor] = {}
    outputs: dict[Token, Tensor] = {}
    for members in groups:
        rows = torch.tensor([row for (row, _), _ in members])
        columns = torch.tensor([column for (_, column), _ in members])
        places = tuple(place for _, place in members)
        if places not in biases:
            biases[places] = reference_bias(state, f"{prefix}.pos", places, position_bias)
        # (B, n, heads, C / heads) each
        query, key, value = (part[:, rows, columns] for part in (q, k, v))
        logits = torch.einsum("bqhc,bkhc->bhqk", query, key) / head_dims**0.5
        weights = torch.softmax(logits + biases[places], dim=-1)
        output = torch.einsum("bhqk,bkhc->bqhc", weights, value).flatten(2)
        outputs.update(zip((token for token, _ in members), output.unbind(1), strict=True))
    tokens = [outputs[row, column] for row in range(x.shape[1]) for column in range(x.shape[2])]
    return linear(state, f"{prefix}.proj", torch.stack(tokens, dim=1).view_as(x))


def reference_block(
    state: State,
    prefix: str,
    x: Tensor,
    attend: Callable[[State, str, Tensor], Tensor],
    cooling: bool,
) -> Tensor:
    """Run one block without drop path: (B, H, W, C) -> (B, H, W, C)."""
    normed = layer_norm(state, f"{prefix}.norm1", x)
    x = x + attend(state, f"{prefix}.attn", normed)
    hidden = linear(state, f"{prefix}.mlp.fc1", layer_norm(state, f"{prefix}.norm2", x))
    x = x + linear(state, f"{prefix}.mlp.fc2", F.gelu(hidden))
    if cooling:
        cooled = convolve(state, f"{prefix}.ex_conv", x, stride=1, padding=1, groups=x.shape[-1])
        x = layer_norm(state, f"{prefix}.ex_ln", cooled)
    return x


def reference_stem(state: State, image: Tensor, kernels: Sequence[int] = (4, 8, 16, 32)) -> Tensor:
    """Embed an image: (B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), D)."""
    pixels = zero_pad(image.permute(0, 2, 3, 1), 4)
    parts = [
        convolve(state, f"patch_embed.projs.{i}", pixels, stride=4, padding=(kernel - 4) // 2)
        for i, kernel in enumerate(kernels)
    ]
    x = layer_norm(state, "patch_embed.norm", torch.cat(parts, dim=-1))
    embedding = state.get("patch_embed.pos_embed.embedding")
    return x if embedding is None else x + resize_bicubic(embedding[0], *x.shape[1:3])


def reference_downsample(
    state: State, prefix: str, x: Tensor, kernels: Sequence[int] = (2, 4)
) -> Tensor:
    """Halve a map: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 * C)."""
    x = zero_pad(layer_norm(state, f"{prefix}.norm", x), 2)
    parts = [
        convolve(state, f"{prefix}.reductions.{i}", x, stride=2, padding=(kernel - 2) // 2)
        for i, kernel in enumerate(kernels)
    ]
    return torch.cat(parts, dim=-1)


def reference_backbone(
    state: State,
    image: Tensor,
    *,
    depths: Sequence[int],
    num_heads: Sequence[int],
    group_size: Sequence[int | Sequence[int]],
    interval: Sequence[int | Sequence[int]],
    lda_mode: str,
    amplitude_cooling: bool,
    final_norm: bool = False,
    position_bias: str = "dpb",
    long_range: str = "lda",
    cross_scale: bool = True,
) -> list[Tensor]:
    """Compute the four stage outputs of an image (B, 3, H, W), as (B, C, h, w) each.

    ``group_size`` and ``interval`` have an entry per stage: a number, or one per block.
    """
    x = reference_stem(state, image, (4, 8, 16, 32) if cross_scale else (4,))
    maps = []
    for stage, depth in enumerate(depths):
        for i in range(depth):
            side, step = (
                value if isinstance(value, int) else value[i]
                for value in (group_size[stage], interval[stage])
            )
            heads = num_heads[stage]
            if long_range == "pvt":
                reduction = (8, 4, 2, 1)[stage]
                attend = partial(reference_reduced_attention, num_heads=heads, reduction=reduction)
            else:
                rule = (side, step, lda_mode, i % 2 == 1, long_range, position_bias != "rpb")
                groups = reference_groups(x.shape[1], x.shape[2], *rule)
                options = dict(num_heads=heads, position_bias=position_bias)
                attend = partial(reference_attention, groups=groups, **options)
            cooling = amplitude_cooling and (i + 1) % 3 == 0 and i < depth - 1
            prefix = f"layers.{stage}.blocks.{i}"
            x = reference_block(state, prefix, x, attend, cooling)
        last = stage == len(depths) - 1
        out = layer_norm(state, "norm", x) if last and final_norm else x
        maps.append(out.permute(0, 3, 1, 2))
        if not last:
            kernels = (2, 4) if cross_scale else (2,)
            x = reference_downsample(state, f"layers.{stage}.downsample", x, kernels)
    return maps


def resize_bicubic(x: Tensor, height: int, width: int) -> Tensor:
    """Resize a map (C, H, W) by cubic convolution (a = -0.75): to (height, width, C)."""
    for axis, size in ((1, height), (2, width)):
        old = x.shape[axis]
        weights = x.new_zeros(size, old)
        for new in range(size):
            centre = (new + 0.5) * old / size - 0.5
            first = math.floor(centre) - 1
            for place in range(first, first + 4):
                weights[new, min(max(place, 0), old - 1)] += cubic(abs(centre - place))
        x = torch.tensordot(x, weights, dims=([axis], [1])).movedim(-1, axis)
    return x.permute(1, 2, 0)


def cubic(distance: float, a: float = -0.75) -> float:
    """Keys' kernel of cubic convolution."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """(..., C in) -> (..., C out)."""
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    """Normalise the last axis: (..., C) -> (..., C)."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    normed = centred / torch.sqrt(variance + 1e-5)
    return normed * state[f"{name}.weight"] + state[f"{name}.bias"]


def convolve(
    state: State, name: str, x: Tensor, stride: int, padding: int, groups: int = 1
) -> Tensor:
    """(B, H, W, C in) -> (B, H', W', C out)."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, groups=groups)
    return out.permute(0, 2, 3, 1)


def zero_pad(x: Tensor, multiple: int) -> Tensor:
    """Append zero rows and columns to (B, H, W, C) until ``multiple`` divides both sides."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // multiple) * multiple, -(-width // multiple) * multiple
    padded = x.new_zeros(batch, rows, columns, channels)
    padded[:, :height, :width] = x
    return padded
