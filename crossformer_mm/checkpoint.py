"""Load weights into a backbone: say what matched, and fail when something does not fit."""

from collections.abc import Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from crossformer_mm import safe_load
from crossformer_mm.architectures import ARCH_ZOO, STAGES

# Derived values that older releases stored beside the weights.
DERIVED_BUFFERS = ("biases", "relative_position_index", "attn_mask")
MAX_NAMED_KEYS = 3


def load_backbone(backbone: nn.Module, filename: str, prefix: str = "backbone.") -> None:
    """Load a backbone's weights from a checkpoint of a backbone, classifier or dense model.

    What a backbone does not have by design is left out and reported: derived buffers of older
    releases, the classifier, a detector's or segmentor's neck and heads, and, for a backbone
    without ``final_norm``, the final norm.

    Args:
        backbone: A :class:`crossformer_mm.CrossFormer`, changed in place.
        filename: Checkpoint file.
        prefix: What stands before the backbone's names, where anything does.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a weight is missing, unexpected or of another shape. Nothing is loaded.
    """
    weights = extract_state_dict(safe_load.load_file(filename), filename)
    weights, left_out = _backbone_part(weights, prefix)
    own = backbone.state_dict()
    for name in list(weights):
        if _dropped_by_rule(name, own):
            del weights[name]
            left_out += 1
    problems = describe_mismatch(weights, own)
    if problems:
        fitting = _fitting_architecture(weights)
        hint = f" (its weights are those of arch {fitting!r})" if fitting else ""
        raise ValueError(f"checkpoint {filename} does not fit this backbone{hint}: {problems}")
    backbone.load_state_dict(weights)
    print_log(
        f"Backbone: loaded all {len(weights)} weights from {filename}; left out {left_out} "
        "entries that the backbone does not have (classifier, neck, heads, derived buffers)",
        logger="current",
    )


def extract_state_dict(checkpoint: object, filename: str) -> dict[str, Tensor]:
    """Find the weights in a checkpoint, names without the ``module.`` of data parallel training.

    Raises:
        ValueError: If there are none.
    """
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError(f"checkpoint {filename} holds no state dict")
    if not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise ValueError(f"checkpoint {filename} holds no state dict of tensors")
    return {name.removeprefix("module."): value for name, value in checkpoint.items()}


def describe_mismatch(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Say in one line what does not fit, at most three keys of a kind; empty when all fits."""
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    kinds = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": misshapen,
    }
    return "; ".join(_name_some(kind, names) for kind, names in kinds.items() if names)


def _name_some(kind: str, names: list[str]) -> str:
    more = ", ..." if len(names) > MAX_NAMED_KEYS else ""
    return f"{len(names)} {kind}: {', '.join(names[:MAX_NAMED_KEYS])}{more}"


def _backbone_part(weights: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], int]:
    """Take the entries below ``prefix``, if there are any, and count the others."""
    part = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    if not part:
        return dict(weights), 0
    return part, len(weights) - len(part)


def _dropped_by_rule(name: str, own: Mapping[str, Tensor]) -> bool:
    if name.rpartition(".")[2] in DERIVED_BUFFERS or name.startswith("head."):
        return True
    return name.startswith("norm.") and name not in own


def _fitting_architecture(weights: Mapping[str, Tensor]) -> str | None:
    """Name the published architecture that has these stem channels, depths and cooling layers."""
    stem = weights.get("patch_embed.norm.weight")
    if stem is None:
        return None
    # layers.STAGE.blocks.BLOCK.norm1.weight
    stages = [name.split(".")[1] for name in weights if name.endswith(".norm1.weight")]
    depths = tuple(stages.count(str(stage)) for stage in range(STAGES))
    cooling = any(".ex_conv." in name for name in weights)
    for name, arch in ARCH_ZOO.items():
        if (arch["embed_dims"], arch["depths"], arch["amplitude_cooling"]) == (
            stem.numel(),
            depths,
            cooling,
        ):
            return name
    return None
