"""Have mmengine load checkpoints without running code in them, whatever their layout.

mmengine's own loader unpickles with code execution on, or falls back to that. Once this package is
imported, every checkpoint goes through :mod:`crossformer_mm.safe_load`, and CrossFormer weights in
the authors' layout get the names that mmpretrain, mmdet and mmseg use.
"""

from collections import OrderedDict
from collections.abc import Mapping
from types import ModuleType

import torch
from mmengine.logging import print_log

from crossformer_mm.checkpoint import (
    MUST_FIT,
    PREFIX,
    entries_beside_weights,
    extract_state_dict,
    find_state_dict,
    library_layout,
    sort_contents,
)
from crossformer_mm.checkpoint_sources import find_file
from crossformer_mm.import_hooks import when_imported
from crossformer_mm.safe_load import load_file


def use_safe_loader() -> None:
    """Replace all loaders of mmengine, now or when its runner is imported."""
    when_imported("mmengine.runner.checkpoint", _replace_loaders)


def _replace_loaders(module: ModuleType) -> None:
    loader = module.CheckpointLoader
    loader.register_scheme(tuple(loader._schemes), loader=load_from_safe, force=True)


# mmengine logs what follows "load_from_" in the name.
def load_from_safe(filename: str, map_location: str | torch.device | None = None) -> object:
    """Load a checkpoint for mmengine.

    Args:
        filename: A path, URL or name; see :func:`crossformer_mm.checkpoint_sources.find_file`.
        map_location: Where tensors go, as in :func:`torch.load`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be read, or not safely.
    """
    checkpoint = load_file(find_file(filename), map_location)
    if not isinstance(checkpoint, Mapping):
        return checkpoint
    checkpoint = _without_program(checkpoint)
    state_dict = find_state_dict(checkpoint)
    if not any(str(name).endswith("patch_embed.projs.0.weight") for name in state_dict):
        return checkpoint  # of another model
    contents = sort_contents(extract_state_dict(checkpoint, filename))
    weights = library_layout(contents)
    if weights.keys() != state_dict.keys():
        print_log(
            f"{filename}: took {len(weights)} weights; dropped by rule: "
            f"{contents.describe_dropped()}",
            logger="current",
        )
    metadata = getattr(state_dict, "_metadata", {})
    return {**entries_beside_weights(checkpoint), "state_dict": _must_fit(weights, metadata)}


def _without_program(checkpoint: Mapping) -> dict:
    """Leave out the config in ``meta``: mmengine would run its text, as Python, when it resumes."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping) or "config" not in meta:
        return dict(checkpoint)
    return {**checkpoint, "meta": {key: meta[key] for key in meta if key != "config"}}


def _must_fit(weights: Mapping[str, torch.Tensor], metadata: Mapping) -> OrderedDict:
    """Mark the weights for the backbone, alone or in a model, to check that all of it fits."""
    marked = OrderedDict(weights)
    marked._metadata = OrderedDict(metadata)
    for module in ("", PREFIX.rstrip(".")):
        marked._metadata[module] = {**metadata.get(module, {}), MUST_FIT: True}
    return marked
