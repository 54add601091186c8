"""The layouts of CrossFormer checkpoints, and loading one into a backbone.

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
from torch import Tensor, nn

from crossformer_mm.checkpoint_errors import describe, one_line
from crossformer_mm.checkpoint_sources import find_file
from crossformer_mm.matching import describe_mismatch, find_architecture, shapes_of
from crossformer_mm.safe_load import CheckpointError, load_file

# Derived values that older releases stored beside the weights.
DERIVED_BUFFERS = ("biases", "relative_position_index", "attn_mask")
PREFIX = "backbone."
# In the metadata of a state dict: the backbone that loads it must check that all of it fits.
MUST_FIT = "crossformer_mm.must_fit"
_CLASSIFIER = {
    f"head.{layer}{kind}": f"head.fc.{kind}" for layer in ("", "fc.") for kind in ("weight", "bias")
}
_DENSE_PARTS = ("neck", "rpn_head", "roi_head", "bbox_head", "decode_head", "auxiliary_head")


@dataclass
class Contents:
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


def sort_contents(weights: Mapping[str, Tensor], prefix: str = PREFIX) -> Contents:
    """Recognise the layout of a state dict, and sort its weights.

    Args:
        weights: As :func:`extract_state_dict` returns them.
        prefix: What stands before the backbone's names, where anything does.
    """
    contents = Contents()
    has_prefix = any(name.startswith(prefix) for name in weights)
    for name, value in weights.items():
        in_backbone = not has_prefix or name.startswith(prefix)
        bare = name.removeprefix(prefix)
        last = bare.rpartition(".")[2]
        if bare in _CLASSIFIER:
            contents.classifier[_CLASSIFIER[bare]] = value
        elif in_backbone and bare.startswith("layers.") and last in DERIVED_BUFFERS:
            contents.dropped[last] += 1
        elif in_backbone:
            contents.backbone[bare] = value
        else:
            contents.others[name] = value
    if contents.is_dense:
        contents.drop_classifier()
    return contents


def library_layout(contents: Contents) -> dict[str, Tensor]:
    """Name weights as mmpretrain, mmdet and mmseg do; a backbone alone keeps its own names."""
    if not contents.classifier and not contents.others:
        return contents.backbone
    backbone = {PREFIX + name: value for name, value in contents.backbone.items()}
    return {**backbone, **contents.classifier, **contents.others}


def load_backbone(backbone: nn.Module, filename: str, prefix: str = PREFIX) -> None:
    """Load a backbone's weights from a checkpoint of a backbone, classifier or dense model.

    What a backbone does not have by design is left out and reported: derived buffers of older
    releases, the classifier, a detector's or segmentor's neck and heads, and, for a backbone
    without ``final_norm``, the final norm.

    Args:
        backbone: A :class:`crossformer_mm.CrossFormer`, changed in place.
        filename: Checkpoint file or URL, in the authors' layout or this project's.
        prefix: What stands before the backbone's names, where anything does.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If a weight is missing, unexpected or of another shape. Nothing is loaded.
    """
    weights = extract_state_dict(load_file(find_file(filename)), filename)
    contents = sort_contents(weights, prefix)
    contents.dropped["classifier"] += len(contents.classifier)
    contents.dropped["neck and heads"] += len(contents.others)
    own = shapes_of(backbone.state_dict())
    if "norm.weight" not in own:
        contents.drop_final_norm()
    check_backbone(contents.backbone, own, f"checkpoint {filename} does not fit this backbone")
    backbone.load_state_dict(contents.backbone)
    print_log(
        f"Backbone: all {len(own)} weights match those in {filename}; dropped by rule: "
        f"{contents.describe_dropped()}",
        logger="current",
    )


def check_backbone(weights: Mapping[str, Tensor], expected: Mapping, complaint: str) -> None:
    """Raise CheckpointError if weights are not exactly the expected ones.

    The error begins with ``complaint`` and names the architecture that would fit, if one does.
    """
    problems = describe_mismatch(weights, expected)
    if not problems and not all(value.is_floating_point() for value in weights.values()):
        problems = "weights that are not floating-point numbers"
    if problems:
        arch, fits = find_architecture(weights)
        hint = f" (its weights are those of arch {arch!r})" if fits else ""
        raise CheckpointError(f"{complaint}{hint}: {problems}")
