"""The names of weights in CrossFormer checkpoints, and what fits a model.

The authors' classifiers name the weights of the backbone as they are and the classifier ``head``;
mmpretrain's have ``backbone.`` and ``head.fc``. Detectors and segmentors have ``backbone.`` and
the names of their necks and heads, which have not changed since mmdet 2.8 and mmseg 0.12. In front
of all names may stand the ``module.`` of data parallel training.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from crossformer_mm.models.architectures import ARCH_ZOO
from crossformer_mm.models.grouping import LONG_RANGES
from crossformer_mm.models.position_bias import POSITION_BIASES
from crossformer_mm.utils.errors import CheckpointError, describe, mask_secrets, one_line

# Derived values that older releases stored beside the weights.
DERIVED_BUFFERS = ("biases", "relative_position_index", "attn_mask")
PREFIX = "backbone."
# In the metadata of a state dict: the backbone that loads it must check that all of it fits.
STRICT = "crossformer_mm.strict"
# Begins the names of empty buffers that say which variant of the model weights are of: for some
# their names and shapes cannot tell.
MARK = "variant_"
# The arguments of the papers' ablations, the published model's value first.
VARIANTS = dict(position_bias=POSITION_BIASES, long_range=LONG_RANGES, cross_scale=(True, False))
TABLE = ".relative_position_bias_table"
_CLASSIFIER = {
    f"head.{layer}{kind}": f"head.fc.{kind}" for layer in ("", "fc.") for kind in ("weight", "bias")
}
_DENSE_PARTS = ("neck", "rpn_head", "roi_head", "bbox_head", "decode_head", "auxiliary_head")


@dataclass
class CheckpointLayout:
    """The weights of a checkpoint, sorted.

    Attributes:
        backbone: By the backbone's own names, with the final norm if there is one.
        classifier: ``head.fc.weight`` and ``head.fc.bias``, or nothing.
        others: Necks and heads of dense models, and whatever else there is.
        dropped: How many entries each rule left out.
    """

    backbone: dict[str, Tensor] = field(default_factory=dict)
    classifier: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    dropped: Counter = field(default_factory=Counter)

    @property
    def is_dense(self) -> bool:
        """Whether it is a detector or segmentor."""
        return any(name.partition(".")[0] in _DENSE_PARTS for name in self.others)

    def drop_classifier(self) -> None:
        """Leave out what a dense model does not have."""
        self.dropped["classifier"] += len(self.classifier)
        self.classifier = {}
        self.drop_final_norm()

    def drop_final_norm(self) -> None:
        """Leave out the norm after the last stage, which only classifiers have."""
        for name in ("norm.weight", "norm.bias"):
            self.dropped["final norm"] += self.backbone.pop(name, None) is not None

    def check_fits(self, own: Mapping[str, Tensor], complaint: str) -> None:
        """Compare with a backbone's weights by :func:`check_backbone`, by the rule of its norm."""
        if "norm.weight" not in own:
            self.drop_final_norm()
        check_backbone(self.backbone, own, complaint)

    def describe_dropped(self) -> str:
        """What the rules left out, in words."""
        parts = [f"{count} {rule}" for rule, count in self.dropped.items() if count]
        return ", ".join(parts) or "nothing"


def split_checkpoint(checkpoint: Mapping) -> tuple[Mapping, dict]:
    """The state dict in a checkpoint and its other entries; or itself, if it is a state dict."""
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            return checkpoint[key], {k: v for k, v in checkpoint.items() if k != key}
    return checkpoint, {}


