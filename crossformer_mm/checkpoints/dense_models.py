"""The detectors and segmentors of this project, recognised by the names of their weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmengine.config import Config, ConfigDict
from torch import Tensor

from crossformer_mm.models.architectures import ARCH_ZOO, STAGES
from crossformer_mm.models.state_dict import count_outputs
from crossformer_mm.registry import find_index_root
from crossformer_mm.utils.errors import CheckpointError

RETINANET_ANCHORS = 9


def _adapt_retinanet(model: ConfigDict, channels: list[int], rows: Callable) -> None:
    model.neck.in_channels = channels[1:]
    model.bbox_head.num_classes = rows("bbox_head.retina_cls") // RETINANET_ANCHORS


def _adapt_mask_rcnn(model: ConfigDict, channels: list[int], rows: Callable) -> None:
    model.neck.in_channels = channels
    model.roi_head.bbox_head.num_classes = rows("roi_head.bbox_head.fc_cls") - 1
    model.roi_head.mask_head.num_classes = rows("roi_head.mask_head.conv_logits")


def _adapt_cascade(model: ConfigDict, channels: list[int], rows: Callable) -> None:
    model.neck.in_channels = channels
    for i, head in enumerate(model.roi_head.bbox_head):
        head.num_classes = rows(f"roi_head.bbox_head.{i}.fc_cls") - 1
    model.roi_head.mask_head.num_classes = rows("roi_head.mask_head.0.conv_logits")


def _adapt_semantic_fpn(model: ConfigDict, channels: list[int], rows: Callable) -> None:
    model.neck.in_channels = channels
    model.decode_head.num_classes = rows("decode_head.conv_seg")


def _adapt_upernet(model: ConfigDict, channels: list[int], rows: Callable) -> None:
    model.decode_head.in_channels = channels
    model.decode_head.num_classes = rows("decode_head.conv_seg")
    model.auxiliary_head.in_channels = channels[2]
    model.auxiliary_head.num_classes = rows("auxiliary_head.conv_seg")


@dataclass(frozen=True)
class DenseModel:
    """A kind of dense model.

    Attributes:
        name: As its paper calls it.
        scope: The library that has it.
        signature: How names begin that kinds further down the list do not have.
        base: Its file below ``configs``.
        adapt: Sets channels and numbers of classes in its config, from the channels of the four
            stages and a function that gives the outputs of a layer in the checkpoint.
    """

    name: str
    scope: str
    signature: str
    base: str
    adapt: Callable[[ConfigDict, list[int], Callable[[str], int]], None]


_DETECTION, _SEGMENTATION = "detection/_base_/models/", "segmentation/_base_/models/"
DENSE_MODELS = (
    DenseModel(
        "RetinaNet",
        "mmdet",
        "bbox_head.retina_",
        _DETECTION + "retinanet_crossformer_fpn.py",
        _adapt_retinanet,
    ),
    DenseModel(
        "Cascade Mask R-CNN",
        "mmdet",
        "roi_head.mask_head.0.",
        _DETECTION + "cascade-mask-rcnn_crossformer_fpn_4conv1fc-giou.py",
        _adapt_cascade,
    ),
    DenseModel(
        "Mask R-CNN",
        "mmdet",
        "roi_head.mask_head.",
        _DETECTION + "mask-rcnn_crossformer_fpn.py",
        _adapt_mask_rcnn,
    ),
    DenseModel(
        "Semantic FPN",
        "mmseg",
        "decode_head.scale_heads.",
        _SEGMENTATION + "fpn_crossformer.py",
        _adapt_semantic_fpn,
    ),
    DenseModel(
        "UPerNet",
        "mmseg",
        "decode_head.psp_modules.",
        _SEGMENTATION + "upernet_crossformer.py",
        _adapt_upernet,
    ),
)


def find_dense_model(weights: Mapping[str, Tensor]) -> DenseModel | None:
    """Recognise the kind of model that has these necks and heads."""
    for kind in DENSE_MODELS:
        if any(name.startswith(kind.signature) for name in weights):
            return kind
    return None


def make_config(kind: DenseModel, arch: str, weights: Mapping[str, Tensor]) -> Config:
    """Write the config of a model with a published architecture and the checkpoint's classes.

    Raises:
        CheckpointError: If a layer that tells the number of classes is missing.
    """

    def rows(layer: str) -> int:
        if f"{layer}.weight" not in weights:
            raise CheckpointError(f"is a {kind.name} without {layer}.weight")
        return count_outputs(weights[f"{layer}.weight"].shape)

    cfg = Config.fromfile(find_index_root() / "configs" / kind.base)
    cfg.default_scope = kind.scope
    cfg.model.backbone.arch = arch
    embed_dims = ARCH_ZOO[arch]["embed_dims"]
    kind.adapt(cfg.model, [embed_dims * 2**stage for stage in range(STAGES)], rows)
    return cfg
