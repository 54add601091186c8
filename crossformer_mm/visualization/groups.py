"""Tokens of an image, and which of them share a group with a chosen one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.grouping import LDA_MODES, GroupPlan, partition, plan_groups
from crossformer_mm.visualization.errors import VisualizationError

Token = tuple[int, int]  # row and column on a stage's map


def map_sizes(height: int, width: int, stages: int = 4) -> list[tuple[int, int]]:
    """Height and width of each stage's map, in tokens, for an image in pixels."""
    sizes = [(-(-height // 4), -(-width // 4))]
    while len(sizes) < stages:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    return sizes


def choose_tokens(
    sizes: Sequence[tuple[int, int]], stages: Sequence[int], token: Sequence[int] | None
) -> dict[int, Token]:
    """Find the token of each stage that covers one place of the image.

    Args:
        sizes: Height and width of every stage's map.
        stages: The chosen stages in rising order.
        token: Row and column on the map of the first of them. None: its middle.

    Raises:
        VisualizationError: If the token is not on the map.
    """
    height, width = sizes[stages[0]]
    row, column = token or (height // 2, width // 2)
    if not (0 <= row < height and 0 <= column < width):
        raise VisualizationError(
            f"--token {row} {column}: the map of stage {stages[0]} has rows 0 to {height - 1} "
            f"and columns 0 to {width - 1}"
        )
    scales = {stage: 2 ** (stage - stages[0]) for stage in stages}
    return {stage: (row // scale, column // scale) for stage, scale in scales.items()}


def plans_of_stage(backbone: CrossFormer, stage: int, size: Token) -> dict[str, GroupPlan]:
    """Plan the groups on a stage's map under each rule: ``'SDA'``, ``'LDA <mode>'``.

    Group size and interval are those of the stage's last block.
    """
    block = backbone.layers[stage].blocks[-1]
    group_size, interval = block.group_size, block.interval
    plans = {"SDA": plan_groups(*size, group_size, interval, block.lda_mode, long_distance=False)}
    for mode in LDA_MODES:
        plans[f"LDA {mode}"] = plan_groups(*size, group_size, interval, mode, long_distance=True)
    return plans


def members_of_group(plan: GroupPlan, token: Token) -> tuple[int, Tensor]:
    """Find the group of a token.

    Returns:
        The group's index in :func:`partition`, and for each of its places the flat position on
        the map (row * width + column), or -1 where it is padding.
    """
    positions = torch.arange(1, plan.height * plan.width + 1).view(1, plan.height, plan.width, 1)
    groups = partition(positions, plan)[0, ..., 0] - 1
    index = int((groups == token[0] * plan.width + token[1]).any(dim=1).nonzero())
    return index, groups[index]


def group_mask(plan: GroupPlan, token: Token) -> Tensor:
    """Mark the tokens that share a group with one: (H, W) of bool."""
    _, members = members_of_group(plan, token)
    mask = torch.zeros(plan.height * plan.width, dtype=torch.bool)
    mask[members[members >= 0]] = True
    return mask.view(plan.height, plan.width)
