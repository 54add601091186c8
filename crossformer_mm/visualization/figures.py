"""Draw groups, attention, position bias and feature maps with matplotlib.

Arguments that several functions have: ``pixels`` is the image, (H, W, 3) of uint8, RGB; ``calls``
are the recorded calls of the blocks to show; ``tokens`` has the chosen token of each stage;
``heads`` are the heads to show, or None for the first six; ``weights`` says in words where the
backbone's weights are from.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from mmengine.visualization import Visualizer
from torch import Tensor

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.grouping import GroupPlan
from crossformer_mm.visualization.attention import (
    AttentionCall,
    Token,
    attention_of_token,
    bias_table,
    group_of_token,
    plans_of_stage,
)

Calls = Sequence[AttentionCall]
Heads = Sequence[int] | None
Tokens = Mapping[int, Token]

GROUP_COLOUR = (0.84, 0.1, 0.11)
CHANNEL_SIDE = 240  # pixels of the longer side of a channel


def draw_groups(
    pixels: np.ndarray, backbone: CrossFormer, sizes: Sequence[Token], tokens: Tokens
) -> Figure:
    """Draw which tokens share a group with one: a row per stage, a column per rule.

    ``sizes`` has every stage's height and width in tokens.
    """
    own_rule = f"LDA: {backbone.layers[0].blocks[0].lda_mode}"
    own_rule = "shifted windows" if backbone.long_range == "swin" else own_rule
    title = f"Tokens in one group with the ringed one; this config's {own_rule}"
    columns = len(plans_of_stage(backbone, 0, sizes[0]))
    figure, panels = _make_panels(len(tokens), columns, pixels.shape, title)
    for (stage, token), row in zip(tokens.items(), panels, strict=True):
        row[0].set_ylabel(f"stage {stage}")
        plans = plans_of_stage(backbone, stage, sizes[stage])
        for axes, (rule, plan) in zip(row, plans.items(), strict=True):
            _show_group(axes, pixels, stage, plan, token)
            axes.set_title(f"{rule}\n{axes.get_title()}", fontsize=10)
    return figure


def draw_attention(
    pixels: np.ndarray, calls: Calls, tokens: Tokens, heads: Heads, weights: str
) -> Figure:
    """Draw the attention of one token: a row per block, a column per head."""
    title = f"Attention of the ringed token ({weights}); each panel from 0 (black) to its maximum"
    figure, rows = _make_rows_of_heads(calls, heads, pixels.shape, title)
    for call, row in zip(calls, rows, strict=True):
        token = tokens[call.stage]
        attention = attention_of_token(call, token).numpy()
        for head, axes in row.items():
            _show_attention(axes, pixels, call, token, attention[head])
            axes.set_title(f"head {head}, {axes.get_title()}", fontsize=10)
    return figure


def draw_bias(calls: Calls, heads: Heads, weights: str) -> Figure:
    """Draw the position bias as heat maps: a row per block, a column per head."""
    title = f"Position bias by offset, query minus key, in places of the group ({weights})"
    figure, rows = _make_rows_of_heads(calls, heads, (1, 1), title)
    for call, row in zip(calls, rows, strict=True):
        tables = bias_table(call)[list(row)].cpu().numpy()
        limit = abs(tables).max()
        for (head, axes), table in zip(row.items(), tables, strict=True):
            drawn = _show_bias(axes, table, limit)
            axes.set_title(f"head {head}", fontsize=10)
        first = next(iter(row.values()))
        first.set_ylabel(f"{first.get_ylabel()}\noffset down")
        figure.colorbar(drawn, ax=list(row.values()), shrink=0.8)
    return figure


def draw_features(
    pixels: np.ndarray, stage_maps: Sequence[Tensor], stages: Sequence[int], weights: str
) -> Figure:
    """Draw the output of stages, (1, h, w, C) each: their mean, and the strongest nine channels."""
    figure, panels = _make_panels(len(stages), 2, pixels.shape, f"Feature maps ({weights})", 4.0)
    for stage, (left, right) in zip(stages, panels, strict=True):
        features = stage_maps[stage].permute(0, 3, 1, 2).cpu()
        large = F.interpolate(features, pixels.shape[:2], mode="bilinear")[0]
        left.imshow(Visualizer.draw_featmap(large, pixels))
        left.set_ylabel(f"stage {stage}\n{' x '.join(map(str, features.shape[1:]))}")
        left.set(title="mean of the channels", xticks=[], yticks=[])
        right.imshow(draw_channels(stage_maps[stage], pixels.shape))
        right.set(title="channels with the largest sums", xticks=[], yticks=[])
    return figure


def draw_channels(stage_map: Tensor, shape: Sequence[int]) -> np.ndarray:
    """Draw those nine channels of (1, h, w, C) with the largest sums, of an image's proportions."""
    scale = CHANNEL_SIDE / max(shape[:2])
    size = [max(1, round(side * scale)) for side in shape[:2]]
    resized = F.interpolate(stage_map.permute(0, 3, 1, 2).cpu(), size, mode="bilinear")[0]
    return Visualizer.draw_featmap(resized, None, None, topk=9, arrangement=(3, 3))


