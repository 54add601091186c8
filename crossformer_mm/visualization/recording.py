"""Run a backbone once and keep what its attention layers and stages saw."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.attention import GroupedAttention
from crossformer_mm.models.block import CrossFormerBlock
from crossformer_mm.models.grouping import GroupPlan
from crossformer_mm.visualization.errors import VisualizationError


class AttentionCall(NamedTuple):
    """One call of an attention layer: its input ``x`` (1, H, W, C) and the groups."""

    stage: int
    block: int
    module: CrossFormerBlock
    x: Tensor
    plan: GroupPlan

    @property
    def attention(self) -> GroupedAttention:
        """The layer that was called."""
        return self.module.attn


class Recording(NamedTuple):
    """All attention calls in order, and the output of each stage that ran, (1, H, W, C)."""

    calls: list[AttentionCall]
    stage_maps: list[Tensor]


@torch.no_grad()
def record(backbone: CrossFormer, inputs: Tensor) -> Recording:
    """Run the backbone on one image (1, 3, H, W); the backbone is left as it was."""
    recording = Recording([], [])
    with _hooks(backbone, recording):
        backbone(inputs)
    return recording


@contextmanager
def _hooks(backbone: CrossFormer, recording: Recording) -> Iterator[None]:
    """Have the backbone write into the recording; what it computes stays the same."""
    handles = []

    def note_stage(module: object, inputs: tuple, output: Tensor) -> None:
        recording.stage_maps.append(output)

    def note_call(stage: int, index: int, block: CrossFormerBlock) -> None:
        def hook(module: GroupedAttention, inputs: tuple[Tensor, GroupPlan]) -> None:
            recording.calls.append(AttentionCall(stage, index, block, *inputs))

        handles.append(block.attn.register_forward_pre_hook(hook))

    try:
        for number, stage in enumerate(backbone.layers):
            handles.append(stage.register_forward_hook(note_stage))
            for index, block in enumerate(stage.blocks):
                note_call(number, index, block)
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_stages(backbone: CrossFormer, stages: Sequence[int] | None) -> list[int]:
    """Return the chosen stages in rising order, or all that run if none is chosen.

    Raises:
        VisualizationError: If a stage is not among those that run.
    """
    last = backbone.out_indices[-1]
    for stage in stages or ():
        if not 0 <= stage <= last:
            raise VisualizationError(f"--stage {stage}: this backbone runs stages 0 to {last}")
    return sorted(set(stages or range(last + 1)))


def choose_calls(
    calls: Sequence[AttentionCall], stages: Sequence[int], block: int | None = None
) -> list[AttentionCall]:
    """Take the calls of some stages: of one block, or of the last two (one SDA, one LDA).

    Raises:
        VisualizationError: If a stage has no such block.
    """
    chosen = []
    for stage in stages:
        own = [call for call in calls if call.stage == stage]
        if block is not None and not 0 <= block < len(own):
            raise VisualizationError(
                f"--block {block}: stage {stage} has blocks 0 to {len(own) - 1}"
            )
        chosen += own[-2:] if block is None else [own[block]]
    return chosen


def check_heads(calls: Sequence[AttentionCall], heads: Sequence[int] | None) -> None:
    """Raise VisualizationError if one of the heads is in none of the blocks."""
    most = max(call.attention.num_heads for call in calls)
    for head in heads or ():
        if not 0 <= head < most:
            raise VisualizationError(f"--head {head}: the chosen blocks have heads 0 to {most - 1}")
