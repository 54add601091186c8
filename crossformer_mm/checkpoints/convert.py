"""Convert checkpoints to the names and files that this project's configs load.

Before anything is written, every weight is compared with those of the model. Files are written
whole or not at all.
"""

import hashlib
import json
import os
import re
import traceback
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from crossformer_mm.checkpoints.dense_models import find_dense_model, make_config
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.architectures import full_name
from crossformer_mm.models.build import build_on_meta
from crossformer_mm.models.state_dict import (
    CheckpointLayout,
    check_backbone,
    check_values,
    count_outputs,
    extract_state_dict,
    find_architecture,
    find_variant,
    library_layout,
    parse_state_dict,
    split_checkpoint,
)
from crossformer_mm.utils.errors import CheckpointError, one_line
from crossformer_mm.utils.io import atomic_write
from crossformer_mm.utils.requirements import HOW_TO_INSTALL
from crossformer_mm.version import __version__


def convert_checkpoint(
    source: Path, destination: Path, arch: str | None = None, cfg: Config | None = None
) -> list[str]:
    """Write a checkpoint of any known layout in the layout of mmpretrain, mmdet and mmseg.

    Args:
        source: A classifier, backbone, detector or segmentor of the authors, or of this project.
        destination: The new file; ``.safetensors`` selects that format.
        arch: The architecture it must have. None: whichever of the eight it is.
        cfg: The config whose model it must fit. None: the published model of its kind. For a
            dense model's config, a classifier gives its backbone.

    Returns:
        Lines that say what matched, what was dropped and what was written.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If ``arch`` is no architecture's name.
        CheckpointError: If anything else is wrong; nothing is written then.
    """
    source, destination = (Path(os.path.expanduser(path)) for path in (source, destination))
    arch = None if arch is None else full_name(arch)
    _check_destination(source, destination)
    checkpoint = load_file(source)
    layout = parse_state_dict(extract_state_dict(checkpoint, source))
    found = find_architecture(layout.backbone)
    kind, expected = _find_target(layout, arch or found, cfg, source)
    weights = library_layout(layout)
    check_backbone(weights, expected, f"{source} does not fit the {kind}")
    check_values(weights, source)
    if arch not in (None, found):
        raise CheckpointError(f"{source} fits the config, but is not of arch {arch!r}")
    old_weights, others = split_checkpoint(checkpoint)
    meta = {
        "source": source.name,
        "source_sha256": _hash_file(source),
        "kind": kind,
        "arch": found or "custom",
        "crossformer_mm_version": __version__,
        **_dataset_meta(others.get("meta"), source),
    }
    _write_checkpoint(destination, weights, meta)
    unchanged = "" if weights.keys() - old_weights.keys() else ", names unchanged"
    left = [one_line(str(name), 50) for name in others]
    return [
        f"{source}: a {kind}, architecture {meta['arch']}",
        f"matched: all {len(weights)} weights{unchanged}",
        f"dropped by rule: {layout.describe_dropped()}",
        f"not carried over: {', '.join(left[:10] + ['...'] * (len(left) > 10)) or 'nothing'}",
        f"wrote {destination}",
    ]


def _check_destination(source: Path, destination: Path) -> None:
    """Raise CheckpointError if a checkpoint cannot be written there, before work is spent."""
    folder = destination.parent
    try:
        if not folder.is_dir():
            raise CheckpointError(f"{destination} cannot be written: there is no folder {folder}")
        if destination.exists() and not destination.is_file():
            raise CheckpointError(f"{destination} cannot be written: it is not a file")
        if destination.exists() and source.exists() and destination.samefile(source):
            raise CheckpointError(f"{destination} is the source: give the result another name")
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be written: {error.strerror}") from error


