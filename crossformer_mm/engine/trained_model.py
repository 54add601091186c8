"""A config's model with all its weights from a checkpoint."""

from collections.abc import Mapping

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import nn

from crossformer_mm.checkpoints.loader import load_from_safe
from crossformer_mm.models.build import build_model
from crossformer_mm.models.state_dict import (
    count_matches,
    extract_state_dict,
    format_incompatible_keys,
)
from crossformer_mm.utils.errors import CheckpointError


def load_model(
    cfg: Config, checkpoint_file: str, device: torch.device
) -> tuple[nn.Module, Mapping, str]:
    """Build a config's model for prediction, with the weights of a local file or URL.

    Returns:
        The model, the checkpoint, and what of the checkpoint the model does not use, in words
        (empty if it uses all).

    Raises:
        CheckpointError: If the checkpoint cannot be read or lacks a weight of the model.
    """
    # SyncBN is BN with the same weights, and BN needs no GPU.
    model = revert_sync_batchnorm(build_model(cfg))
    checkpoint = load_from_safe(checkpoint_file, "cpu")
    weights = extract_state_dict(checkpoint, checkpoint_file)
    own = model.state_dict()
    mismatch = format_incompatible_keys(weights, own)
    if count_matches(weights, own) < len(own):
        raise CheckpointError(f"checkpoint {checkpoint_file} does not fit this model: {mismatch}")
    model.load_state_dict({name: weights[name] for name in own})
    return model.to(device).eval(), checkpoint, mismatch
