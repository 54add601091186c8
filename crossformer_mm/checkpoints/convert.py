"""Convert checkpoints to the names and files that this project's configs load.

Before anything is written, every weight is compared with those of the model.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from crossformer_mm.checkpoints.dense_models import find_dense_model, make_config
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.checkpoints.writer import check_destination, write_checkpoint
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.architectures import full_name
from crossformer_mm.models.state_dict import (
    CheckpointLayout,
    check_backbone,
    count_outputs,
    entries_beside_weights,
    extract_state_dict,
    find_architecture,
    find_state_dict,
    library_layout,
    parse_state_dict,
    shapes_of,
)
from crossformer_mm.utils.errors import CheckpointError, one_line
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
    check_destination(source, destination)
    checkpoint = load_file(source)
    layout = parse_state_dict(extract_state_dict(checkpoint, source))
    found = find_architecture(shapes_of(layout.backbone))
    if arch is not None:
        backbone = _backbone_weights(arch, "norm.weight" in layout.backbone)
        check_backbone(layout.backbone, backbone, f"{source} is not of arch {arch!r}")
    kind, expected = _find_target(layout, found, cfg, source)
    weights = library_layout(layout)
    check_backbone(weights, expected, f"{source} does not fit the {kind}")
    meta = {
        "source": source.name,
        "source_sha256": _hash_file(source),
        "kind": kind,
        "arch": found or "custom",
        "crossformer_mm_version": __version__,
        **_dataset_meta(checkpoint, source),
    }
    write_checkpoint(destination, weights, meta)
    unchanged = "" if weights.keys() - find_state_dict(checkpoint).keys() else ", names unchanged"
    left = [one_line(str(name), 50) for name in entries_beside_weights(checkpoint)]
    return [
        f"{source}: a {kind}, architecture {meta['arch']}",
        f"matched: all {len(weights)} weights{unchanged}",
        f"dropped by rule: {layout.describe_dropped()}",
        f"not carried over: {', '.join(left[:10] + ['...'] * (len(left) > 10)) or 'nothing'}",
        f"wrote {destination}",
    ]


def _find_target(
    layout: CheckpointLayout, arch: str | None, cfg: Config | None, source: Path
) -> tuple[str, dict[str, Tensor]]:
    """The kind of model that a checkpoint has to fit, and the weights of one, without memory.

    ``arch`` is the published architecture that the checkpoint has, if it has one.
    """
    if cfg is not None:
        if not layout.is_dense and cfg.get("default_scope") != "mmpretrain":
            layout.drop_classifier()
        expected = _model_weights(cfg)
        if layout.is_dense or layout.classifier:
            return cfg.model.type, expected
        return "backbone", parse_state_dict(expected).backbone
    stem = layout.backbone.get("patch_embed.norm.weight")
    if stem is None:
        raise CheckpointError(f"{source} holds no CrossFormer: there is no patch_embed.norm.weight")
    if arch is None:
        raise CheckpointError(
            f"{source} has a stem of shape {tuple(stem.shape)}, and none of the published "
            "architectures has its blocks and heads: give --config"
        )
    if layout.is_dense:
        kind = find_dense_model(layout.others)
        if kind is None:
            raise CheckpointError(
                f"{source} is a detector or segmentor of none of the known kinds: give --config"
            )
        if find_spec(kind.scope) is None:
            needed = f"{kind.name}, to check which {kind.scope} is needed: {HOW_TO_INSTALL}"
            raise CheckpointError(f"{source} is a {needed}")
        return kind.name, _model_weights(make_config(kind, arch, layout.others))
    if not layout.classifier:
        return "backbone", _backbone_weights(arch, "norm.weight" in layout.backbone)
    expected = _backbone_weights(arch, True)
    classes = count_outputs(shapes_of(layout.classifier).get("head.fc.weight"))
    with torch.device("meta"):
        head = torch.nn.Linear(len(expected["norm.weight"]), classes).state_dict()
    classifier = {f"head.fc.{name}": value for name, value in head.items()}
    return "classifier", library_layout(CheckpointLayout(expected, classifier))


def _model_weights(cfg: Config) -> dict[str, Tensor]:
    # Imported here: it imports one of the large libraries.
    from crossformer_mm.models.build import build_on_meta

    try:
        return build_on_meta(cfg).state_dict()
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"the model of {cfg.filename} cannot be built: {reason}") from error


def _backbone_weights(arch: str, final_norm: bool) -> dict[str, Tensor]:
    with torch.device("meta"):
        return CrossFormer(arch, final_norm=final_norm).state_dict()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _dataset_meta(checkpoint: Mapping, source: Path) -> dict:
    """Class names and colours, which inference draws with; older libraries name them otherwise."""
    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
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
