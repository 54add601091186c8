"""Which heads of the libraries were tried over this backbone: a training step and a prediction.

The rest of a model is the library's own config: only the backbone is replaced, and what depends on
the number of its channels. Images and labels are random.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from torch import Tensor, nn

from crossformer_mm.engine.config import find_preprocessor, load_config
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.build import build_model
from crossformer_mm.utils.errors import one_line

C = [32, 64, 128, 256]  # channels of the four maps
BACKBONE = dict(
    type="CrossFormer",
    arch=dict(embed_dims=C[0], depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8)),
    group_size=7,
    interval=(8, 4, 2, 1),
)
LAST_THREE = dict(out_indices=(1, 2, 3))
POOLED = dict(out_indices=(3,), final_norm=True)
IMAGE = (3, 250, 310)
PADDED = (256, 320)  # instead of 512 x 512 or 1024 x 1024, where a config pads to a size
IMAGES, CLASSES = 2, 10
# Of detectors: untrained ones are sure of nothing, and each mask takes time.
TESTED = dict(score_thr=0.0, filter_thr=0.0, max_per_img=10, nms_pre=100)


class Head(NamedTuple):
    """A head to try; ``replaced`` has entries of a config's ``model`` by their dotted names."""

    name: str
    config: str
    replaced: Mapping[str, object]
    backbone: Mapping[str, object] = {}
    backbone_at: str = "backbone"


class Trial(NamedTuple):
    """What became of a head: parameters of the whole model, and ``'ok'`` or why not."""

    params: int
    training: str
    prediction: str


FPN = {"neck.in_channels": C}
CHANNELS, LAST = {"decode_head.in_channels": C}, {"head.in_channels": C[3]}
LAST_TWO = {"decode_head.in_channels": C[3], "auxiliary_head.in_channels": C[2]}
ARCFACE = dict(type="ArcFaceClsHead", num_classes=CLASSES, in_channels=C[3])
HEADS = (
    Head("Faster R-CNN", "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", FPN),
    Head("FCOS", "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", FPN),
    Head("ATSS", "mmdet::atss/atss_r50_fpn_1x_coco.py", FPN),
    Head("GFL", "mmdet::gfl/gfl_r50_fpn_1x_coco.py", FPN),
    Head("Cascade R-CNN", "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py", FPN),
    Head("Mask R-CNN, PointRend", "mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py", FPN),
    Head("SOLOv2", "mmdet::solov2/solov2_r50_fpn_1x_coco.py", FPN),
    Head("CondInst", "mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py", FPN),
    Head(
        "Mask2Former, instances",
        "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
        {"panoptic_head.in_channels": C},
    ),
    Head(
        "Deformable DETR",
        "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
        {"neck.in_channels": C[1:]},
        LAST_THREE,
    ),
    Head(
        "DINO",
        "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
        {"neck.in_channels": C[1:]},
        LAST_THREE,
    ),
    Head("PSPNet", "mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py", LAST_TWO),
    Head(
        "DeepLabV3+",
        "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py",
        {**LAST_TWO, "decode_head.c1_in_channels": C[0]},
    ),
    Head(
        "OCRNet",
        "mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py",
        {
            "decode_head.0.in_channels": C,
            "decode_head.0.channels": sum(C),
            "decode_head.1.in_channels": C,
        },
    ),
    Head(
        "K-Net",
        "mmseg::knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py",
        {
            "decode_head.kernel_generate_head.in_channels": C,
            "auxiliary_head.in_channels": C[2],
        },
    ),
    Head(
        "SegFormer head", "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py", CHANNELS
    ),
    Head(
        "Mask2Former, semantic",
        "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
        CHANNELS,
    ),
    Head("PointRend, semantic", "mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py", FPN),
    Head("linear classifier", "mmpretrain::resnet/resnet50_8xb32_in1k.py", LAST, POOLED),
    Head("multi-label, CSRA", "mmpretrain::csra/resnet101-csra_1xb16_voc07-448px.py", LAST, POOLED),
    Head("ArcFace", "mmpretrain::resnet/resnet50_8xb32_in1k.py", {"head": ARCFACE}, POOLED),
    Head(
        "ImageToImageRetriever with ArcFace",
        "mmpretrain::arcface/resnet50-arcface_8xb32_inshop.py",
        {**LAST, "prototype": torch.eye(4, C[3])},
        POOLED,
        "image_encoder.0",
    ),
)


