"""The detectors and segmentors of this project, recognised by the names of their weights."""

from collections.abc import Mapping
from typing import NamedTuple

from mmengine.config import Config
from torch import Tensor

from crossformer_mm.models.architectures import ARCH_ZOO, STAGES
from crossformer_mm.models.state_dict import count_outputs
from crossformer_mm.utils.index import find_index_root

RETINANET_ANCHORS = 9
# Their outputs tell the number of classes.
CLASS_LAYERS = (
    "bbox_head.retina_cls",
    "roi_head.bbox_head.fc_cls",
    *(f"roi_head.bbox_head.{stage}.fc_cls" for stage in range(3)),
    "roi_head.mask_head.conv_logits",
    "roi_head.mask_head.0.conv_logits",
    "decode_head.conv_seg",
    "auxiliary_head.conv_seg",
)


class DenseModel(NamedTuple):
    """A kind of dense model."""

    name: str  # as its paper calls it
    scope: str  # the library that has it
    signature: str  # how names begin that kinds further down the list do not have
    base: str  # its file, below configs/*/_base_/models


DENSE_MODELS = (
    DenseModel("RetinaNet", "mmdet", "bbox_head.retina_", "retinanet_*"),
    DenseModel("Cascade Mask R-CNN", "mmdet", "roi_head.mask_head.0.", "cascade-mask-rcnn_*"),
    DenseModel("Mask R-CNN", "mmdet", "roi_head.mask_head.", "mask-rcnn_*"),
    DenseModel("Semantic FPN", "mmseg", "decode_head.scale_heads.", "fpn_*"),
    DenseModel("UPerNet", "mmseg", "decode_head.psp_modules.", "upernet_*"),
)


def find_dense_model(weights: Mapping[str, Tensor]) -> DenseModel | None:
    """Recognise the kind of model that has these necks and heads."""
    kinds = (k for k in DENSE_MODELS if any(name.startswith(k.signature) for name in weights))
    return next(kinds, None)


def make_config(kind: DenseModel, arch: str, weights: Mapping[str, Tensor]) -> Config:
    """Write the config of a model with a published architecture and the checkpoint's classes."""
    (base,) = find_index_root().glob(f"configs/*/_base_/models/{kind.base}.py")
    cfg = Config.fromfile(base)
    cfg.default_scope = kind.scope
    model = cfg.model
    model.backbone.arch = arch
    channels = [ARCH_ZOO[arch]["embed_dims"] * 2**stage for stage in range(STAGES)]
    if "neck" in model:  # RetinaNet's does not take the first stage
        model.neck.in_channels = channels[-len(model.neck.in_channels) :]
    else:
        model.decode_head.in_channels = channels
        model.auxiliary_head.in_channels = channels[model.auxiliary_head.in_index]
    for layer in CLASS_LAYERS:
        if f"{layer}.weight" in weights:
            rows = count_outputs(weights[f"{layer}.weight"])
            head, _, last = layer.rpartition(".")
            head = head.replace("mask_head.0", "mask_head")  # in one config for all
            classes = {"retina_cls": rows // RETINANET_ANCHORS, "fc_cls": rows - 1}.get(last, rows)
            cfg.merge_from_dict({f"model.{head}.num_classes": classes})
    return cfg
