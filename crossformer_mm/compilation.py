"""torch.compile for the backbone alone, part by part."""

import torch
from torch import nn

from crossformer_mm.models import CrossFormer


def compile_backbone(model: nn.Module, **options: object) -> int:
    """Compile the blocks and embedding layers of every CrossFormer in ``model``, in place.

    The parts are compiled at their first call, each on its own and without a graph break, for
    maps of any size: only where a map becomes smaller than a group are they compiled again. The
    names of the parameters stay what they are.

    Args:
        model: The model; what is not a CrossFormer in it runs as before.
        options: Arguments of :func:`torch.compile`, such as ``backend`` or ``mode``.

    Returns:
        The number of parts.

    Raises:
        ValueError: If there is no CrossFormer in ``model``.
    """
    parts = [part for m in model.modules() if isinstance(m, CrossFormer) for part in _parts(m)]
    if not parts:
        raise ValueError("compile: the model has no CrossFormer backbone, leave the option out")
    _allow_variants(len(parts))
    for part in parts:
        part.compile(**{"dynamic": True, "fullgraph": True, **options})
    return len(parts)


def _parts(backbone: CrossFormer) -> list[nn.Module]:
    stages = [[*stage.blocks, getattr(stage, "downsample", None)] for stage in backbone.layers]
    return [backbone.patch_embed, *(part for stage in stages for part in stage if part)]


def _allow_variants(parts: int) -> None:
    """Raise PyTorch's limit of compilations per function, which all blocks share."""
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    # Training and evaluation, with maps larger and smaller than a group.
    setattr(config, name, max(getattr(config, name), 4 * parts))
