"""Checkpoints as the authors and the libraries of their time wrote them.

The names of necks and heads were read in the sources of mmdet 2.8.0 and 2.26.0, mmseg 0.12.0 and
0.29.0, which agree on all of them, and compared with the state dicts of models that those versions
built from the settings of the authors' models.
"""

import sys
import zlib
from collections import OrderedDict
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crossformer_mm import CrossFormer

Shapes = dict[str, tuple[int, ...]]


def expand(name: str, entries: Shapes) -> Shapes:
    """Entries of equal layers: ``#3`` in their name stands for 0, 1 and 2."""
    before, _, after = name.partition("#")
    if not after:
        return {f"{name}.{entry}": shape for entry, shape in entries.items()}
    names = [f"{before}{i}{after[1:]}" for i in range(int(after[0]))]
    return {n: shape for one in names for n, shape in expand(one, entries).items()}


def layer(name: str, *shape: int) -> Shapes:
    """A layer of torch.nn with a bias; its name ends with ``.conv`` in a ConvModule of mmcv."""
    return expand(name, {"weight": shape, "bias": shape[:1]})


def conv_bn(name: str, *shape: int) -> Shapes:
    """ConvModule with BN or SyncBN, which build_norm_layer calls ``bn``; then there is no bias."""
    norm = {f"bn.{k}": shape[:1] for k in ("weight", "bias", "running_mean", "running_var")}
    return expand(name, {"conv.weight": shape, **norm, "bn.num_batches_tracked": ()})


def fpn(channels: list[int]) -> Shapes:
    """mmdet/models/necks/fpn.py and mmseg/models/necks/fpn.py, FPN."""
    shapes = layer(f"neck.fpn_convs.#{len(channels)}.conv", 256, 256, 3, 3)
    for i, width in enumerate(channels):
        shapes |= layer(f"neck.lateral_convs.{i}.conv", 256, width, 1, 1)
    return shapes


def retinanet(c: list[int], classes: int = 80) -> Shapes:
    """The authors' neck starts at stage 1; its extra levels come from its last input."""
    return {
        **fpn(c[1:]),
        **layer("neck.fpn_convs.3.conv", 256, c[3], 3, 3),
        **layer("neck.fpn_convs.4.conv", 256, 256, 3, 3),
        # mmdet/models/dense_heads/retina_head.py, RetinaHead: 9 anchors
        **layer("bbox_head.cls_convs.#4.conv", 256, 256, 3, 3),
        **layer("bbox_head.reg_convs.#4.conv", 256, 256, 3, 3),
        **layer("bbox_head.retina_cls", 9 * classes, 256, 3, 3),
        **layer("bbox_head.retina_reg", 9 * 4, 256, 3, 3),
    }


def rcnn(c: list[int], classes: int, box: str, mask: str) -> Shapes:
    """mmdet/models: dense_heads/rpn_head.py with 3 anchors, and of roi_heads convfc_bbox_head.py
    and fcn_mask_head.py."""
    return {
        **fpn(c),
        **layer("rpn_head.rpn_conv", 256, 256, 3, 3),
        **layer("rpn_head.rpn_cls", 3, 256, 1, 1),
        **layer("rpn_head.rpn_reg", 12, 256, 1, 1),
        **layer(f"{box}.fc_cls", classes + 1, 1024),
        **layer(f"{box}.fc_reg", 4 * classes, 1024),
        **layer(f"{box}.shared_fcs.0", 1024, 256 * 49),
        **layer(f"{mask}.convs.#4.conv", 256, 256, 3, 3),
        **layer(f"{mask}.upsample", 256, 256, 2, 2),
        **layer(f"{mask}.conv_logits", classes, 256, 1, 1),
    }


def mask_rcnn(c: list[int], classes: int = 80) -> Shapes:
    shapes = rcnn(c, classes, "roi_head.bbox_head", "roi_head.mask_head")
    return {**shapes, **layer("roi_head.bbox_head.shared_fcs.1", 1024, 1024)}


def cascade_mask_rcnn(c: list[int], classes: int = 80) -> Shapes:
    """mmdet/models/roi_heads/cascade_roi_head.py: bbox_head and mask_head are lists of three."""
    shapes = rcnn(c, classes, "roi_head.bbox_head.#3", "roi_head.mask_head.#3")
    return {**shapes, **conv_bn("roi_head.bbox_head.#3.shared_convs.#4", 256, 256, 3, 3)}


def semantic_fpn(c: list[int], classes: int = 150) -> Shapes:
    """mmseg/models/decode_heads/fpn_head.py, FPNHead: convolutions and upsampling in turn."""
    shapes = {**fpn(c), **layer("decode_head.conv_seg", classes, 128, 1, 1)}
    for scale, place in ((0, 0), (1, 0), (2, 0), (2, 2), (3, 0), (3, 2), (3, 4)):
        width = 128 if place else 256
        shapes |= conv_bn(f"decode_head.scale_heads.{scale}.{place}", 128, width, 3, 3)
    return shapes


