"""The models that are compared: CrossFormer, models of configs, and the libraries' Swin-T."""

from importlib.util import find_spec

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from crossformer_mm.benchmark.case import Case
from crossformer_mm.flops import build_model
from crossformer_mm.launch import load_config
from crossformer_mm.models import ATTENTION_PATHS, CrossFormer

DENSE_HEADS = ("head", "decode_head", "auxiliary_head", "rpn_head", "bbox_head")


def build_contender(case: Case, name: str) -> nn.Module:
    """Build the model of a contender, with random weights, on the CPU.

    Raises:
        ModuleNotFoundError: If the contender's library is not installed.
    """
    if case.config is not None:
        return build_configured(read_config(case), name)
    if name in ATTENTION_PATHS:
        return CrossFormer(**case.backbone, attention_path=name)
    if find_spec(name) is None:
        raise ModuleNotFoundError(f"{name} is not installed")
    return SWIN_BUILDERS[name](case)


def read_config(case: Case) -> Config:
    """Read the config of a case; one that cannot be read ends the program."""
    return load_config(case.config, case.cfg_options)


def build_configured(cfg: Config, attention_path: str) -> nn.Module:
    """Build the whole model of a config with another attention path."""
    cfg.model.backbone.attention_path = attention_path
    # In one process it does the same, but needs a GPU.
    return revert_sync_batchnorm(build_model(cfg))


def dense_outputs(model: nn.Module, image: Tensor) -> list:
    """Run backbone, neck and the heads that need nothing but feature maps."""
    maps = model.extract_feat(image)
    heads = (getattr(model, name, None) for name in DENSE_HEADS)
    return [head(maps) for head in heads if isinstance(head, nn.Module)]


def data_samples(case: Case) -> list | None:
    """What a detector has to know of the images besides their pixels; others need nothing."""
    if case.config is None or read_config(case).get("default_scope") != "mmdet":
        return None
    from mmdet.structures import DetDataSample

    sizes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), case.shape)
    metainfo = dict(sizes, scale_factor=(1.0, 1.0))
    return [DetDataSample(metainfo=metainfo) for _ in range(case.batch)]


def _mmdet_swin(case: Case) -> nn.Module:
    from mmdet.models import SwinTransformer

    return SwinTransformer(with_cp=case.backbone.get("with_cp", False))


def _mmpretrain_swin(case: Case) -> nn.Module:
    from mmpretrain.models import SwinTransformer

    with_cp = case.backbone.get("with_cp", False)
    return SwinTransformer(arch="tiny", out_indices=(0, 1, 2, 3), with_cp=with_cp)


def _timm_swin(case: Case) -> nn.Module:
    import timm

    name = "swin_tiny_patch4_window7_224"
    model = timm.create_model(name, features_only=True, img_size=case.shape)
    if case.backbone.get("with_cp"):
        model.set_grad_checkpointing(True)
    return model


SWIN_BUILDERS = {"mmdet": _mmdet_swin, "mmpretrain": _mmpretrain_swin, "timm": _timm_swin}
