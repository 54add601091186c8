"""Build the backbone of a config, with or without trained weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config

from crossformer_mm.checkpoint import load_backbone
from crossformer_mm.models import CrossFormer
from crossformer_mm.visualization.errors import VisualizationError

RANDOM_WEIGHTS = "random weights"


def build_backbone(cfg: Config, checkpoint: str | None = None) -> tuple[CrossFormer, str]:
    """Build a config's backbone in evaluation mode.

    Args:
        cfg: Config of a classifier, detector or segmentor.
        checkpoint: File or URL with the weights of such a model or of a backbone. None: what the
            config's ``init_cfg`` names, otherwise random weights, each time the same.

    Returns:
        The backbone, and in a few words where its weights are from.

    Raises:
        VisualizationError: If the config has no CrossFormer backbone, or one with arguments that
            it does not take.
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    model = cfg.get("model")
    found = model.get("backbone") if isinstance(model, Mapping) else None
    options = dict(found) if isinstance(found, Mapping) else {}
    kind = str(options.pop("type", None))
    if kind.rpartition(".")[2] != CrossFormer.__name__:
        raise VisualizationError(f"config {cfg.filename} has no CrossFormer backbone, but {kind}")
    init_cfg = options.pop("init_cfg", None)
    torch.manual_seed(0)
    try:
        backbone = CrossFormer(**options).eval()
    except (TypeError, ValueError) as error:
        raise VisualizationError(f"the backbone of config {cfg.filename}: {error}") from error
    checkpoint = checkpoint or _pretrained(init_cfg)
    if checkpoint is None:
        return backbone, RANDOM_WEIGHTS
    load_backbone(backbone, checkpoint)
    return backbone, f"weights: {Path(checkpoint).name}"


def _pretrained(init_cfg: object) -> str | None:
    if isinstance(init_cfg, Mapping) and init_cfg.get("type") == "Pretrained":
        return init_cfg["checkpoint"]
    return None
