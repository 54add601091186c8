"""Have mmengine load checkpoints without running code in them, whatever their layout.

mmengine's own loader unpickles with code execution on, or falls back to that. Once this package is
imported, every checkpoint on a disk or the web goes through :mod:`.reader`, and CrossFormer
weights in the authors' layout get the names that mmpretrain, mmdet and mmseg use.
"""

import logging
from collections import OrderedDict

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from crossformer_mm.checkpoints.config_text import drop_programs
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

# Of local paths and the web; loaders for other places stay whose they are.
PREFIXES = ("", "http://", "https://")


def use_safe_loader() -> None:
    """Replace mmengine's loaders of :data:`PREFIXES`; a loader that another package put stays."""
    for prefix in PREFIXES:
        # mmengine has no public way to ask which loader a prefix has.
        present = CheckpointLoader._schemes[prefix]
        if present.__module__ == CheckpointLoader.__module__:
            CheckpointLoader.register_scheme(prefix, loader=load_from_safe, force=True)
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
    if not isinstance(checkpoint, dict):
        return checkpoint
    drop_programs(checkpoint, filename)
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
    # Marked for the backbone, alone or in a model, to check that all of it fits.
    versions = getattr(state_dict, "_metadata", {})
    marked = OrderedDict(weights)
    strict = {m: {**versions.get(m, {}), STRICT: True} for m in ("", PREFIX.rstrip("."))}
    marked._metadata = OrderedDict({**versions, **strict})
    return {**entries_beside_weights(checkpoint), "state_dict": marked}
