"""Checkpoints as the authors and the libraries of their time wrote them.

The names of necks and heads were read in the sources of mmdet 2.8.0 and 2.26.0, mmseg 0.12.0 and
0.29.0, which agree on all of them, and compared with the state dicts of models that those versions
built from the settings of the authors' models.
"""

import json
import sys
import zlib
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from crossformer_mm import CrossFormer

Shapes = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int) -> Shapes:
    """A convolution or linear layer with a bias, of torch.nn."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def conv(name: str, *shape: int) -> Shapes:
    """mmcv/cnn/bricks/conv_module.py, ConvModule without norm: its convolution is ``conv``."""
    return layer(f"{name}.conv", *shape)


def conv_bn(name: str, *shape: int) -> Shapes:
    """ConvModule with BN or SyncBN, which build_norm_layer calls ``bn``; then there is no bias."""
    bn = {f"{name}.bn.{kind}": shape[:1] for kind in ("weight", "bias", "running_mean")}
    bn |= {f"{name}.bn.running_var": shape[:1], f"{name}.bn.num_batches_tracked": ()}
    return {f"{name}.conv.weight": shape, **bn}


def convs(name: str, count: int, *shape: int, module=conv) -> Shapes:
    """A ModuleList or Sequential of equal layers."""
    return {k: s for i in range(count) for k, s in module(f"{name}.{i}", *shape).items()}


def fpn(channels: list[int]) -> Shapes:
    """mmdet/models/necks/fpn.py and mmseg/models/necks/fpn.py, FPN: lateral_convs, fpn_convs."""
    laterals = [conv(f"neck.lateral_convs.{i}", 256, c, 1, 1) for i, c in enumerate(channels)]
    return join(*laterals, convs("neck.fpn_convs", len(channels), 256, 256, 3, 3))


def join(*parts: Shapes) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def retinanet(c: list[int], classes: int = 80) -> Shapes:
    """The authors' neck starts at stage 1; its extra levels come from its last input."""
    return join(
        fpn(c[1:]),
        conv("neck.fpn_convs.3", 256, c[3], 3, 3),
        conv("neck.fpn_convs.4", 256, 256, 3, 3),
        # mmdet/models/dense_heads/retina_head.py, RetinaHead: 9 anchors
        convs("bbox_head.cls_convs", 4, 256, 256, 3, 3),
        convs("bbox_head.reg_convs", 4, 256, 256, 3, 3),
        layer("bbox_head.retina_cls", 9 * classes, 256, 3, 3),
        layer("bbox_head.retina_reg", 9 * 4, 256, 3, 3),
    )


def rpn() -> Shapes:
    """mmdet/models/dense_heads/rpn_head.py, RPNHead: 3 anchors."""
    return join(
        layer("rpn_head.rpn_conv", 256, 256, 3, 3),
        layer("rpn_head.rpn_cls", 3, 256, 1, 1),
        layer("rpn_head.rpn_reg", 12, 256, 1, 1),
    )


def mask_head(name: str, classes: int) -> Shapes:
    """mmdet/models/roi_heads/mask_heads/fcn_mask_head.py, FCNMaskHead."""
    return join(
        convs(f"{name}.convs", 4, 256, 256, 3, 3),
        layer(f"{name}.upsample", 256, 256, 2, 2),
        layer(f"{name}.conv_logits", classes, 256, 1, 1),
    )


def box_head(name: str, classes: int) -> Shapes:
    """mmdet/models/roi_heads/bbox_heads/convfc_bbox_head.py, ConvFCBBoxHead: its outputs."""
    return join(
        layer(f"{name}.fc_cls", classes + 1, 1024), layer(f"{name}.fc_reg", 4 * classes, 1024)
    )


def mask_rcnn(c: list[int], classes: int = 80) -> Shapes:
    """Shared2FCBBoxHead of convfc_bbox_head.py: shared_fcs."""
    return join(
        fpn(c),
        rpn(),
        box_head("roi_head.bbox_head", classes),
        layer("roi_head.bbox_head.shared_fcs.0", 1024, 256 * 49),
        layer("roi_head.bbox_head.shared_fcs.1", 1024, 1024),
        mask_head("roi_head.mask_head", classes),
    )


def cascade_mask_rcnn(c: list[int], classes: int = 80) -> Shapes:
    """mmdet/models/roi_heads/cascade_roi_head.py: bbox_head and mask_head are lists of three."""
    heads = [
        join(
            box_head(f"roi_head.bbox_head.{i}", classes),
            convs(f"roi_head.bbox_head.{i}.shared_convs", 4, 256, 256, 3, 3, module=conv_bn),
            layer(f"roi_head.bbox_head.{i}.shared_fcs.0", 1024, 256 * 49),
            mask_head(f"roi_head.mask_head.{i}", classes),
        )
        for i in range(3)
    ]
    return join(fpn(c), rpn(), *heads)


def semantic_fpn(c: list[int], classes: int = 150) -> Shapes:
    """mmseg/models/decode_heads/fpn_head.py, FPNHead: convolutions and upsampling in turn."""
    scales = [conv_bn("decode_head.scale_heads.0.0", 128, 256, 3, 3)]
    scales += [
        conv_bn(f"decode_head.scale_heads.{i}.{2 * k}", 128, 128 if k else 256, 3, 3)
        for i in (1, 2, 3)
        for k in range(i)
    ]
    return join(fpn(c), layer("decode_head.conv_seg", classes, 128, 1, 1), *scales)