def config_of(head: Head) -> Config:
    """Read the library's config of a head and replace the backbone and what depends on it."""
    cfg = load_config(head.config)
    entries = {**head.replaced, head.backbone_at: {**BACKBONE, **head.backbone}}
    for name, value in entries.items():
        *path, last = [int(key) if key.isdigit() else key for key in name.split(".")]
        place = cfg.model
        for key in path:
            place = place[key]
        place[last] = value
    if "pretrained" in cfg.model:  # the weights of the other backbone
        cfg.model.pretrained = None
    preprocessor = find_preprocessor(cfg)
    for padding in (preprocessor, *(preprocessor.get("batch_augments") or ())):
        if "size" in padding:
            padding["size"] = PADDED
    _replace_all(cfg.model.get("test_cfg"), TESTED)
    return cfg


def _replace_all(value: object, entries: Mapping) -> None:
    """Replace entries of a dict, and of those in it, that are there."""
    if isinstance(value, dict):
        value.update({key: entry for key, entry in entries.items() if key in value})
        for inner in value.values():
            _replace_all(inner, entries)


def try_head(head: Head) -> Trial:
    """Build a head's model; take a training step and predict, on random images."""
    torch.manual_seed(0)
    try:
        cfg = config_of(head)
        model, batch = revert_sync_batchnorm(build_model(cfg)), make_batch(cfg)
        model.init_weights()
    except Exception as error:
        return Trial(0, *[_reason(error)] * 2)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Trial(params, *[_result_of(step, model, batch) for step in (_train, _predict)])


def _result_of(step: Callable, model: nn.Module, batch: Mapping) -> str:
    try:
        step(model, batch)
    except Exception as error:
        return _reason(error)
    return "ok"


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def _train(model: nn.Module, batch: Mapping) -> None:
    """Take a step; raise if a parameter of the backbone has no finite gradient."""
    model.train()
    data = model.data_preprocessor(batch, training=True)
    losses, _ = model.parse_losses(model(**data, mode="loss"))
    losses.backward()
    backbone = next(m for m in model.modules() if isinstance(m, CrossFormer))
    for name, parameter in backbone.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise ValueError(f"backbone.{name} has no finite gradient")


def _predict(model: nn.Module, batch: Mapping) -> None:
    """Predict; raise if an image has no prediction, or one that is empty or not finite."""
    model.eval()
    with torch.no_grad():
        samples = model.test_step(batch)
    if len(samples) != IMAGES:
        raise ValueError(f"{len(samples)} predictions of {IMAGES} images")
    for sample in samples:
        found = [value for name, value in sample.items() if name.startswith("pred_")]
        tensors = [t for each in found for t in _tensors(each)]
        if not tensors or not all(t.numel() and t.isfinite().all() for t in tensors):
            raise ValueError("a prediction is missing, empty or not finite")


def _tensors(value: object) -> list[Tensor]:
    """All tensors in what a library predicts for an image, such as boxes, labels and masks."""
    if torch.is_tensor(value):
        return [value]
    return (
        [t for each in value.values() for t in _tensors(each)] if hasattr(value, "values") else []
    )


def make_batch(cfg: Config) -> dict:
    """Two random images with labels, as the library of a config takes them."""
    torch.manual_seed(0)
    if cfg.default_scope == "mmdet":
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(IMAGES, IMAGE, num_items=[3, 5], num_classes=CLASSES, with_mask=True)
    make = dict(mmseg=_segments, mmpretrain=_classes)[cfg.default_scope]
    image = lambda: torch.randint(256, IMAGE, dtype=torch.uint8)  # noqa: E731
    return pseudo_collate([dict(inputs=image(), data_samples=make(n)) for n in range(IMAGES)])


def _segments(number: int) -> object:
    from mmseg.structures import SegDataSample

    # In blocks: heads that match segments sample points of them.
    labels = torch.randint(CLASSES, (5, 5)).repeat_interleave(50, 0).repeat_interleave(62, 1)
    sizes = dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), IMAGE[1:])
    return SegDataSample(metainfo=sizes, gt_sem_seg=PixelData(data=labels[None]))


def _classes(number: int) -> object:
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(number + 1)
