"""The part of a model that is one graph of tensors: no boxes are decoded, sorted or cropped."""

from collections.abc import Sequence

from torch import Tensor, nn

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
        found = [name for name in HEADS if isinstance(getattr(model, name, None), nn.Module)]
        self.kind = found[0] if found else None
        self.head = getattr(model, self.kind) if found else None
        if not found or isinstance(self.head, nn.ModuleList):
            count = "several heads" if found else "no dense head"
            raise ExportError(f"a {type(model).__name__} with {count} cannot be exported")

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
        maps = maps if self.neck is None else self.neck(maps)
        outputs = self.head(maps)
        if self.kind in ("head", "decode_head"):
            return {"logits": outputs}
        if len(outputs) != 2:
            raise ExportError(f"a {type(self.head).__name__} gives more than scores and boxes")
        if self.kind == "bbox_head":
            return _number(cls_score=outputs[0], bbox_pred=outputs[1])
        return _number(feature=maps, rpn_cls_score=outputs[0], rpn_bbox_pred=outputs[1])


def _number(**levels: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}_{i}": level for name, of in levels.items() for i, level in enumerate(of)}