def _find_target(
    layout: CheckpointLayout, arch: str | None, cfg: Config | None, source: Path
) -> tuple[str, dict[str, Tensor]]:
    """The kind of model that a checkpoint has to fit, and the weights of one, without memory.

    ``arch`` is the published architecture that the checkpoint has or must have, if there is one.
    """
    if cfg is not None:
        if not layout.is_dense and cfg.get("default_scope") != "mmpretrain":
            layout.drop_classifier()
        expected = _model_weights(cfg)
        if layout.is_dense or layout.classifier:
            return cfg.model.type, expected
        return "backbone", parse_state_dict(expected).backbone
    if "patch_embed.norm.weight" not in layout.backbone:
        raise CheckpointError(f"{source} holds no CrossFormer: there is no patch_embed.norm.weight")
    if arch is None:
        raise CheckpointError(f"{source} has none of the published architectures: give --config")
    variant = find_variant(layout.backbone)
    if layout.is_dense:
        kind = find_dense_model(layout.others)
        if kind is None:
            raise CheckpointError(
                f"{source} is a detector or segmentor of none of the known kinds: give --config"
            )
        if find_spec(kind.scope) is None:
            needed = f"{kind.scope} is needed: {HOW_TO_INSTALL}"
            raise CheckpointError(f"{source} is a {kind.name}, to check which {needed}")
        cfg = make_config(kind, arch, layout.others)
        cfg.model.backbone.update(variant)
        return kind.name, _model_weights(cfg)
    final_norm = bool(layout.classifier) or "norm.weight" in layout.backbone
    with torch.device("meta"):
        expected = CrossFormer(arch, final_norm=final_norm, **variant).state_dict()
        if not layout.classifier:
            return "backbone", expected
        classes = count_outputs(layout.classifier.get("head.fc.weight"))
        head = torch.nn.Linear(len(expected["norm.weight"]), classes)
    classifier = {"head.fc.weight": head.weight, "head.fc.bias": head.bias}
    return "classifier", library_layout(CheckpointLayout(expected, classifier))


def _model_weights(cfg: Config) -> dict[str, Tensor]:
    try:
        return build_on_meta(cfg).state_dict()
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"the model of {cfg.filename} cannot be built: {reason}") from error


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _dataset_meta(meta: object, source: Path) -> dict:
    """Class names and colours, which inference draws with; older libraries name them otherwise."""
    meta = meta if isinstance(meta, dict) else {}
    old = {key.lower(): meta[key] for key in ("CLASSES", "PALETTE") if meta.get(key) is not None}
    found = meta.get("dataset_meta") or old
    if not found:
        return {}
    try:
        # Both file formats get what JSON can hold: lists for tuples and arrays.
        return {"dataset_meta": json.loads(json.dumps(found, default=lambda array: array.tolist()))}
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} has class names or colours that are no lists: {one_line(str(error))}"
        ) from error


def _write_checkpoint(path: Path, weights: dict[str, Tensor], meta: dict) -> None:
    """Write weights as safetensors, if the name ends so, and otherwise for :func:`torch.load`.

    The file appears under its name when it is complete; an older one there is replaced. If it
    cannot be written, as on a full disk, nothing is left behind.
    """
    try:
        weights = _own_memory(weights)
        # Through a file object: torch's own writer hides what went wrong.
        with atomic_write(path) as temporary, temporary.open("xb") as file:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                permissions = temporary.stat().st_mode
                save_file(weights, temporary, {"format": "pt", "meta": json.dumps(meta)})
                temporary.chmod(permissions)  # the library lets no one else read it
            else:
                torch.save({"meta": meta, "state_dict": weights}, file)
    except Exception as error:
        # The system's number is in the text of safetensors, or in an error below torch's.
        texts = "".join(traceback.format_exception(error))
        number = re.search(r"(?:os error|Errno|code:) (\d+)", texts)
        reason = os.strerror(int(number[1])) if number else str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be written: {one_line(reason)}") from error


def _own_memory(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, or are parts of more, which would be written as a whole."""
    taken: set[int] = set()
    own = {}
    for name, value in weights.items():
        memory = value.untyped_storage()
        is_shared = memory.nbytes() != value.nbytes or memory.data_ptr() in taken
        taken.add(memory.data_ptr())
        own[name] = (value.clone() if is_shared else value).detach().contiguous()
    return own