def upernet(c: list[int], classes: int = 150) -> Shapes:
    """mmseg/models/decode_heads: uper_head.py, psp_head.py (PPM), fcn_head.py (auxiliary), and
    decode_head.py (``conv_seg``)."""
    return {
        **layer("decode_head.conv_seg", classes, 512, 1, 1),
        **conv_bn("decode_head.psp_modules.#4.1", 512, c[3], 1, 1),
        **conv_bn("decode_head.bottleneck", 512, c[3] + 4 * 512, 3, 3),
        **conv_bn("decode_head.lateral_convs.0", 512, c[0], 1, 1),
        **conv_bn("decode_head.lateral_convs.1", 512, c[1], 1, 1),
        **conv_bn("decode_head.lateral_convs.2", 512, c[2], 1, 1),
        **conv_bn("decode_head.fpn_convs.#3", 512, 512, 3, 3),
        **conv_bn("decode_head.fpn_bottleneck", 512, 4 * 512, 3, 3),
        **layer("auxiliary_head.conv_seg", classes, 256, 1, 1),
        **conv_bn("auxiliary_head.convs.0", 256, c[2], 3, 3),
    }


DENSE = {f.__name__: f for f in (retinanet, mask_rcnn, cascade_mask_rcnn, semantic_fpn, upernet)}

# Of what holds tensors: the same names, types and values, to the last bit.
assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


def fill(shapes: Shapes) -> dict[str, Tensor]:
    """Values that differ between any two entries."""
    return {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        for name, shape in shapes.items()
    }


@lru_cache(maxsize=1)
def _fill_backbone(arch: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        own = CrossFormer(arch, final_norm=True).state_dict()
    return fill({name: tuple(value.shape) for name, value in own.items()})


def backbone_weights(arch: str, final_norm: bool = False) -> dict[str, Tensor]:
    weights = _fill_backbone(arch)
    return {n: v for n, v in weights.items() if final_norm or not n.startswith("norm.")}


def classifier_weights(arch: str, classes: int = 1000) -> dict[str, Tensor]:
    """The authors' classifier: the backbone's names as they are, and ``head``."""
    backbone = backbone_weights(arch, final_norm=True)
    return {**backbone, **fill(layer("head", classes, len(backbone["norm.weight"])))}


def as_in_mmpretrain(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names of a classifier, renamed by hand."""
    renamed = {"head.weight": "head.fc.weight", "head.bias": "head.fc.bias"}
    return {renamed.get(name, f"backbone.{name}"): value for name, value in weights.items()}


def dense_weights(kind: str, arch: str, classes: int) -> dict[str, Tensor]:
    """A detector or segmentor: the backbone, without final norm, and the kind's neck and heads."""
    backbone = {f"backbone.{name}": value for name, value in backbone_weights(arch).items()}
    width = len(backbone["backbone.patch_embed.norm.weight"])
    return {**backbone, **fill(DENSE[kind]([width * 2**stage for stage in range(4)], classes))}


def v1_buffers(weights: dict[str, Tensor], group: int = 7) -> dict[str, Tensor]:
    """What the first release stored for every block, with any ``backbone.`` in front."""
    blocks = [n.removesuffix("qkv.weight") for n in weights if n.endswith("attn.qkv.weight")]
    index = torch.zeros(group**2, group**2, dtype=torch.long)
    return {
        **{f"{block}biases": torch.zeros((2 * group - 1) ** 2, 2) for block in blocks},
        **{f"{block}relative_position_index": index.clone() for block in blocks},
    }


class CfgNode(dict):
    """A config of yacs 0.1.8, a dict whose flags are attributes; pickled under that name."""

    __module__ = "yacs.config"

    def __init__(self, **entries: object) -> None:
        super().__init__(entries)
        flags = dict(immutable=True, deprecated_keys=set(), renamed_keys={}, new_allowed=False)
        self.__dict__.update({f"__{flag}__": value for flag, value in flags.items()})


def save_classifier(path: Path, weights: dict[str, Tensor]) -> None:
    """Write what the authors' classification code saves, optimizer included."""
    parameter = nn.Parameter(weights["norm.bias"].clone())
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter])
    optimizer.step()
    content = {
        "model": OrderedDict(weights),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [1e-3], "t_initial": 300, "warmup_prefix": True},
        "max_accuracy": 82.5,
        "epoch": 299,
        "config": CfgNode(
            MODEL=CfgNode(TYPE="cross-scale", NUM_CLASSES=1000, GROUP_SIZE=[7, 7, 7, 7]),
            TRAIN=CfgNode(BASE_LR=1e-3, AUTO_RESUME=True, NAMES=("a", None)),
        ),
    }
    config = ModuleType("yacs.config")
    config.CfgNode = CfgNode
    assert "yacs" not in sys.modules
    with pytest.MonkeyPatch.context() as patch:  # what reads the file has to do without
        patch.setitem(sys.modules, "yacs", ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", config)
        torch.save(content, path)


def save_dense(path: Path, weights: dict[str, Tensor], classes: int) -> None:
    """Write what mmcv 1.x saves: a config's text and the data set's classes are in ``meta``."""
    meta = dict(mmcv_version="1.2.7", epoch=12, iter=7329, hook_msgs={"best_score": 0.454})
    meta |= dict(config="model = dict(type='MaskRCNN')\n", time="Mon Aug  2 10:00:00 2021")
    meta["CLASSES"] = tuple(f"class {i}" for i in range(classes))
    meta["PALETTE"] = np.array([[i % 256, 0, 255] for i in range(classes)])
    torch.save({"meta": meta, "state_dict": OrderedDict(weights), "optimizer": {}}, path)
