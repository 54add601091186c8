"""The figures of ``tools/visualize.py``: groups, attention, position bias and feature maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.grouping import GroupPlan
from crossformer_mm.visualization.attention_map import attention_of_token, bias_table
from crossformer_mm.visualization.canvas import (
    blank,
    label_row,
    make_grid,
    mark_token,
    paint_tokens,
    panel_size,
    show_image,
)
from crossformer_mm.visualization.feature_map import channel_mean, principal_colours
from crossformer_mm.visualization.groups import Token, group_mask, map_sizes, plans_of_stage
from crossformer_mm.visualization.recording import AttentionCall

GROUP_COLOUR = (0.84, 0.1, 0.11)
HEADS_SHOWN = 6
TICK_SIZE = 8


def draw_groups(pixels: np.ndarray, backbone: CrossFormer, tokens: Mapping[int, Token]) -> Figure:
    """Draw which tokens share a group with one: a row per stage, a column per rule.

    Args:
        pixels: (H, W, 3) of uint8.
        backbone: For its group sizes and intervals.
        tokens: The chosen token of each stage to show.
    """
    height, width = pixels.shape[:2]
    own_rule = backbone.layers[0].blocks[0].lda_mode
    title = f"Tokens in one group with the ringed one; this config's LDA: {own_rule}"
    figure, panels = make_grid(len(tokens), 4, panel_size(height, width, 2.6), title)
    sizes = map_sizes(height, width)
    for (stage, token), row in zip(tokens.items(), panels, strict=True):
        plans = plans_of_stage(backbone, stage, sizes[stage])
        label_row(row[0], f"stage {stage}")
        for axes, (rule, plan) in zip(row, plans.items(), strict=True):
            mask = group_mask(plan, token).numpy()
            colours = np.broadcast_to(GROUP_COLOUR, (*mask.shape, 3))
            painted = paint_tokens(pixels, stage, colours, 0.8 * mask)
            show_image(axes, painted, f"{rule}\n{_describe_group(plan, int(mask.sum()))}")
            mark_token(axes, token, stage)
    return figure


def _describe_group(plan: GroupPlan, tokens: int) -> str:
    distance = "adjacent" if plan.interval == 1 else f"{plan.interval} apart"
    return f"{tokens} tokens, {distance}"


def draw_attention(
    pixels: np.ndarray,
    calls: Sequence[AttentionCall],
    tokens: Mapping[int, Token],
    heads: Sequence[int] | None,
    weights: str,
) -> Figure:
    """Draw the attention of one token: a row per block, a column per head.

    Args:
        pixels: (H, W, 3) of uint8.
        calls: The recorded calls of the blocks to show.
        tokens: The chosen token of each stage.
        heads: Heads to show. None: the first six.
        weights: Where the backbone's weights are from.
    """
    shown = [heads_of(call, heads) for call in calls]
    title = f"Attention of the ringed token ({weights}); each panel from 0 (black) to its maximum"
    size = panel_size(*pixels.shape[:2], 2.6)
    figure, panels = make_grid(len(calls), max(map(len, shown)), size, title)
    for call, chosen, row in zip(calls, shown, panels, strict=True):
        token = tokens[call.stage]
        attention = attention_of_token(call, token).numpy()
        in_group = group_mask(call.plan, token).numpy()
        label_row(row[0], describe_call(call))
        for axes, head in zip(row, chosen, strict=False):
            strength = attention[head] / attention[head].max()
            colours = colormaps["inferno"](strength)[..., :3]
            painted = paint_tokens(pixels, call.stage, colours, 0.88 * in_group)
            show_image(axes, painted, f"head {head}, maximum {attention[head].max():.3f}")
            mark_token(axes, token, call.stage)
        blank(row[len(chosen) :])
    return figure


def draw_bias(calls: Sequence[AttentionCall], heads: Sequence[int] | None, weights: str) -> Figure:
    """Draw the position bias of each block as heat maps: a row per block, a column per head.

    Args:
        calls: The recorded calls of the blocks to show.
        heads: Heads to show. None: the first six.
        weights: Where the backbone's weights are from.
    """
    shown = [heads_of(call, heads) for call in calls]
    title = f"Position bias by offset, query minus key, in places of the group ({weights})"
    columns = max(2, *map(len, shown))
    figure, panels = make_grid(len(calls), columns, (2.1, 2.1), title)
    for call, chosen, row in zip(calls, shown, panels, strict=True):
        table = bias_table(call).numpy()[list(chosen)]
        limit = max(abs(table).max(), 1e-12)
        down, across = table.shape[1] // 2 + 0.5, table.shape[2] // 2 + 0.5
        for axes, head, values in zip(row, chosen, table, strict=False):
            drawn = axes.imshow(
                values,
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
                extent=(-across, across, down, -down),
            )
            axes.set_title(f"head {head}", fontsize=TICK_SIZE + 2)
            axes.tick_params(labelsize=TICK_SIZE)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        row[0].set_ylabel(f"{describe_call(call)}\noffset down", fontsize=TICK_SIZE + 1)
        bar = figure.colorbar(drawn, ax=row.tolist(), shrink=0.85, pad=0.02)
        bar.ax.tick_params(labelsize=TICK_SIZE)
        blank(row[len(chosen) :])
    for axes in panels[-1]:
        axes.set_xlabel("offset to the right", fontsize=TICK_SIZE + 1)
    return figure


def draw_features(
    pixels: np.ndarray, stage_maps: Sequence[Tensor], stages: Sequence[int], weights: str
) -> Figure:
    """Draw the image and the output of stages: principal components, below them channel means.

    Args:
        pixels: (H, W, 3) of uint8.
        stage_maps: The output of every stage, (1, h, w, C) each.
        stages: Stages to show.
        weights: Where the backbone's weights are from.
    """
    title = f"Feature maps ({weights}); above: three principal components as red, green, blue"
    size = panel_size(*pixels.shape[:2], 2.4)
    figure, panels = make_grid(2, len(stages) + 1, size, title)
    show_image(panels[0, 0], pixels, f"image, {pixels.shape[0]} x {pixels.shape[1]}")
    blank(panels[1, :1])
    for stage, column in zip(stages, panels[:, 1:].T, strict=True):
        features = stage_maps[stage][0].cpu()
        shape = " x ".join(map(str, features.shape))
        show_image(column[0], principal_colours(features).numpy(), f"stage {stage}, {shape}")
        show_image(column[1], channel_mean(features).numpy(), "mean of channels")
    return figure


def heads_of(call: AttentionCall, heads: Sequence[int] | None) -> list[int]:
    """Return the heads of a block to show: the chosen ones that it has, or the first six."""
    count = call.attention.num_heads
    return (
        list(range(min(count, HEADS_SHOWN))) if heads is None else [h for h in heads if h < count]
    )


def describe_call(call: AttentionCall) -> str:
    """Name a block and its groups in two lines."""
    kind = "LDA" if call.module.long_distance else "SDA"
    plan = call.plan
    interval = f", {plan.interval} apart" if plan.interval > 1 else ""
    return (
        f"stage {call.stage}, block {call.block}\n"
        f"{kind} {plan.group_height} x {plan.group_width}{interval}"
    )
