"""Have mmengine load checkpoints without running code in them, whatever their layout.

mmengine's own loader unpickles with code execution on, or falls back to that. Once this package is
imported, every checkpoint on a disk or the web goes through :mod:`.reader`, and CrossFormer
weights in the authors' layout get the names that mmpretrain, mmdet and mmseg use.
"""

import ast
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as tables
from torch import nn

from crossformer_mm.checkpoints.download import download
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.models.build import build_model
from crossformer_mm.models.state_dict import (
    PREFIX,
    STRICT,
    check_values,
    compare_weights,
    extract_state_dict,
    library_layout,
    parse_state_dict,
    split_checkpoint,
)
from crossformer_mm.utils.errors import CheckpointError, mask_secrets

# Of local paths and the web; loaders for other places stay whose they are.
PREFIXES = ("", "http://", "https://")
# The configs that a checkpoint holds as text, which inferencers and resuming run as Python.
CONFIG_TEXTS = (("meta", "cfg"), ("meta", "config"), ("message_hub", "runtime_info", "cfg"))
_checks_values = ContextVar("checks_values", default=True)


class _StrictMetadata(dict):
    """Of a state dict: tells each module, whatever its name, to check that all of it fits."""

    def get(self, module: str, default: object = None) -> dict:
        return {**super().get(module, {}), STRICT: True}

    def __reduce__(self) -> tuple:
        return OrderedDict, (list(self.items()),)  # saved as what it was


@contextmanager
def checking_values(enabled: bool) -> Iterator[None]:
    """Load checkpoints with NaN or infinity too, if not enabled: ``check_weights`` in a config."""
    token = _checks_values.set(enabled)
    try:
        yield
    finally:
        _checks_values.reset(token)


def use_safe_loader() -> None:
    """Replace mmengine's loaders of :data:`PREFIXES`; a loader that another package put stays."""
    for prefix in PREFIXES:
        # mmengine has no public way to ask which loader a prefix has.
        present = CheckpointLoader._schemes[prefix]
        if present.__module__ == CheckpointLoader.__module__:
            CheckpointLoader.register_scheme(prefix, loader=load_from_safe, force=True)
        elif present is not load_from_safe:
            _warn(
                f"Checkpoints at {prefix or 'local paths'} are read by {present.__module__}."
                f"{present.__qualname__}, which another package registered, not as inert data"
            )


# mmengine logs what follows "load_from_" in the name.
def load_from_safe(filename: str, map_location: str | torch.device | None = None) -> Any:
    """Load a checkpoint for mmengine.

    Args:
        filename: A path, URL or name; see :func:`find_file`.
        map_location: The device that tensors go to, as in :func:`.reader.load_file`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be read, or not safely, or holds weights of a CrossFormer
            that are not finite.
    """
    checkpoint = load_file(find_file(filename), map_location)
    filename = mask_secrets(filename)
    if not isinstance(checkpoint, dict):
        return checkpoint
    _drop_programs(checkpoint, filename)
    state_dict, others = split_checkpoint(checkpoint)
    if not any("patch_embed.projs." in str(name) for name in state_dict):
        # Of another model; a CrossFormer that gets it complains.
        if checkpoint.get("state_dict") is state_dict:
            return {**checkpoint, "state_dict": _marked(state_dict, state_dict)}
        return _marked(checkpoint, checkpoint)  # what mmengine takes for weights then
    found = extract_state_dict(checkpoint, filename)
    if _checks_values.get():
        averages = checkpoint.get("ema_state_dict")
        check_values({**found, **(averages if isinstance(averages, Mapping) else {})}, filename)
    layout = parse_state_dict(found)
    weights = library_layout(layout)
    if weights is layout.backbone and any(name.startswith(PREFIX) for name in found):
        weights = {PREFIX + name: value for name, value in weights.items()}
    if weights.keys() != state_dict.keys():
        dropped = f"dropped by rule: {layout.describe_dropped()}"
        print_log(f"{filename}: took {len(weights)} weights; {dropped}", logger="current")
    return {**others, "state_dict": _marked(weights, state_dict)}


