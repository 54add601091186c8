"""The part of a model that is one graph of tensors: no boxes are decoded, sorted or cropped."""

from collections.abc import Sequence

import torch
from mmengine.config import Config
from torch import Tensor, nn

from crossformer_mm.engine.trained_model import load_model

# The one head that is exported: of a classifier, segmentor, two-stage and one-stage detector.
HEADS = ("head", "decode_head", "rpn_head", "bbox_head")


class ExportError(ValueError):
    """A model cannot be exported as asked; the message says why in one line."""


class DensePart(nn.Module):
    """Backbone, neck and dense head of a classifier, segmentor or detector.

    Args:
        model: A model of mmpretrain, mmseg or mmdet, in evaluation mode.

    Raises:
        ExportError: If it has no dense head, or several.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.neck = getattr(model, "neck", None)
        heads = {name: getattr(model, name, None) for name in HEADS}
        found = [name for name, head in heads.items() if isinstance(head, nn.Module)]
        if not found or isinstance(heads[found[0]], nn.ModuleList):
            count = "several heads" if found else "no dense head"
            raise ExportError(f"a {type(model).__name__} with {count} cannot be exported")
        self.kind = found[0]
        self.head = heads[self.kind]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of normalised images (B, C, H, W).

        Returns:
            ``logits`` of a classifier (B, classes), or of a segmentor's decode head
            (B, classes, h, w), not resized to the image. Of a one-stage detector
            ``cls_score_0``, ..., ``bbox_pred_0``, ..., finest level first. Of a two-stage detector
            ``feature_0``, ..., the maps of the neck that RoI heads take, then the outputs of its
            RPN, ``rpn_cls_score_0``, ..., ``rpn_bbox_pred_0``, ...

        Raises:
            ExportError: If a detector's head returns more than scores and boxes.
        """
        maps = self.backbone(image)
        if self.neck is not None:
            maps = self.neck(maps)
        outputs = self.head(maps)
        if self.kind in ("head", "decode_head"):
            return {"logits": outputs}
        if len(outputs) != 2:
            raise ExportError(f"a {type(self.head).__name__} gives more than scores and boxes")
        scores, boxes = outputs
        if self.kind == "bbox_head":
            return {**_number("cls_score", scores), **_number("bbox_pred", boxes)}
        return {
            **_number("feature", maps),
            **_number("rpn_cls_score", scores),
            **_number("rpn_bbox_pred", boxes),
        }


def _number(name: str, levels: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}_{level}": value for level, value in enumerate(levels)}


def load_dense_part(cfg: Config, checkpoint: str) -> DensePart:
    """Build the model of a config with all its weights from a checkpoint, and take its dense part.

    Args:
        cfg: The config; attention is set to ``'eager'``, which uses PyTorch's own operators alone.
        checkpoint: Path or URL.

    Raises:
        CheckpointError: If the checkpoint cannot be read or lacks a weight of the model.
        ExportError: If the model has no dense head, or several.
    """
    cfg.model.backbone.attn_backend = "eager"
    model, _, _ = load_model(cfg, checkpoint, torch.device("cpu"))
    return DensePart(model).eval()
