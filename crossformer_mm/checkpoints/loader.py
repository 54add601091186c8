"""Have mmengine load checkpoints without running code in them, whatever their layout.

mmengine's own loader unpickles with code execution on, or falls back to that. Once this package is
imported, every checkpoint on a disk or the web goes through :mod:`.reader`, and CrossFormer
weights in the authors' layout get the names that mmpretrain, mmdet and mmseg use.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from types import ModuleType

import torch
from mmengine.logging import print_log

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.checkpoints.sources import find_file
from crossformer_mm.models.state_dict import (
    PREFIX,
    STRICT,
    entries_beside_weights,
    extract_state_dict,
    find_state_dict,
    library_layout,
    parse_state_dict,
)
from crossformer_mm.utils.import_hooks import when_imported

# Of local paths and the web; loaders for other places stay whose they are.
PREFIXES = ("", "http://", "https://")


def use_safe_loader() -> None:
    """Replace mmengine's loaders of :data:`PREFIXES`, now or when its runner is imported."""
    when_imported("mmengine.runner.checkpoint", _replace_loaders)


def _replace_loaders(module: ModuleType) -> None:
    loader = module.CheckpointLoader
    for prefix in PREFIXES:
        present = loader._schemes[prefix]
        if present.__module__ == module.__name__:
            loader.register_scheme(prefix, loader=load_from_safe, force=True)
        elif present is not load_from_safe:
            print_log(
                f"Checkpoints at {prefix or 'local paths'} are read by {present.__module__}."
                f"{present.__qualname__}, which another package registered, not as inert data",
                logger="current",
                level=logging.WARNING,
            )


# mmengine logs what follows "load_from_" in the name.
def load_from_safe(filename: str, map_location: str | torch.device | None = None) -> object:
    """Load a checkpoint for mmengine.

    Args:
        filename: A path, URL or name; see :func:`crossformer_mm.checkpoints.sources.find_file`.
        map_location: The device that tensors go to, as in :func:`.reader.load_file`.

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
    layout = parse_state_dict(extract_state_dict(checkpoint, filename))
    weights = library_layout(layout)
    if weights.keys() != state_dict.keys():
        print_log(
            f"{filename}: took {len(weights)} weights; dropped by rule: "
            f"{layout.describe_dropped()}",
            logger="current",
        )
    metadata = getattr(state_dict, "_metadata", {})
    return {**entries_beside_weights(checkpoint), "state_dict": _marked_strict(weights, metadata)}


def _without_program(checkpoint: Mapping) -> dict:
    """Leave out the config in ``meta``: mmengine would run its text, as Python, when it resumes."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping) or "config" not in meta:
        return dict(checkpoint)
    return {**checkpoint, "meta": {key: meta[key] for key in meta if key != "config"}}


def _marked_strict(weights: Mapping[str, torch.Tensor], metadata: Mapping) -> OrderedDict:
    """Mark the weights for the backbone, alone or in a model, to check that all of it fits."""
    marked = OrderedDict(weights)
    marked._metadata = OrderedDict(metadata)
    for module in ("", PREFIX.rstrip(".")):
        marked._metadata[module] = {**metadata.get(module, {}), STRICT: True}
    return marked
