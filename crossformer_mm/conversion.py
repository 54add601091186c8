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

from mmengine.config import Config
from torch import Size

from crossformer_mm.architectures import full_name
from crossformer_mm.checkpoint import (
    PREFIX,
    Contents,
    check_backbone,
    entries_beside_weights,
    extract_state_dict,
    find_state_dict,
    library_layout,
    sort_contents,
)
from crossformer_mm.checkpoint_errors import one_line
from crossformer_mm.checkpoint_writing import check_destination, write_checkpoint
from crossformer_mm.dense_models import find_dense_model, make_config
from crossformer_mm.matching import (
    backbone_shapes,
    count_outputs,
    describe_mismatch,
    find_architecture,
    shapes_of,
)
from crossformer_mm.requirements import HOW_TO_INSTALL
from crossformer_mm.safe_load import CheckpointError, load_file
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
    contents = sort_contents(extract_state_dict(checkpoint, source))
    found, fits = find_architecture(contents.backbone)
    if arch is not None:
        shapes = backbone_shapes(arch, final_norm="norm.weight" in contents.backbone)
        check_backbone(contents.backbone, shapes, f"{source} is not of arch {arch!r}")
    target = _choose_target(contents, found, cfg, source)
    _check(contents, target, source)
    weights = library_layout(contents)
    name = found if fits else "custom"
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
        f"dropped by rule: {contents.describe_dropped()}",
        f"not carried over: {', '.join(entries_beside_weights(checkpoint)) or 'nothing'}",
        f"wrote {destination}",
    ]


def _choose_target(
    contents: Contents, arch: str | None, cfg: Config | None, source: Path
) -> Target:
    """What the checkpoint is to be compared with; ``arch`` is the one that fits best."""
    if cfg is not None:
        return _target_of_config(contents, cfg)
    if arch is None:
        stem = contents.backbone.get("patch_embed.norm.weight")
        if stem is None:
            raise CheckpointError(
                f"{source} holds no CrossFormer: there is no patch_embed.norm.weight"
            )
        raise CheckpointError(
            f"{source} has a stem of shape {tuple(stem.shape)}, which none of the published "
            "architectures has: give --config"
        )
    if contents.is_dense:
        return _target_of_dense(contents, arch, source)
    final_norm = bool(contents.classifier) or "norm.weight" in contents.backbone
    backbone = backbone_shapes(arch, final_norm=final_norm)
    if not contents.classifier:
        return Target("backbone", backbone, {})
    classes = count_outputs(contents.classifier.get("head.fc.weight"))
    channels = backbone["norm.weight"][0]
    heads = {"head.fc.weight": Size((classes, channels)), "head.fc.bias": Size((classes,))}
    return Target("classifier", backbone, heads)


def _target_of_dense(contents: Contents, arch: str, source: Path) -> Target:
    kind = find_dense_model(contents.others)
    if kind is None:
        raise CheckpointError(
            f"{source} is a detector or segmentor of none of the known kinds: give --config"
        )
    if find_spec(kind.scope) is None:
        raise CheckpointError(
            f"{source} is a {kind.name}, to check which {kind.scope} is needed: {HOW_TO_INSTALL}"
        )
    try:
        cfg = make_config(kind, arch, contents.others)
    except CheckpointError as error:
        raise CheckpointError(f"{source} {error}") from None
    return _target_of_model(kind.name, cfg)


def _target_of_config(contents: Contents, cfg: Config) -> Target:
    try:
        target = _target_of_model(cfg.model.type, cfg)
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"the model of {cfg.filename} cannot be built: {reason}") from error
    if contents.is_dense:
        return target
    if cfg.get("default_scope") != "mmpretrain":
        contents.drop_classifier()
    if contents.classifier:
        return target
    return Target("backbone", target.backbone, {})


def _target_of_model(kind: str, cfg: Config) -> Target:
    # Imported here: it imports one of the large libraries.
    from crossformer_mm.flops import build_on_meta

    shapes = shapes_of(build_on_meta(cfg).state_dict())
    backbone = {n.removeprefix(PREFIX): s for n, s in shapes.items() if n.startswith(PREFIX)}
    heads = {name: shape for name, shape in shapes.items() if not name.startswith(PREFIX)}
    return Target(kind, backbone, heads)


def _check(contents: Contents, target: Target, source: Path) -> None:
    check_backbone(contents.backbone, target.backbone, f"{source} does not fit the backbone")
    problems = describe_mismatch({**contents.classifier, **contents.others}, target.heads)
    if problems:
        raise CheckpointError(f"{source} does not fit the {target.kind}: {problems}")


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
