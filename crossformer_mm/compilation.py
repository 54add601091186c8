"""torch.compile for the backbone alone, part by part."""

import torch
from torch import nn

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.sorted_attention import CAN_COMPILE


def compile_backbone(model: nn.Module, **options: object) -> int:
    """Compile the blocks and the layers between stages of every CrossFormer in ``model``, in place.

    The stem is left as it is: it is nearly all convolutions, and takes longer to compile than all
    the rest.

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
        RuntimeError: If PyTorch is older than 2.4.
    """
    if not CAN_COMPILE:
        raise RuntimeError(f"compile needs torch 2.4 or later, this is {torch.__version__}")
    parts = [part for m in model.modules() if isinstance(m, CrossFormer) for part in _parts(m)]
    if not parts:
        raise ValueError("compile: the model has no CrossFormer backbone, leave the option out")
    _allow_variants(len(parts))
    _keep_layouts()
    for part in parts:
        part.compile(**{"dynamic": True, "fullgraph": True, **options})
    return len(parts)


def _parts(backbone: CrossFormer) -> list[nn.Module]:
    stages = [[*stage.blocks, getattr(stage, "downsample", None)] for stage in backbone.layers]
    return [part for stage in stages for part in stage if part]


def _allow_variants(parts: int) -> None:
    """Raise PyTorch's limit of compilations per function, which all blocks share."""
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    # Training and evaluation, with maps larger and smaller than a group.
    setattr(config, name, max(getattr(config, name), 4 * parts))


def _keep_layouts() -> None:
    """Have Inductor leave convolutions the memory layout that they have without it.

    For maps of changing size it does so on GPUs anyway. On CPUs it wants the channels last, and
    fails at that in training, where it cannot compare symbolic strides of a convolution's input.
    """
    from torch._inductor import config  # slow to import

    config.layout_optimization = False
