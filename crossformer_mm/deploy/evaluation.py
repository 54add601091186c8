"""An exported model in the place of a library's own, for its metrics, pictures and inferencers."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from crossformer_mm.deploy.compare import split_images
from crossformer_mm.deploy.postprocess import paste_masks
from crossformer_mm.deploy.runtimes import ExportedModel


class StandIn(BaseModel):
    """Predicts with an exported model what a model of mmpretrain, mmdet or mmseg would.

    Args:
        exported: The file, running.
        library: The library's model, which says how results are brought back to the image; its
            weights do not matter.
    """

    def __init__(self, exported: ExportedModel, library: nn.Module) -> None:
        super().__init__()
        self.exported, self.library = exported, library

    def test_step(self, data: Mapping) -> Sequence:
        """Predict for images in BGR, of the size that the file takes; returns data samples."""
        images = torch.stack(list(data["inputs"]))[:, [2, 1, 0]]
        size, samples = self.exported.shape[0], data["data_samples"]
        missing = size - len(images)  # of the last batch
        padded = torch.cat([images, images[:1].expand(missing, -1, -1, -1)])
        found = split_images(self.exported(padded.numpy()))
        for sample, one in zip(samples, found, strict=False):
            self._fill(sample, one)
        return samples

    def forward(self, inputs: Tensor, data_samples: Sequence, mode: str = "predict") -> Sequence:
        """The same, for callers of a model itself."""
        return self.test_step(dict(inputs=inputs, data_samples=data_samples))

    def _fill(self, sample: object, found: Mapping[str, Tensor]) -> None:
        if "boxes" in found:
            sample.pred_instances = self._to_instances(sample.metainfo, found)
        elif "logits" in found:
            self.library.postprocess_result(found["logits"][None], [sample])
        elif "labels" in found:
            labels = _to_image(found["labels"][None], sample.metainfo)
            sample.set_data({"pred_sem_seg": PixelData(data=labels.long())})
        else:
            scores = found["scores"]
            sample.set_pred_score(scores).set_pred_label(scores.argmax(dim=-1, keepdim=True))

    def _to_instances(self, meta: Mapping, found: Mapping[str, Tensor]) -> InstanceData:
        boxes = found["boxes"] / torch.tensor([*meta["scale_factor"]] * 2)
        result = InstanceData(bboxes=boxes, scores=found["scores"], labels=found["labels"])
        masks, shape = found.get("masks"), meta["ori_shape"][:2]
        if masks is None:
            return result
        if masks.is_floating_point():
            threshold = self.library.test_cfg.rcnn.mask_thr_binary
            one_by_one = zip(masks.split(1), boxes.split(1), strict=True)
            pasted = [paste_masks(*pair, *shape) >= threshold for pair in one_by_one]
            result.masks = torch.cat([torch.zeros(0, *shape, dtype=torch.bool), *pasted])
        else:
            result.masks = _to_image(masks, meta).bool()
        return result


def _to_image(labels: Tensor, meta: Mapping) -> Tensor:
    """Cut the letterbox's filling off whole numbers (N, H, W), and resize to the image."""
    _, right, _, bottom = meta.get("padding_size", (0, 0, 0, 0))
    labels = labels[:, : labels.shape[1] - bottom, : labels.shape[2] - right]
    return F.interpolate(labels[None].float(), meta["ori_shape"][:2], mode="nearest")[0].to(
        labels.dtype
    )
