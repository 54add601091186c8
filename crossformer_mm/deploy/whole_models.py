"""Whole models as one graph: from an image as it comes from a file to what a user asks for."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from crossformer_mm.deploy.base import WholeModel
from crossformer_mm.deploy.detectors import WholeDetector
from crossformer_mm.engine.config import find_preprocessor
from crossformer_mm.utils.errors import ExportError


class WholeClassifier(WholeModel):
    """``scores`` (B, classes) of images (B, 3, H, W)."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Scores are probabilities of one class each, or of every class by itself (multi-label)."""
        from mmpretrain.models.heads import MultiLabelClsHead

        logits = self.model.head(self.maps(image))
        if isinstance(self.model.head, MultiLabelClsHead):
            return {"scores": logits.sigmoid()}
        return {"scores": logits.softmax(dim=1)}


class WholeSegmentor(WholeModel):
    """``logits`` (B, classes, H, W) of images (B, 3, H, W), or ``labels`` (B, H, W) of uint8.

    Args:
        labels: Whether to give labels.

    Raises:
        ExportError: If there are more than 256 classes, and labels are asked for.
    """

    def __init__(self, model: nn.Module, settings: Mapping, labels: bool) -> None:
        super().__init__(model, settings)
        self.labels = labels
        if labels and model.decode_head.num_classes > 256:
            raise ExportError("--labels: a byte holds 256 classes, the model has more")

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits are resized to the padded image, as mmseg does, and cut to the image."""
        head, (height, width) = self.model.decode_head, image.shape[-2:]
        padded = [size + -size % self.preprocess.divisor for size in (height, width)]
        logits = F.interpolate(
            head(self.maps(image)), padded, mode="bilinear", align_corners=head.align_corners
        )[..., :height, :width]
        if not self.labels:
            return {"logits": logits}
        if head.out_channels == 1:
            return {"labels": (logits.sigmoid() > head.threshold)[:, 0].to(torch.uint8)}
        return {"labels": logits.argmax(dim=1).to(torch.uint8)}


def whole_model(
    model: nn.Module, cfg: Config, labels: bool = False, pasted: bool = False
) -> WholeModel:
    """Wrap a model of any of the three libraries; the arguments are those of its class here.

    Raises:
        ExportError: If the model, or an option for it, is of a kind that is not exported.
    """
    settings, scope = find_preprocessor(cfg), cfg.get("default_scope")
    if labels and scope != "mmseg":
        raise ExportError("--labels is for segmentors")
    if pasted and scope != "mmdet":
        raise ExportError("--paste-masks is for detectors")
    if scope == "mmpretrain" and hasattr(model, "head"):
        return WholeClassifier(model, settings).eval()
    if scope == "mmseg" and not isinstance(getattr(model, "decode_head", None), nn.ModuleList):
        return WholeSegmentor(model, settings, labels).eval()
    if scope == "mmdet":
        return WholeDetector(model, settings, pasted).eval()
    raise ExportError(f"a {type(model).__name__} of {scope} is of no kind that is exported")
