"""The names of weights in CrossFormer checkpoints, and what fits a model.

The authors' classifiers name the weights of the backbone as they are and the classifier ``head``;
mmpretrain's have ``backbone.`` and ``head.fc``. Detectors and segmentors have ``backbone.`` and
the names of their necks and heads, which have not changed since mmdet 2.8 and mmseg 0.12. In front
of all names may stand the ``module.`` of data parallel training.
"""

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
    found = find_state_dict(checkpoint) if isinstance(checkpoint, Mapping) else {}
    if not found:
        raise CheckpointError(f"checkpoint {filename} holds no state dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            wrong = f"{one_line(repr(name), 100)} is {describe(value)}"
            raise CheckpointError(f"checkpoint {filename} holds no state dict of tensors: {wrong}")
    weights = {name.removeprefix("module."): value for name, value in found.items()}
    if len(weights) < len(found):
        raise CheckpointError(f"checkpoint {filename} has weights both with and without 'module.'")
    classifiers = Counter(_CLASSIFIER.get(name.removeprefix(PREFIX)) for name in weights)
    for name, count in classifiers.items():
        if name is not None and count > 1:
            raise CheckpointError(f"checkpoint {filename} has {name} under two names")
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
    releases, the classifier, neck and heads, and the final norm where it has none.

    Args:
        backbone: A :class:`crossformer_mm.CrossFormer`, changed in place.
        checkpoint: What a checkpoint file holds, in the authors' layout or this project's.
        filename: Its name, for messages.
        prefix: What stands before the backbone's names, where anything does.

    Raises:
        CheckpointError: If a weight is missing, unexpected, of another shape or not finite. Nothing
            is loaded.
    """
    layout = parse_state_dict(extract_state_dict(checkpoint, filename), prefix)
    layout.dropped["classifier"] += len(layout.classifier)
    layout.dropped["neck and heads"] += len(layout.others)
    own = backbone.state_dict()
    if "norm.weight" not in own:
        layout.drop_final_norm()
    check_backbone(layout.backbone, own, f"checkpoint {filename} does not fit this backbone")
    backbone.load_state_dict(layout.backbone)
    dropped = f"dropped by rule: {layout.describe_dropped()}"
    matched = f"Backbone: all {len(own)} weights match those in {filename}"
    print_log(f"{matched}; {dropped}", logger="current")


def check_before_loading(backbone: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> None:
    """Raise CheckpointError if the weights that begin with ``prefix`` do not fit a backbone.

    All of them must fit in a model; alone (no prefix), with ``strict=False``, half of them must.
    """
    weights = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    own = backbone.state_dict()
    if not prefix and 2 * count_matches(weights, own) >= len(own):
        return
    if "norm.weight" not in own:
        weights = {name: v for name, v in weights.items() if not name.startswith("norm.")}
    check_backbone(weights, own, "the checkpoint does not fit this backbone")


def check_backbone(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], complaint: str
) -> None:
    """Raise CheckpointError if weights are not exactly the expected ones, or not finite.

    The error begins with ``complaint`` and names the architecture that would fit, if one does.
    """
    problems = format_incompatible_keys(weights, expected)
    if problems:
        arch = find_architecture(shapes_of(weights))
        is_other = arch is not None and arch != find_architecture(shapes_of(expected))
        hint = f" (its weights are those of arch {arch!r})" if is_other else ""
        raise CheckpointError(f"{complaint}{hint}: {problems}")


def count_matches(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """How many of the expected weights are there with their shape."""
    return sum(n in weights and weights[n].shape == v.shape for n, v in expected.items())


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, Size]:
    """Shapes by name."""
    return {name: value.shape for name, value in weights.items()}


def format_incompatible_keys(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Say in one line what does not fit, naming at most ten keys; empty when all fits."""
    found: dict[str, list[str]] = {}
    for name in {**expected, **weights}:
        shown = one_line(name, MAX_NAME_LENGTH)
        if name not in weights:
            kind = "missing"
        elif name not in expected:
            kind = "unexpected"
        elif weights[name].shape != expected[name].shape:
            kind = "of another shape"
            shown += f" {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        elif expected[name].is_floating_point() and not weights[name].is_floating_point():
            kind = "of another type"
        elif not weights[name].isfinite().all():
            kind = "with NaN or infinity"
        else:
            continue
        found.setdefault(kind, []).append(shown)
    limit = MAX_NAMED_KEYS // max(1, len(found))
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:limit] + ['...'] * (len(names) > limit))}"
        for kind, names in found.items()
    )


def find_architecture(shapes: Shapes) -> str | None:
    """Name the published architecture that a backbone's weights are of, by their shapes, or None.

    It shows in the channels of the stem, the heads of all blocks, and the cooling layers.
    """
    shapes = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    stem, last_bias = shapes.get("patch_embed.norm.weight"), "attn.pos.pos3.2.bias"
    heads = {name: shape for name, shape in shapes.items() if name.endswith(last_bias)}
    plus_plus = any(".ex_ln." in name for name in shapes)
    for name, arch in ARCH_ZOO.items():
        own_heads = {
            f"layers.{stage}.blocks.{i}.{last_bias}": (arch["num_heads"][stage],)
            for stage, depth in enumerate(arch["depths"])
            for i in range(depth)
        }
        own = ((arch["embed_dims"],), own_heads, arch["amplitude_cooling"])
        if (stem, heads, plus_plus) == own:
            return name
    return None


def count_outputs(shape: Size | None) -> int:
    """The outputs of a layer with a weight of this shape; 0 without a weight or an axis."""
    return shape[0] if shape else 0
