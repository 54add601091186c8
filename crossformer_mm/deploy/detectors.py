"""Whole detectors as one graph: RetinaNet, Mask R-CNN and Cascade Mask R-CNN, from image to boxes.

What mmdet's heads do to one image after another is done here to a batch, with :mod:`.postprocess`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crossformer_mm.deploy.base import WholeModel
from crossformer_mm.deploy.postprocess import (
    Detections,
    best_entries,
    crop_rois,
    paste_masks,
    suppress,
    take_rows,
)
from crossformer_mm.utils.errors import ExportError


class WholeDetector(WholeModel):
    """Boxes of images (B, 3, H, W), and masks.

    For one image ``boxes`` (N, 4), xyxy in pixels, ``scores`` and ``labels`` (N,), best first; with
    masks, ``masks`` (N, 28, 28), probabilities over each box, or pasted (N, H, W) of uint8. For
    several, the same with (B, K) for (N,), and ``counts`` (B,): how many of the K are real.

    Args:
        pasted: Whether to resize masks to the image and threshold them.

    Raises:
        ExportError: If the model is of another kind; the message names its part.
    """

    def __init__(self, model: nn.Module, settings: Mapping, pasted: bool) -> None:
        super().__init__(model, settings)
        self.has_masks = bool(getattr(model, "with_mask", False))
        if pasted and not self.has_masks:
            raise ExportError(f"--paste-masks: a {type(model).__name__} has no masks")
        self.pasted = pasted
        check_detector(model)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Detect; what is dropped on the way is decided by the config's ``test_cfg``."""
        shape, maps = image.shape[-2:], self.maps(image)
        two_stage = hasattr(self.model, "roi_head")
        dense = self.model.rpn_head if two_stage else self.model.bbox_head
        found = detect_densely(dense, maps, shape)
        if not two_stage:
            return self._name(drop_padding(found))
        roi_head = self.model.roi_head
        found = drop_padding(classify_rois(roi_head, maps, found, shape))
        if not self.has_masks:
            return self._name(found)
        masks = mask_rois(roi_head, maps, found)
        if self.pasted:
            whole = paste_masks(masks, found.boxes.flatten(0, 1), *shape)
            masks = (whole >= roi_head.test_cfg.mask_thr_binary).to(torch.uint8)
        return self._name(found, masks=masks.unflatten(0, found.scores.shape))

    @staticmethod
    def _name(found: Detections, **more: Tensor) -> dict[str, Tensor]:
        """Name the outputs; those of a single image have no dimension for images, and no counts."""
        outputs = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels, **more}
        if len(found.counts) == 1:
            return {name: output[0] for name, output in outputs.items()}
        return {**outputs, "counts": found.counts}


def detect_densely(head: nn.Module, maps: tuple[Tensor, ...], shape: tuple[int, int]) -> Detections:
    """Detections of a RetinaNet's head, or the proposals of an RPN, whose labels mean nothing."""
    cfg, classes = head.test_cfg, head.cls_out_channels
    is_rpn = not cfg.get("score_thr", 0)
    logits, deltas = head(maps)
    sizes = [level.shape[-2:] for level in logits]
    priors = head.prior_generator.grid_priors(sizes, dtype=deltas[0].dtype, device=deltas[0].device)
    boxes, scores, groups = [], [], []
    for level, (logit, delta, prior) in enumerate(zip(logits, deltas, priors, strict=True)):
        logit = logit.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, classes))
        delta = delta.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        limit = cfg.get("nms_pre", -1)
        best, rows, labels = best_entries(logit, limit if limit > 0 else logit.shape[1:].numel())
        decoded = head.bbox_coder.decode(
            prior[rows.flatten()], take_rows(delta, rows).flatten(0, 1), max_shape=shape
        )
        boxes.append(decoded.unflatten(0, rows.shape))
        scores.append(best.sigmoid())
        groups.append(torch.full_like(labels, level) if is_rpn else labels)
    boxes, scores, groups = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(groups, 1)
    real = scores > cfg.score_thr if not is_rpn else torch.ones_like(scores, dtype=torch.bool)
    if cfg.get("min_bbox_size", -1) >= 0:
        real = real & (boxes[..., 2:] - boxes[..., :2] > cfg.min_bbox_size).all(dim=-1)
    return suppress(boxes, scores, groups, real, cfg.nms.iou_threshold, cfg.max_per_img)


def drop_padding(found: Detections) -> Detections:
    """Cut the padding off the detections of a single image; several keep it."""
    if len(found.counts) > 1:
        return found
    number = torch.arange(found.scores.shape[1], device=found.counts.device)
    real = (number < found.counts).nonzero().squeeze(1)
    if torch.compiler.is_exporting():
        # mmcv's layers ask whether there is anything; the graph is the same if there is not.
        torch._check(real.shape[0] > 0)
    kept = (x.index_select(1, real) for x in (found.boxes, found.scores, found.labels))
    return Detections(*kept, found.counts)


