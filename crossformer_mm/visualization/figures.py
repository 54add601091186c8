"""Draw groups, attention, position bias and feature maps with matplotlib."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mmengine.visualization import Visualizer
from torch import Tensor

from crossformer_mm.models import CrossFormer
from crossformer_mm.visualization.attention import (
    AttentionCall,
    Token,
    attention_of_token,
    bias_table,
    group_of_token,
    plans_of_stage,
)

HEADS_SHOWN = 6
STRONGEST_CHANNELS = 9
GROUP_COLOUR = (0.84, 0.1, 0.11)


def draw_groups(
    pixels: np.ndarray,
    backbone: CrossFormer,
    sizes: Sequence[tuple[int, int]],
    tokens: Mapping[int, Token],
) -> Figure:
    """Draw which tokens share a group with one: a row per stage, a column per rule.

    Args:
        pixels: The image, (H, W, 3) of uint8, RGB.
        backbone: For its group sizes and intervals.
        sizes: Height and width of every stage's map, in tokens.
        tokens: The chosen token of each stage to show.
    """
    own_rule = backbone.layers[0].blocks[0].lda_mode
    title = f"Tokens in one group with the ringed one; this config's LDA: {own_rule}"
    figure, panels = _make_panels(len(tokens), 4, pixels.shape, title)
    for (stage, token), row in zip(tokens.items(), panels, strict=True):
        row[0].set_ylabel(f"stage {stage}")
        plans = plans_of_stage(backbone, stage, sizes[stage])
        for axes, (rule, plan) in zip(row, plans.items(), strict=True):
            group = group_of_token(plan, token).numpy()
            colours = np.broadcast_to(GROUP_COLOUR, (*group.shape, 3))
            _show_tokens(axes, pixels, stage, colours, 0.8 * group, token)
            distance = "adjacent" if plan.interval == 1 else f"{plan.interval} apart"
            axes.set_title(f"{rule}\n{group.sum()} tokens, {distance}", fontsize=10)
    return figure


def draw_attention(
    pixels: np.ndarray,
    calls: Sequence[AttentionCall],
    tokens: Mapping[int, Token],
    heads: Sequence[int] | None,
    weights: str,
) -> Figure:
    """Draw the attention of one token: a row per block, a column per head.

    Args:
        pixels: The image, (H, W, 3) of uint8, RGB.
        calls: The recorded calls of the blocks to show.
        tokens: The chosen token of each stage.
        heads: Heads to show. None: the first six.
        weights: Where the backbone's weights are from.
    """
    shown = [_heads_of(call, heads) for call in calls]
    title = f"Attention of the ringed token ({weights}); each panel from 0 (black) to its maximum"
    figure, panels = _make_panels(len(calls), max(map(len, shown)), pixels.shape, title)
    for call, chosen, row in zip(calls, shown, panels, strict=True):
        token = tokens[call.stage]
        attention = attention_of_token(call, token).numpy()
        group = group_of_token(call.plan, token).numpy()
        row[0].set_ylabel(_describe(call))
        for axes, head in zip(row, chosen, strict=False):
            maximum = attention[head].max()
            colours = colormaps["inferno"](attention[head] / maximum)[..., :3]
            _show_tokens(axes, pixels, call.stage, colours, 0.88 * group, token)
            axes.set_title(f"head {head}, maximum {maximum:.3f}", fontsize=10)
        _leave_empty(row[len(chosen) :])
    return figure


def draw_bias(calls: Sequence[AttentionCall], heads: Sequence[int] | None, weights: str) -> Figure:
    """Draw the position bias of each block as heat maps: a row per block, a column per head.

    Args:
        calls: The recorded calls of the blocks to show.
        heads: Heads to show. None: the first six.
        weights: Where the backbone's weights are from.
    """
    shown = [_heads_of(call, heads) for call in calls]
    title = f"Position bias by offset, query minus key, in places of the group ({weights})"
    figure, panels = _make_panels(len(calls), max(2, *map(len, shown)), (1, 1), title)
    for call, chosen, row in zip(calls, shown, panels, strict=True):
        tables = bias_table(call).numpy()[chosen]
        limit = abs(tables).max()
        down, right = tables.shape[1] / 2, tables.shape[2] / 2
        for axes, head, table in zip(row, chosen, tables, strict=False):
            drawn = axes.imshow(table, "RdBu_r", vmin=-limit, vmax=limit)
            drawn.set_extent((-right, right, down, -down))
            axes.set_title(f"head {head}", fontsize=10)
            axes.set_xlabel("offset to the right")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        row[0].set_ylabel(f"{_describe(call)}\noffset down")
        figure.colorbar(drawn, ax=row.tolist(), shrink=0.8)
        _leave_empty(row[len(chosen) :])
    return figure


def draw_features(
    pixels: np.ndarray, stage_maps: Sequence[Tensor], stages: Sequence[int], weights: str
) -> Figure:
    """Draw the output of stages with mmengine's ``draw_featmap``: a row per stage.

    The left column has the mean over all channels, the right one the nine channels with the
    largest sums.

    Args:
        pixels: The image, (H, W, 3) of uint8, RGB.
        stage_maps: The output of every stage, (1, h, w, C) each.
        stages: Stages to show.
        weights: Where the backbone's weights are from.
    """
    title = f"Feature maps ({weights})"
    figure, panels = _make_panels(len(stages), 2, pixels.shape, title, panel_width=4.0)
    for stage, row in zip(stages, panels, strict=True):
        features = stage_maps[stage][0].permute(2, 0, 1).cpu()  # (C, h, w)
        row[0].set_ylabel(f"stage {stage}\n{' x '.join(map(str, features.shape))}")
        large = F.interpolate(features[None], pixels.shape[:2], mode="bilinear")[0]
        row[0].imshow(Visualizer.draw_featmap(large, pixels))
        row[0].set_title("mean of the channels", fontsize=10)
        row[1].imshow(
            Visualizer.draw_featmap(large, None, None, STRONGEST_CHANNELS, arrangement=(3, 3))
        )
        row[1].set_title("channels with the largest sums", fontsize=10)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    return figure


def _make_panels(
    rows: int, columns: int, shape: Sequence[int], title: str, panel_width: float = 2.6
) -> tuple[Figure, np.ndarray]:
    """Make a figure and its axes, (rows, columns).

    Args:
        rows: Panels on top of each other.
        columns: Panels side by side.
        shape: Height and width of what a panel shows, in any unit.
        title: Of the whole figure.
        panel_width: In inches.
    """
    height, width = shape[:2]
    # Very long images get less than the whole width or height, and the text around them its place.
    panel_height = min(max(panel_width * height / width, 1.2), 3 * panel_width) + 0.3
    size = (columns * panel_width, rows * panel_height + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show_tokens(
    axes: Axes,
    pixels: np.ndarray,
    stage: int,
    colours: np.ndarray,
    opacity: np.ndarray,
    token: Token,
) -> None:
    """Paint tokens over a pale image, colours (h, w, 3) and opacity (h, w), and ring one."""
    height, width = pixels.shape[:2]
    stride = 4 * 2**stage
    axes.imshow(pixels.mean(axis=-1), "gray", vmin=-200, vmax=270)
    right, bottom = opacity.shape[1] * stride - 0.5, opacity.shape[0] * stride - 0.5
    axes.imshow(np.dstack([colours, opacity]), extent=(-0.5, right, bottom, -0.5))
    # The middle of what the image has of the token.
    y, x = (
        (place * stride + min((place + 1) * stride, side)) / 2 - 0.5
        for place, side in zip(token, (height, width), strict=True)
    )
    for colour, line_width in (("black", 3.5), ("#00c8ff", 1.8)):
        axes.plot(x, y, "o", ms=9, mfc="none", mec=colour, mew=line_width, clip_on=False)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])


def _leave_empty(panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.set_axis_off()


def _heads_of(call: AttentionCall, heads: Sequence[int] | None) -> list[int]:
    """The chosen heads that a block has, or the first six."""
    count = call.layer.num_heads
    return [h for h in heads if h < count] if heads else list(range(min(count, HEADS_SHOWN)))


def _describe(call: AttentionCall) -> str:
    """Name a block and its groups in two lines."""
    plan, kind = call.plan, "LDA" if call.long_distance else "SDA"
    interval = f", {plan.interval} apart" if plan.interval > 1 else ""
    return (
        f"stage {call.stage}, block {call.block}\n"
        f"{kind} {plan.group_height} x {plan.group_width}{interval}"
    )
