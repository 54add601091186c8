"""Compare the weights of a checkpoint with those of a model."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Size, Tensor

from crossformer_mm.architectures import ARCH_ZOO
from crossformer_mm.checkpoint_errors import one_line

MAX_NAMED_KEYS = 10
MAX_NAME_LENGTH = 150

Shapes = Mapping[str, Size]


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, Size]:
    """Shapes by name."""
    return {name: value.shape for name, value in weights.items()}


def describe_mismatch(weights: Mapping[str, Tensor], expected: Shapes) -> str:
    """Say in one line what does not fit, naming at most ten keys; empty when all fits."""
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in weights and weights[name].shape != shape
        ],
    }
    found = {kind: names for kind, names in kinds.items() if names}
    return "; ".join(
        _name_some(kind, names, MAX_NAMED_KEYS // len(found)) for kind, names in found.items()
    )


def _name_some(kind: str, names: list[str], limit: int) -> str:
    more = ", ..." if len(names) > limit else ""
    shown = ", ".join(one_line(name, MAX_NAME_LENGTH) for name in names[:limit])
    return f"{len(names)} {kind}: {shown}{more}"


def count_outputs(weight: Tensor | None) -> int:
    """The outputs of the layer that a weight belongs to; 0 if there is none or it has no axis."""
    return 0 if weight is None or weight.ndim == 0 else len(weight)


def find_architecture(backbone: Mapping[str, Tensor]) -> tuple[str | None, bool]:
    """Name the published architecture that shares most weights, and say whether all fit.

    Args:
        backbone: Weights by the backbone's own names, with the final norm or without.

    Returns:
        The name, or None if there is no stem of any architecture, and whether it fits exactly.
    """
    stem = backbone.get("patch_embed.norm.weight")
    shape = None if stem is None else tuple(stem.shape)
    names = [name for name, arch in ARCH_ZOO.items() if shape == (arch["embed_dims"],)]
    if not names:
        return None, False
    found = shapes_of(backbone)
    name = max(names, key=lambda name: _count_shared(found, backbone_shapes(name)))
    return name, found == backbone_shapes(name, final_norm="norm.weight" in found)


def _count_shared(found: Shapes, expected: Shapes) -> int:
    """Weights that are in both, less those that are in one of them only."""
    shared = sum(found.get(name) == shape for name, shape in expected.items())
    return 3 * shared - len(found) - len(expected)


@lru_cache
def backbone_shapes(arch: str, final_norm: bool = True) -> dict[str, Size]:
    """Shapes of an architecture's weights by name."""
    # Imported here: the backbone itself imports this module to load its weights.
    from crossformer_mm.models import CrossFormer

    with torch.device("meta"):
        return shapes_of(CrossFormer(arch, final_norm=final_norm).state_dict())