def classify_rois(
    roi_head: nn.Module, maps: tuple[Tensor, ...], found: Detections, shape: tuple[int, int]
) -> Detections:
    """Detections from proposals by one box head, or by a cascade of several."""
    stages = len(roi_head.bbox_head) if isinstance(roi_head.bbox_head, nn.ModuleList) else 1
    boxes, logits = found.boxes, 0.0
    for stage in range(stages):
        extractor, head = (
            _stage(roi_head.bbox_roi_extractor, stage),
            _stage(roi_head.bbox_head, stage),
        )
        own, deltas = head(crop_for(extractor, maps, boxes))
        logits = logits + own
        if stage < stages - 1:
            best = own[:, :-1].argmax(dim=1)
            refined = head.regress_by_class(
                boxes.flatten(0, 1), best, deltas, dict(img_shape=shape)
            )
            boxes = refined.unflatten(0, boxes.shape[:2])
    scores = (logits / stages).softmax(dim=-1)[:, :-1]
    boxes = _boxes_of_classes(head, boxes.flatten(0, 1), deltas, shape)
    batch, cfg = len(found.counts), roi_head.test_cfg
    number = torch.arange(found.scores.shape[1], device=scores.device)
    is_proposal = (number < found.counts[:, None]).repeat_interleave(scores.shape[1], 1)
    scores = scores.reshape(batch, -1)
    labels = torch.arange(head.num_classes, device=scores.device).repeat(found.scores.numel())
    real = (scores > cfg.score_thr) & is_proposal
    return suppress(
        boxes.reshape(batch, -1, 4),
        scores,
        labels.view(batch, -1),
        real,
        cfg.nms.iou_threshold,
        cfg.max_per_img,
    )


def mask_rois(roi_head: nn.Module, maps: tuple[Tensor, ...], found: Detections) -> Tensor:
    """Probabilities of the mask of each detection's class (B * K, h, w), over a cascade's mean."""
    stages = len(roi_head.mask_head) if isinstance(roi_head.mask_head, nn.ModuleList) else 1
    total, labels = 0.0, found.labels.flatten()
    for stage in range(stages):
        extractor = _stage(roi_head.mask_roi_extractor, stage)
        head = _stage(roi_head.mask_head, stage)
        masks = head(crop_for(extractor, maps, found.boxes)).sigmoid()
        if not head.class_agnostic:
            index = labels[:, None, None, None].expand(-1, 1, *masks.shape[-2:])
            masks = masks.gather(1, index)
        total = total + masks[:, 0]
    return total / stages


def crop_for(extractor: nn.Module, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """What a ``SingleRoIExtractor`` cuts out of the maps: (B, K, 4) -> (B * K, C, h, w)."""
    layers = extractor.roi_layers
    maps = maps[: len(layers)]
    flat = boxes.flatten(0, 1)
    levels = extractor.map_roi_levels(torch.cat([flat[:, :1], flat], dim=1), len(maps))
    scales = [layer.spatial_scale for layer in layers]
    settings = (layers[0].output_size, scales, layers[0].aligned)
    return crop_rois(maps, boxes, levels.view(boxes.shape[:2]), *settings)


def _stage(part: nn.Module, stage: int) -> nn.Module:
    return part[stage] if isinstance(part, nn.ModuleList) else part


def _boxes_of_classes(
    head: nn.Module, boxes: Tensor, deltas: Tensor, shape: tuple[int, int]
) -> Tensor:
    """(N, 4) and deltas (N, 4) or (N, classes * 4) -> (N, classes, 4)."""
    kinds = deltas.shape[1] // 4
    flat = head.bbox_coder.decode(
        boxes.repeat_interleave(kinds, 0), deltas.reshape(-1, 4), max_shape=shape
    )
    return flat.view(-1, kinds, 4).expand(-1, head.num_classes, -1)


def check_detector(model: nn.Module) -> None:
    """Raise ExportError unless the model is what this module knows how to write as one graph."""
    from mmdet.models import (
        BBoxHead,
        CascadeRoIHead,
        FCNMaskHead,
        RetinaHead,
        RPNHead,
        SingleRoIExtractor,
        StandardRoIHead,
    )
    from mmdet.models.task_modules import DeltaXYWHBBoxCoder

    children = dict(model.named_children())
    dense = children.get("rpn_head") or children.get("bbox_head")
    expected = [
        (dense, (RetinaHead, RPNHead)),
        (getattr(dense, "bbox_coder", None), DeltaXYWHBBoxCoder),
    ]
    if "roi_head" in children:
        roi_head = children["roi_head"]
        expected.append((roi_head, (StandardRoIHead, CascadeRoIHead)))
        parts = dict(bbox_head=BBoxHead, bbox_roi_extractor=SingleRoIExtractor)
        if getattr(roi_head, "with_mask", False):
            parts |= dict(mask_head=FCNMaskHead, mask_roi_extractor=SingleRoIExtractor)
        expected += [(_stage(getattr(roi_head, name), 0), kind) for name, kind in parts.items()]
    for part, kind in expected:
        if not isinstance(part, kind):
            raise ExportError(
                f"a {type(part).__name__} in a {type(model).__name__} is not exported"
            )
    for cfg in (dense.test_cfg, getattr(children.get("roi_head"), "test_cfg", None)):
        kind = "nms" if cfg is None else cfg.nms.get("type", "nms")
        if kind != "nms":
            raise ExportError(f"suppression by {kind!r} is not exported, only by 'nms'")
    if not dense.use_sigmoid_cls:
        raise ExportError(f"a {type(dense).__name__} without sigmoid is not exported")