def _marked(weights: Mapping, source: Mapping) -> OrderedDict:
    """Weights with the metadata of where they are from, marked as :class:`_StrictMetadata`."""
    marked = OrderedDict(weights)
    metadata = _StrictMetadata(getattr(source, "_metadata", {}))
    marked._metadata = metadata  # type: ignore[attr-defined]  # as Module.state_dict() does
    return marked


def load_model(
    cfg: Config, checkpoint_file: str, device: torch.device
) -> tuple[nn.Module, Mapping, str]:
    """Build a config's model for prediction, with the weights of a local file or URL.

    Returns:
        The model, the checkpoint, and what of the checkpoint the model does not use, in words
        (empty if it uses all).

    Raises:
        CheckpointError: If the checkpoint cannot be read, lacks a weight of the model, or has
            weights that are not finite, unless the config has ``check_weights=False``.
    """
    # SyncBN is BN with the same weights, and BN needs no GPU.
    model = revert_sync_batchnorm(build_model(cfg))
    with checking_values(cfg.get("check_weights", True)):
        checkpoint = load_from_safe(checkpoint_file, "cpu")
    weights = extract_state_dict(checkpoint, checkpoint_file)
    own = model.state_dict()
    matched, mismatch = compare_weights(weights, own)
    if matched < len(own):
        raise CheckpointError(f"checkpoint {checkpoint_file} does not fit this model: {mismatch}")
    model.load_state_dict({name: weights[name] for name in own})
    return model.to(device).eval(), checkpoint, mismatch


def find_file(name: str | Path) -> Path:
    """Return the file that a checkpoint name stands for, downloaded if it is not here yet.

    Args:
        name: A path, an ``http(s)://`` URL, or a name of a model as mmengine has them, such as
            ``torchvision://resnet50``. Downloads go to torch's cache folder.

    Raises:
        CheckpointError: If the name has another scheme or cannot be downloaded.
    """
    scheme, separator, rest = str(name).partition("://")
    if not separator:
        return Path(os.path.expanduser(name))
    if scheme == "file":
        return Path(unquote(rest))
    if scheme in ("http", "https"):
        return download(str(name))
    if scheme in ("torchvision", "modelzoo"):
        urls = tables.get_torchvision_models()
    elif scheme in ("open-mmlab", "openmmlab"):
        urls = tables.get_external_models()
        rest = tables.get_deprecated_model_names().get(rest, rest)
    else:
        raise CheckpointError(
            f"checkpoint {name}: {scheme}:// is not supported; give a path or an http(s) URL"
        )
    if rest not in urls:
        raise CheckpointError(f"checkpoint {name}: mmengine knows no such model")
    return find_file(urls[rest])


def _drop_programs(checkpoint: dict, filename: str) -> None:
    """Take the texts of configs that are more than plain data out of a checkpoint.

    What mmengine writes, assignments of values and of ``dict(...)``, stays.
    """
    for *outer, key in CONFIG_TEXTS:
        holder: object = checkpoint
        for name in outer:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and key in holder and not is_plain(holder[key]):
            del holder[key]
            said = f"the config in {'.'.join([*outer, key])} is a program, not plain data"
            _warn(f"{filename}: {said}; it is left out")


def is_plain(text: Any) -> bool:
    """Whether a config's text only assigns numbers, strings, and what holds them, to names."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    return all(
        isinstance(statement, ast.Assign)
        and all(isinstance(t, ast.Name) and t.id != "_base_" for t in statement.targets)
        and _is_value(statement.value)
        for statement in statements
    )


def _is_value(node: ast.expr | None) -> bool:
    match node:
        case ast.Constant() | ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant()):
            return True
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return all(map(_is_value, parts))
        case ast.Dict(keys=keys, values=values):
            return all(map(_is_value, [*keys, *values]))
        case ast.Call(func=ast.Name(id="dict" | "set"), args=parts, keywords=named):
            return all(map(_is_value, [*parts, *(keyword.value for keyword in named)]))
    return False


def _warn(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)