def extract_state_dict(checkpoint: object, filename: str | Path) -> dict[str, Tensor]:
    """Find the weights in a checkpoint, names without the ``module.`` of data parallel training.

    Raises:
        CheckpointError: If there are none, or two of them get the same name.
    """
    found, _ = split_checkpoint(checkpoint if isinstance(checkpoint, Mapping) else {})
    if not found:
        raise CheckpointError(f"checkpoint {filename} holds no state dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            wrong = f"{one_line(repr(name), 100)} is {describe(value)}"
            raise CheckpointError(f"checkpoint {filename} holds no state dict of tensors: {wrong}")
    weights = {name.removeprefix("module."): value for name, value in found.items()}
    if len(weights) < len(found):
        raise CheckpointError(f"checkpoint {filename} has weights both with and without 'module.'")
    renamed = {_CLASSIFIER.get(name.removeprefix(PREFIX), name) for name in weights}
    if len(renamed) < len(weights):
        raise CheckpointError(f"checkpoint {filename} has its classifier under two names")
    return weights


def parse_state_dict(weights: Mapping[str, Tensor], prefix: str = PREFIX) -> CheckpointLayout:
    """Recognise the layout of a state dict, and sort its weights.

    Args:
        weights: As :func:`extract_state_dict` returns them.
        prefix: What stands before the backbone's names, where anything does.
    """
    layout = CheckpointLayout()
    has_prefix = any(name.startswith(prefix) for name in weights)
    for name, value in weights.items():
        bare = name.removeprefix(prefix)
        last = bare.rpartition(".")[2]
        if bare in _CLASSIFIER:
            layout.classifier[_CLASSIFIER[bare]] = value
        elif has_prefix and bare == name:
            layout.others[name] = value
        elif bare.startswith("layers.") and last in DERIVED_BUFFERS:
            layout.dropped[last] += 1
        else:
            layout.backbone[bare] = value
    if layout.is_dense:
        layout.drop_classifier()
    return layout


def library_layout(layout: CheckpointLayout) -> dict[str, Tensor]:
    """Name weights as mmpretrain, mmdet and mmseg do; a backbone alone keeps its own names."""
    if not layout.classifier and not layout.others:
        return layout.backbone
    backbone = {PREFIX + name: value for name, value in layout.backbone.items()}
    return {**backbone, **layout.classifier, **layout.others}


def load_backbone(
    backbone: nn.Module, checkpoint: object, filename: str, prefix: str = PREFIX
) -> None:
    """Load a backbone's weights from a checkpoint of a backbone, classifier or dense model.

    What a backbone does not have by design is left out and reported: derived buffers of older
    releases, the classifier, neck and heads, and the final norm where it has none.

    Args:
        backbone: A :class:`crossformer_mm.CrossFormer`, changed in place.
        checkpoint: What a checkpoint file holds, in the authors' layout or this project's.
        filename: Its name, for messages.
        prefix: What stands before the backbone's names, where anything does.

    Raises:
        CheckpointError: If a weight is missing, unexpected, or of another shape or type. Nothing is
            loaded.
    """
    layout = parse_state_dict(extract_state_dict(checkpoint, filename), prefix)
    layout.dropped["classifier"] += len(layout.classifier)
    layout.dropped["neck and heads"] += len(layout.others)
    layout.check_fits(backbone.state_dict(), f"checkpoint {filename} does not fit this backbone")
    backbone.load_state_dict(layout.backbone)
    matched = (
        f"Backbone: all {len(layout.backbone)} weights match those in {mask_secrets(filename)}"
    )
    print_log(f"{matched}; dropped by rule: {layout.describe_dropped()}", logger="current")


def check_before_loading(backbone: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    """Raise CheckpointError if the weights that begin with ``prefix`` do not fit a backbone.

    For a backbone alone (no prefix), ``weights`` becomes its own part of a model's checkpoint.
    """
    layout = CheckpointLayout(
        {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    )
    if not prefix:
        layout = parse_state_dict(weights)
        weights.clear()
        weights.update(layout.backbone)
    layout.check_fits(backbone.state_dict(), "the checkpoint does not fit this backbone")


def check_values(weights: Mapping[str, Tensor], filename: str | Path) -> None:
    """Raise CheckpointError if numbers are NaN, infinite, complex, or too large for float32."""
    names = [
        one_line(str(name), 150)
        for name, value in weights.items()
        if isinstance(value, Tensor) and (value.is_complex() or not value.float().isfinite().all())
    ]
    if names:
        shown = ", ".join(names[:10] + ["..."] * (len(names) > 10))
        raise CheckpointError(
            f"{filename} has NaN or infinity as float32, or complex numbers, in {len(names)} "
            f"weights: {shown} (check_weights=False in a config loads it all the same)"
        )


def check_backbone(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], complaint: str
) -> None:
    """Raise CheckpointError if weights are not exactly the expected ones.

    The error begins with ``complaint`` and names the architecture that would fit, if one does.
    """
    _, problems = compare_weights(weights, expected)
    if problems:
        arch = find_architecture(weights)
        hints = [f"arch {arch!r}"] if arch not in (None, find_architecture(expected)) else []
        own = find_variant(expected)
        hints += [f"{k}={v!r}" for k, v in find_variant(weights).items() if v != own[k]]
        hints += _what_table_needs(weights, expected)
        hint = f" (its weights are those of {', '.join(hints)})" if hints else ""
        raise CheckpointError(f"{complaint}{hint}: {problems}")


def variant_marks(**arguments: object) -> list[str]:
    """The names of the empty buffers for arguments that differ from the published model's."""
    return [f"{MARK}{name}_{v}" for name, v in arguments.items() if v != VARIANTS[name][0]]


def find_variant(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of :data:`VARIANTS` that the marks among a backbone's weights stand for."""
    names = {name.removeprefix(PREFIX) for name in weights}
    return {
        name: next((v for v in choices[1:] if f"{MARK}{name}_{v}" in names), choices[0])
        for name, choices in VARIANTS.items()
    }


def _what_table_needs(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What to do about a learned table of position biases of another group size."""
    for name, value in weights.items():
        other = expected.get(name)
        if name.endswith(TABLE) and other is not None and getattr(value, "ndim", 0) == 2:
            side, own = ((math.isqrt(len(table)) + 1) // 2 for table in (value, other))
            if side != own:
                return [f"group_size={side}, not {own}, which position_bias='rpb' cannot change"]
    return []


def compare_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[int, str]:
    """Count the expected weights that are there as expected, and say what does not fit.

    That is one line with at most ten names; it is empty when all fits.
    """
    found: dict[str, list[str]] = {}
    matched = 0
    for name in {**expected, **weights}:
        shown = one_line(name, 150)
        if name not in weights:
            kind = "missing"
        elif name not in expected:
            kind = "unexpected"
        elif not isinstance(weights[name], Tensor):
            kind = "of another type"
        elif weights[name].shape != expected[name].shape:
            kind = "of another shape"
            shown += f" {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        elif expected[name].is_floating_point() and not weights[name].is_floating_point():
            kind = "of another type"
        else:
            matched += 1
            continue
        found.setdefault(kind, []).append(shown)
    limit = 10 // max(1, len(found))
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:limit] + ['...'] * (len(names) > limit))}"
        for kind, names in found.items()
    ]
    return matched, "; ".join(problems)


def find_architecture(weights: Mapping[str, Tensor]) -> str | None:
    """Name the published architecture that a backbone's weights are of, by their shapes, or None.

    It shows in the channels of the stem, the blocks, their heads where they have a position bias,
    and the cooling layers.
    """
    shapes = {
        name.removeprefix(PREFIX): value.shape
        for name, value in weights.items()
        if isinstance(value, Tensor)
    }
    stem, last_bias = shapes.get("patch_embed.norm.weight"), "attn.pos.pos3.2.bias"
    blocks = {".".join(name.split(".")[:4]) for name in shapes if ".blocks." in name}
    heads = {name: shape for name, shape in shapes.items() if name.endswith(last_bias)}
    plus_plus = any(".ex_ln." in name for name in shapes)
    for name, arch in ARCH_ZOO.items():
        own_heads = {
            f"layers.{stage}.blocks.{i}": (arch["num_heads"][stage],)
            for stage, depth in enumerate(arch["depths"])
            for i in range(depth)
        }
        own = ((arch["embed_dims"],), own_heads.keys(), arch["amplitude_cooling"])
        same_heads = heads in ({}, {f"{k}.{last_bias}": v for k, v in own_heads.items()})
        if (stem, blocks, plus_plus) == own and same_heads:
            return name
    return None


def count_outputs(weight: Tensor | None) -> int:
    """The outputs of a layer with this weight; 0 without a weight or an axis."""
    return 0 if weight is None or weight.ndim == 0 else len(weight)
