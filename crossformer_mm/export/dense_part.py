"""The part of a model that is one graph of tensors: no boxes are decoded, sorted or cropped."""

from collections.abc import Sequence

import torch
from mmengine.config import Config
from torch import Tensor, nn

from crossformer_mm.export.any_size import replace_size_dependent
from crossformer_mm.export.errors import ExportError
from crossformer_mm.trained_model import load_model

# What a detection head returns, each for every level.
HEAD_OUTPUTS = ("cls_score", "bbox_pred")


class DensePart(nn.Module):
    """Backbone, neck and dense head of a classifier, detector or segmentor.

    Args:
        model: A model of mmpretrain, mmdet or mmseg, in evaluation.

    Raises:
        ExportError: If its head is of no kind that is known here.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.neck = getattr(model, "neck", None)
        for name in ("head", "decode_head", "rpn_head", "bbox_head"):
            if isinstance(getattr(model, name, None), nn.Module):
                self.kind, self.head = name, getattr(model, name)
                break
        else:
            raise ExportError(f"a {type(model).__name__} has no head that can be exported")
        if isinstance(self.head, nn.ModuleList):
            raise ExportError(f"a {type(model).__name__} with several heads cannot be exported")
        replace_size_dependent(self.head)
        self.extra_levels = _take_over_extra_levels(self.neck)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the values of :meth:`named_outputs`: normalised images (B, C, H, W) -> outputs."""
        return tuple(self.named_outputs(image).values())

    def named_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of normalised images (B, C, H, W).

        Returns:
            ``logits`` of a classifier, (B, classes), or of a segmentor's decode head,
            (B, classes, h, w); of a one-stage detector ``cls_score_0``, ..., ``bbox_pred_0``, ...,
            finest level first; of a two-stage detector the same of its RPN with ``rpn_`` in front,
            after the maps of the neck, ``feature_0``, ..., which RoI heads take.
        """
        maps = self.backbone(image)
        if self.neck is not None:
            maps = self.neck(maps)
        for _ in range(self.extra_levels):
            maps = (*maps, maps[-1][:, :, ::2, ::2])
        outputs = self.head(maps)
        if self.kind in ("head", "decode_head"):
            return {"logits": outputs}
        if len(outputs) != len(HEAD_OUTPUTS):
            raise ExportError(f"a {type(self.head).__name__} gives more than scores and boxes")
        if self.kind == "bbox_head":
            return _number(HEAD_OUTPUTS, outputs)
        names = [f"rpn_{name}" for name in HEAD_OUTPUTS]
        return {**_number(["feature"], [maps]), **_number(names, outputs)}


def _take_over_extra_levels(neck: nn.Module | None) -> int:
    """Have an FPN leave out the levels that it makes by taking every other value.

    It calls that max pooling, with windows of one value, which would fix the size of the image.
    """
    if type(neck).__name__ != "FPN" or neck.add_extra_convs:
        return 0
    extra = max(0, neck.num_outs - len(neck.lateral_convs))
    neck.num_outs -= extra
    return extra


def _number(names: Sequence[str], levels: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    return {
        f"{name}_{level}": value
        for name, values in zip(names, levels, strict=True)
        for level, value in enumerate(values)
    }


def load_dense_part(cfg: Config, checkpoint: str, dynamic: bool) -> DensePart:
    """Build a config's model, load a checkpoint that must have all its weights, and take the part.

    For one image size, attention takes the plain path, which consists of PyTorch's own operators
    alone. For any size, it takes the one of :mod:`crossformer_mm.export.attention_in_onnx`.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit.
        ExportError: If the model has no dense head.
    """
    cfg.model.backbone.attention_path = "sdpa" if dynamic else "plain"
    model, _, _ = load_model(cfg, checkpoint, torch.device("cpu"))
    return DensePart(model.requires_grad_(False))