def upernet(c: list[int], classes: int = 150) -> Shapes:
    """mmseg/models/decode_heads: uper_head.py, psp_head.py (PPM) and, auxiliary, fcn_head.py.

    ``conv_seg`` is BaseDecodeHead's, in decode_head.py.
    """
    return join(
        layer("decode_head.conv_seg", classes, 512, 1, 1),
        *(conv_bn(f"decode_head.psp_modules.{i}.1", 512, c[3], 1, 1) for i in range(4)),
        conv_bn("decode_head.bottleneck", 512, c[3] + 4 * 512, 3, 3),
        *(conv_bn(f"decode_head.lateral_convs.{i}", 512, c[i], 1, 1) for i in range(3)),
        convs("decode_head.fpn_convs", 3, 512, 512, 3, 3, module=conv_bn),
        conv_bn("decode_head.fpn_bottleneck", 512, 4 * 512, 3, 3),
        layer("auxiliary_head.conv_seg", classes, 256, 1, 1),
        conv_bn("auxiliary_head.convs.0", 256, c[2], 3, 3),
    )


DENSE = dict(
    retinanet=retinanet,
    mask_rcnn=mask_rcnn,
    cascade_mask_rcnn=cascade_mask_rcnn,
    semantic_fpn=semantic_fpn,
    upernet=upernet,
)


def channels_of(arch: str) -> list[int]:
    with torch.device("meta"):
        return list(CrossFormer(arch).out_channels)


def fill(shapes: Shapes) -> dict[str, Tensor]:
    """Values that differ between any two entries."""
    return {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        for name, shape in shapes.items()
    }


def backbone_weights(arch: str | dict, final_norm: bool = False) -> dict[str, Tensor]:
    with torch.device("meta"):
        own = CrossFormer(arch, final_norm=final_norm).state_dict()
    return fill({name: tuple(value.shape) for name, value in own.items()})


def classifier_weights(arch: str | dict, classes: int = 1000) -> dict[str, Tensor]:
    """The authors' classifier: the backbone's names as they are, and ``head``."""
    backbone = backbone_weights(arch, final_norm=True)
    return {**backbone, **fill(layer("head", classes, len(backbone["norm.weight"])))}


def v1_buffers(weights: dict[str, Tensor], group: int = 7) -> dict[str, Tensor]:
    """What the first release stored for every block, with any ``backbone.`` in front."""
    buffers = {}
    for name in weights:
        if name.endswith("attn.qkv.weight"):
            attention = name.removesuffix("qkv.weight")
            buffers[attention + "biases"] = torch.zeros((2 * group - 1) ** 2, 2)
            index = torch.zeros(group**2, group**2, dtype=torch.long)
            buffers[attention + "relative_position_index"] = index
    return buffers


@contextmanager
def yacs_config():
    """Give a config object that pickles as one of yacs 0.1.8 does, and forget its class after.

    yacs.config.CfgNode is a dict whose flags are attributes.
    """

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    modules = {"yacs": ModuleType("yacs"), "yacs.config": ModuleType("yacs.config")}
    modules["yacs.config"].CfgNode = CfgNode
    config = CfgNode(MODEL=CfgNode(TYPE="cross-scale", NUM_CLASSES=1000, GROUP_SIZE=[7, 7, 7, 7]))
    config["TRAIN"] = CfgNode(BASE_LR=1e-3, AUTO_RESUME=True, NAMES=("a", None))
    for node in (config, config["MODEL"], config["TRAIN"]):
        flags = dict(immutable=True, deprecated_keys=set(), renamed_keys={}, new_allowed=False)
        node.__dict__.update({f"__{flag}__": value for flag, value in flags.items()})
    assert "yacs" not in sys.modules
    sys.modules.update(modules)
    try:
        yield config
    finally:
        for name in modules:
            del sys.modules[name]


def save_classifier(path: Path, weights: dict[str, Tensor]) -> None:
    """Write what the authors' classification code saves, optimizer included."""
    parameters = [nn.Parameter(value.clone()) for value in list(weights.values())[:3]]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with yacs_config() as config:
        content = {
            "model": OrderedDict(weights),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": {"base_values": [1e-3], "t_initial": 300, "warmup_prefix": True},
            "max_accuracy": 82.5,
            "epoch": 299,
            "config": config,
        }
        torch.save(content, path)


def save_dense(path: Path, weights: dict[str, Tensor], classes: int) -> None:
    """Write what mmcv 1.x saves: a config's text and the data set's classes are in ``meta``."""
    names = tuple(f"class {i}" for i in range(classes))
    meta = dict(
        mmcv_version="1.2.7",
        time="Mon Aug  2 10:00:00 2021",
        config="model = dict(type='MaskRCNN')\n",
        CLASSES=names,
        PALETTE=[[i % 256, 0, 255] for i in range(classes)],
        epoch=12,
        iter=7329,
        hook_msgs={"best_score": 0.454},
    )
    torch.save({"meta": meta, "state_dict": OrderedDict(weights), "optimizer": {}}, path)


def dense_weights(kind: str, arch: str, classes: int) -> dict[str, Tensor]:
    """A detector or segmentor: the backbone, without final norm, and the kind's neck and heads."""
    backbone = {f"backbone.{name}": value for name, value in backbone_weights(arch).items()}
    return {**backbone, **fill(DENSE[kind](channels_of(arch), classes))}


def load_shapes(path: Path) -> Shapes:
    return {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
