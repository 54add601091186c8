"""The names of weights in CrossFormer checkpoints, and what fits a model.

The authors' classifiers name the weights of the backbone as they are and the classifier ``head``;
mmpretrain's have ``backbone.`` and ``head.fc``. Detectors and segmentors have ``backbone.`` and
the names of their necks and heads, which have not changed since mmdet 2.8 and mmseg 0.12. In front
of all names may stand the ``module.`` of data parallel training.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.logging import print_log
from torch import Size, Tensor, nn

from crossformer_mm.models.architectures import ARCH_ZOO
from crossformer_mm.utils.errors import CheckpointError, describe, one_line

MAX_NAMED_KEYS = 10
MAX_NAME_LENGTH = 150

Shapes = Mapping[str, Size]

# Derived values that older releases stored beside the weights.
DERIVED_BUFFERS = ("biases", "relative_position_index", "attn_mask")
PREFIX = "backbone."
# In the metadata of a state dict: the backbone that loads it must check that all of it fits.
STRICT = "crossformer_mm.strict"
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

    def describe_dropped(self) -> str:
        """What the rules left out, in words."""
        parts = [f"{count} {rule}" for rule, count in self.dropped.items() if count]
        return ", ".join(parts) or "nothing"


def find_state_dict(checkpoint: Mapping) -> Mapping:
    """The entry with the weights, or the checkpoint itself if it is a state dict."""
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            return checkpoint[key]
    return checkpoint


def entries_beside_weights(checkpoint: Mapping) -> dict:
    """What a checkpoint holds besides its state dict; nothing if it is one."""
    state_dict = find_state_dict(checkpoint)
    if state_dict is checkpoint:
        return {}
    return {key: value for key, value in checkpoint.items() if value is not state_dict}


def extract_state_dict(checkpoint: object, filename: str | Path) -> dict[str, Tensor]:
    """Find the weights in a checkpoint, names without the ``module.`` of data parallel training.

    Raises:
        CheckpointError: If there are none, or two of them get the same name.
    """
    if not isinstance(checkpoint, Mapping) or not find_state_dict(checkpoint):
        raise CheckpointError(f"checkpoint {filename} holds no state dict")
    checkpoint = find_state_dict(checkpoint)
    for name, value in checkpoint.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"checkpoint {filename} holds no state dict of tensors: "
                f"{one_line(repr(name), 100)} is {describe(value)}"
            )
    weights = {name.removeprefix("module."): value for name, value in checkpoint.items()}
    if len(weights) < len(checkpoint):
        raise CheckpointError(
            f"checkpoint {filename} has weights both with and without 'module.' in front"
        )
    classifiers = Counter(_CLASSIFIER.get(name.removeprefix(PREFIX)) for name in weights)
    twice = [name for name, count in classifiers.items() if name is not None and count > 1]
    if twice:
        raise CheckpointError(f"checkpoint {filename} has {twice[0]} under two names")
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
        in_backbone = not has_prefix or name.startswith(prefix)
        bare = name.removeprefix(prefix)
        last = bare.rpartition(".")[2]
        if bare in _CLASSIFIER:
            layout.classifier[_CLASSIFIER[bare]] = value
        elif in_backbone and bare.startswith("layers.") and last in DERIVED_BUFFERS:
            layout.dropped[last] += 1
        elif in_backbone:
            layout.backbone[bare] = value
        else:
            layout.others[name] = value
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
    releases, the classifier, a detector's or segmentor's neck and heads, and, for a backbone
    without ``final_norm``, the final norm.

    Args:
        backbone: A :class:`crossformer_mm.CrossFormer`, changed in place.
        checkpoint: What a checkpoint file holds, in the authors' layout or this project's.
        filename: Its name, for messages.
        prefix: What stands before the backbone's names, where anything does.

    Raises:
        CheckpointError: If a weight is missing, unexpected or of another shape. Nothing is loaded.
    """
    layout = parse_state_dict(extract_state_dict(checkpoint, filename), prefix)
    layout.dropped["classifier"] += len(layout.classifier)
    layout.dropped["neck and heads"] += len(layout.others)
    own = shapes_of(backbone.state_dict())
    if "norm.weight" not in own:
        layout.drop_final_norm()
    check_backbone(layout.backbone, own, f"checkpoint {filename} does not fit this backbone")
    backbone.load_state_dict(layout.backbone)
    print_log(
        f"Backbone: all {len(own)} weights match those in {filename}; dropped by rule: "
        f"{layout.describe_dropped()}",
        logger="current",
    )


def check_backbone(weights: Mapping[str, Tensor], expected: Shapes, complaint: str) -> None:
    """Raise CheckpointError if weights are not exactly the expected ones.

    The error begins with ``complaint`` and names the architecture that would fit, if one does.
    """
    problems = format_incompatible_keys(weights, expected)
    if not problems and not all(value.is_floating_point() for value in weights.values()):
        problems = "weights that are not floating-point numbers"
    if problems:
        arch = find_architecture(shapes_of(weights))
        is_other = arch is not None and arch != find_architecture(expected)
        hint = f" (its weights are those of arch {arch!r})" if is_other else ""
        raise CheckpointError(f"{complaint}{hint}: {problems}")


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, Size]:
    """Shapes by name."""
    return {name: value.shape for name, value in weights.items()}


def format_incompatible_keys(weights: Mapping[str, Tensor], expected: Shapes) -> str:
    """Say in one line what does not fit, naming at most ten keys; empty when all fits."""
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in weights and weights[name].shape != shape
        ],
    }
    found = {kind: names for kind, names in kinds.items() if names}
    return "; ".join(
        _name_some(kind, names, MAX_NAMED_KEYS // len(found)) for kind, names in found.items()
    )


def _name_some(kind: str, names: list[str], limit: int) -> str:
    more = ", ..." if len(names) > limit else ""
    shown = ", ".join(one_line(name, MAX_NAME_LENGTH) for name in names[:limit])
    return f"{len(names)} {kind}: {shown}{more}"


def find_architecture(shapes: Shapes) -> str | None:
    """Name the published architecture that a backbone's weights are of, by their shapes.

    Args:
        shapes: By the backbone's own names.

    Returns:
        The name, or None if they are of no published architecture.
    """
    found = _sizes(shapes)
    plus_plus = any(".ex_ln." in name for name in shapes)
    for name, arch in ARCH_ZOO.items():
        sizes = (arch["embed_dims"], arch["depths"], arch["num_heads"])
        if sizes == found and arch["amplitude_cooling"] == plus_plus:
            return name
    return None


def _sizes(shapes: Shapes) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Channels of the stem, and each stage's number of blocks and of heads."""
    heads: dict[str, list[int]] = {}
    for name in shapes:
        found = re.fullmatch(r"layers\.([0-3])\.blocks\.\d{1,3}\.attn\.pos\.pos3\.2\.bias", name)
        if found:
            heads.setdefault(found[1], []).append(count_outputs(shapes[name]))
    stages = sorted(heads)
    depths = tuple(len(heads[stage]) for stage in stages)
    stem = count_outputs(shapes.get("patch_embed.norm.weight"))
    return stem, depths, tuple(heads[stage][0] for stage in stages)


def count_outputs(shape: Size | None) -> int:
    """The outputs of a layer with a weight of this shape; 0 without a weight or an axis."""
    return shape[0] if shape else 0
