"""Convert checkpoints to the names and files that this project's configs load.

Before anything is written, every weight is compared with those of the model.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Size

from crossformer_mm.checkpoints.dense_models import find_dense_model, make_config
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.checkpoints.writer import check_destination, write_checkpoint
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.architectures import full_name
from crossformer_mm.models.state_dict import (
    PREFIX,
    CheckpointLayout,
    check_backbone,
    count_outputs,
    entries_beside_weights,
    extract_state_dict,
    find_architecture,
    find_state_dict,
    format_incompatible_keys,
    library_layout,
    parse_state_dict,
    shapes_of,
)
from crossformer_mm.utils.errors import CheckpointError, one_line
from crossformer_mm.utils.requirements import HOW_TO_INSTALL
from crossformer_mm.version import __version__


@dataclass(frozen=True)
class Target:
    """What a checkpoint has to hold: names and shapes, the backbone's without ``backbone.``."""

    kind: str
    backbone: Mapping[str, Size]
    heads: Mapping[str, Size]


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
        shapes = backbone_shapes(arch, final_norm="norm.weight" in layout.backbone)
        check_backbone(layout.backbone, shapes, f"{source} is not of arch {arch!r}")
    target = _choose_target(layout, found, cfg, source)
    _check(layout, target, source)
    weights = library_layout(layout)
    name = found or "custom"
    meta = {
        "source": source.name,
        "source_sha256": _hash_file(source),
        "kind": target.kind,
        "arch": name,
        "crossformer_mm_version": __version__,
        **_dataset_meta(checkpoint, source),
    }
    write_checkpoint(destination, weights, meta)
    unchanged = "" if weights.keys() - find_state_dict(checkpoint).keys() else ", names unchanged"
    return [
        f"{source}: a {target.kind}, architecture {name}",
        f"matched: all {len(weights)} weights{unchanged}",
        f"dropped by rule: {layout.describe_dropped()}",
        f"not carried over: {_name_entries(entries_beside_weights(checkpoint))}",
        f"wrote {destination}",
    ]


def _choose_target(
    layout: CheckpointLayout, arch: str | None, cfg: Config | None, source: Path
) -> Target:
    """What the checkpoint is to be compared with; ``arch`` is the published one, if it has one."""
    if cfg is not None:
        return _target_of_config(layout, cfg)
    if arch is None:
        stem = layout.backbone.get("patch_embed.norm.weight")
        if stem is None:
            raise CheckpointError(
                f"{source} holds no CrossFormer: there is no patch_embed.norm.weight"
            )
        raise CheckpointError(
            f"{source} has a stem of shape {tuple(stem.shape)}, and none of the published "
            "architectures has its blocks and heads: give --config"
        )
    if layout.is_dense:
        return _target_of_dense(layout, arch, source)
    final_norm = bool(layout.classifier) or "norm.weight" in layout.backbone
    backbone = backbone_shapes(arch, final_norm=final_norm)
    if not layout.classifier:
        return Target("backbone", backbone, {})
    classes = count_outputs(shapes_of(layout.classifier).get("head.fc.weight"))
    channels = backbone["norm.weight"][0]
    heads = {"head.fc.weight": Size((classes, channels)), "head.fc.bias": Size((classes,))}
    return Target("classifier", backbone, heads)


def _target_of_dense(layout: CheckpointLayout, arch: str, source: Path) -> Target:
    kind = find_dense_model(layout.others)
    if kind is None:
        raise CheckpointError(
            f"{source} is a detector or segmentor of none of the known kinds: give --config"
        )
    if find_spec(kind.scope) is None:
        raise CheckpointError(
            f"{source} is a {kind.name}, to check which {kind.scope} is needed: {HOW_TO_INSTALL}"
        )
    try:
        cfg = make_config(kind, arch, layout.others)
    except CheckpointError as error:
        raise CheckpointError(f"{source} {error}") from None
    return _target_of_model(kind.name, cfg)


def _target_of_config(layout: CheckpointLayout, cfg: Config) -> Target:
    try:
        target = _target_of_model(cfg.model.type, cfg)
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"the model of {cfg.filename} cannot be built: {reason}") from error
    if layout.is_dense:
        return target
    if cfg.get("default_scope") != "mmpretrain":
        layout.drop_classifier()
    if layout.classifier:
        return target
    return Target("backbone", target.backbone, {})


def _target_of_model(kind: str, cfg: Config) -> Target:
    # Imported here: it imports one of the large libraries.
    from crossformer_mm.models.build import build_on_meta

    shapes = shapes_of(build_on_meta(cfg).state_dict())
    backbone = {n.removeprefix(PREFIX): s for n, s in shapes.items() if n.startswith(PREFIX)}
    heads = {name: shape for name, shape in shapes.items() if not name.startswith(PREFIX)}
    return Target(kind, backbone, heads)


def backbone_shapes(arch: str, final_norm: bool = True) -> dict[str, Size]:
    """Shapes of an architecture's weights by name."""
    with torch.device("meta"):
        return shapes_of(CrossFormer(arch, final_norm=final_norm).state_dict())


def _check(layout: CheckpointLayout, target: Target, source: Path) -> None:
    check_backbone(layout.backbone, target.backbone, f"{source} does not fit the backbone")
    problems = format_incompatible_keys({**layout.classifier, **layout.others}, target.heads)
    if problems:
        raise CheckpointError(f"{source} does not fit the {target.kind}: {problems}")


def _name_entries(entries: Mapping) -> str:
    names = [one_line(str(name), 50) for name in entries]
    return ", ".join(names[:10] + ["..."] * (len(names) > 10)) or "nothing"


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _dataset_meta(checkpoint: Mapping, source: Path) -> dict:
    """Class names and colours, which inference draws with; older libraries name them otherwise."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping):
        return {}
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