def draw_token(
    pixels: np.ndarray,
    call: AttentionCall,
    token: Token,
    head: int,
    channels: np.ndarray,
    weights: str,
) -> Figure:
    """Draw a token's group, its attention, the position bias, and ``channels`` of the stage."""
    place = f"Stage {call.stage}, block {call.block}, head {head}, {_describe_groups(call)}"
    figure, panels = _make_panels(2, 2, pixels.shape, f"{place} ({weights})")
    height = figure.get_figheight() + 0.5  # a label below, and scales to the right
    figure.set(layout_engine="compressed", figwidth=7.2, figheight=height, dpi=150)
    (left, right), (bottom_left, bottom_right) = panels
    _show_group(left, pixels, call.stage, call.plan, token)
    left.set_title(f"Its group: {left.get_title()}", fontsize=10)
    attention = attention_of_token(call, token)[head].numpy()
    _add_scale(right, _show_attention(right, pixels, call, token, attention))
    right.set_title("Attention of the ringed token", fontsize=10)
    table = bias_table(call)[head].cpu().numpy()
    middle = table.mean()  # attention is the same whatever is added to all biases
    _add_scale(bottom_left, _show_bias(bottom_left, table, abs(table - middle).max(), middle))
    bottom_left.set_title("Position bias by offset", fontsize=10)
    bottom_left.set_ylabel("offset down")
    bottom_right.imshow(channels)
    bottom_right.set(xticks=[], yticks=[])
    bottom_right.set_title(f"Strongest channels of stage {call.stage}", fontsize=10)
    return figure


def _make_panels(
    rows: int, columns: int, shape: Sequence[int], title: str, panel_width: float = 2.6
) -> tuple[Figure, np.ndarray]:
    """Make a figure and its axes, (rows, columns), for things of some height and width."""
    height, width = shape[:2]
    # Very long images get less than the whole width or height, and the text around them its place.
    panel_height = min(max(panel_width * height / width, 1.2), 3 * panel_width) + 0.3
    size = (columns * panel_width, rows * panel_height + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False, wrap=True)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _make_rows_of_heads(
    calls: Calls, heads: Heads, shape: Sequence[int], title: str
) -> tuple[Figure, list[dict[int, Axes]]]:
    """Make a figure with a row per block, and the axes of those chosen heads that the block has."""
    chosen = heads or range(6)
    shown = [[head for head in chosen if head < call.layer.num_heads] for call in calls]
    figure, panels = _make_panels(len(calls), max(2, *map(len, shown)), shape, title)
    for call, row, own in zip(calls, panels, shown, strict=True):
        row[0].set_ylabel(f"stage {call.stage}, block {call.block}\n{_describe_groups(call)}")
        for axes in row[len(own) :]:
            axes.set_axis_off()
    return figure, [dict(zip(*row, strict=False)) for row in zip(shown, panels, strict=True)]


def _describe_groups(call: AttentionCall) -> str:
    plan, kind = call.plan, "LDA" if call.long_distance else "SDA"
    kind = "shifted windows" if plan.shift else kind
    interval = f", {plan.interval} apart" if plan.interval > 1 else ""
    return f"{kind} {plan.group_height} x {plan.group_width}{interval}"


def _show_group(axes: Axes, pixels: np.ndarray, stage: int, plan: GroupPlan, token: Token) -> None:
    """Paint the tokens of one group, and say how many they are."""
    group = group_of_token(plan, token).numpy()
    colours = np.broadcast_to(GROUP_COLOUR, (*group.shape, 3))
    _show_tokens(axes, pixels, stage, np.dstack([colours, 0.8 * group]), token)
    distance = "adjacent" if plan.interval == 1 else f"{plan.interval} apart"
    axes.set_title(f"{group.sum()} tokens, {distance}")


def _show_attention(
    axes: Axes, pixels: np.ndarray, call: AttentionCall, token: Token, attention: np.ndarray
) -> ScalarMappable:
    """Paint a group by its attention (h, w), from 0 to the maximum; returns the scale."""
    maximum = attention.max()
    scale = ScalarMappable(Normalize(0, maximum), "inferno")
    colours = scale.to_rgba(attention)
    colours[..., 3] = 0.88 * group_of_token(call.plan, token).numpy()
    _show_tokens(axes, pixels, call.stage, colours, token)
    axes.set_title(f"maximum {maximum:.3f}")
    return scale


def _show_bias(axes: Axes, table: np.ndarray, limit: float, middle: float = 0.0) -> ScalarMappable:
    """Paint a head's table of biases, up to a limit on either side; returns the scale."""
    down, right = table.shape[0] / 2, table.shape[1] / 2
    edges = (-right, right, down, -down)
    axes.set_xlabel("offset to the right")
    limits = dict(vmin=middle - limit, vmax=middle + limit)
    drawn = axes.imshow(table, "RdBu_r", **limits, extent=edges)
    axes.locator_params(nbins=4, integer=True)
    return drawn


def _add_scale(axes: Axes, drawn: ScalarMappable) -> None:
    """Put a colour scale beside a panel, as high as the panel is."""
    axes.figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0, 0.05, 1)))


def _show_tokens(
    axes: Axes, pixels: np.ndarray, stage: int, colours: np.ndarray, token: Token
) -> None:
    """Paint tokens, (h, w, 4) as RGBA, over a pale image, and ring one."""
    height, width = pixels.shape[:2]
    stride = 4 * 2**stage
    axes.imshow(pixels.mean(axis=-1), "gray", vmin=-200, vmax=270)
    right, bottom = colours.shape[1] * stride - 0.5, colours.shape[0] * stride - 0.5
    axes.imshow(colours, extent=(-0.5, right, bottom, -0.5))
    start = stride * np.array(token)
    end = np.minimum(start + stride, (height, width))
    y, x = (start + end - 1) / 2  # the middle of what the image has of the token
    for colour, line_width in (("black", 3.5), ("#00c8ff", 1.8)):
        axes.plot(x, y, "o", ms=9, mfc="none", mec=colour, mew=line_width, clip_on=False)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
