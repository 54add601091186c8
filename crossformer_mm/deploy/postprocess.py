"""From a detector's raw outputs to its detections, as one graph of tensors of fixed shapes.

What the libraries do with lists of changing length is done here with the best K entries and a mark
of which of them are real, so that a runtime needs no more than ONNX's own operators.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align

LOWEST = -1.0  # below every score


class Detections(NamedTuple):
    """The best K of every image: ``boxes`` (B, K, 4), xyxy in pixels, ``scores`` and ``labels``
    (B, K), best first, and ``counts`` (B,): the entries after the first ``counts`` are padding."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor


def best_entries(logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the highest logits of every image: (B, N, classes) -> three of (B, K), best first.

    Returns:
        The logits, and the row and the class of each. K is ``limit``, or N * classes if less.
    """
    batch, rows, classes = logits.shape
    if rows <= limit:
        row = torch.arange(rows, device=logits.device).expand(batch, -1)
    else:  # the best entries are among the rows with the best maxima, which are fewer
        row = logits.amax(dim=-1).topk(limit).indices
    kept = take_rows(logits, row).flatten(1)
    values, index = kept.topk(min(limit, kept.shape[1]))
    return values, row.gather(1, index // classes), index % classes


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """(B, N, C) at rows (B, K) -> (B, K, C)."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, real: Tensor, iou_threshold: float, limit: int
) -> Detections:
    """Non-maximum suppression inside the groups (classes, or levels of a pyramid) of each image.

    Args:
        boxes: (B, N, 4).
        scores: (B, N), not negative.
        groups: (B, N), whole numbers; they become the labels.
        real: (B, N), which entries take part.
        iou_threshold: A box is dropped that overlaps a better one of its group by more.
        limit: K; it is N if that is less.
    """
    images = zip(boxes, scores, groups, real, strict=True)
    best = [_suppress_one(*image, iou_threshold, min(limit, scores.shape[1])) for image in images]
    values, index = (torch.stack(parts) for parts in zip(*best, strict=True))
    found = values > LOWEST
    kept_boxes = take_rows(boxes, index) * found[..., None]
    labels = groups.gather(1, index) * found
    return Detections(kept_boxes, values.clamp(min=0), labels, found.sum(dim=1))


def _suppress_one(
    boxes: Tensor, scores: Tensor, groups: Tensor, real: Tensor, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    candidates = real.nonzero().squeeze(1)
    boxes, groups = boxes[candidates], groups[candidates]
    # Groups are moved apart, as far as mmcv moves them: by the largest coordinate and one more.
    extent = torch.cat([boxes, boxes.new_zeros(1, 4)]).amax(dim=(0, 1)) + 1
    apart = boxes + (groups.to(boxes.dtype) * extent)[:, None]
    kept = candidates[nms(apart, scores[candidates], iou_threshold)]
    left = torch.full_like(scores, LOWEST).scatter(0, kept, scores[kept])
    return left.topk(limit)


def crop_rois(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    size: tuple[int, int],
    scales: Sequence[float],
    aligned: bool,
) -> Tensor:
    """RoIAlign of every box on the map of its level.

    Args:
        maps: One (B, C, h, w) per level.
        boxes: (B, K, 4).
        levels: (B, K), which map each box is cut from.
        size: Height and width of what is returned.
        scales: Of each level, its pixels per pixel of the image.
        aligned: Whether pixels are shifted by a half, as in mmcv's ``RoIAlign``.

    Returns:
        (B * K, C, height, width).
    """
    image = torch.arange(len(levels), device=boxes.device).to(boxes.dtype)
    image = image[:, None].expand(levels.shape).reshape(-1, 1)
    flat, features = boxes.flatten(0, 1), None
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        here = (levels == level).view(-1, 1)
        # Boxes of other levels become empty ones, which cost nothing.
        rois = torch.cat([image, flat * here], dim=1)
        found = roi_align(x, rois, size, scale, sampling_ratio=0, aligned=aligned)
        features = found if level == 0 else torch.where(here[..., None, None], found, features)
    return features


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Resize each mask to its box: (N, h, w) and (N, 4) -> (N, height, width), zero outside."""
    x0, y0, x1, y1 = boxes[..., None].unbind(1)
    y = (torch.arange(height, device=boxes.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(width, device=boxes.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack(
        [x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1
    )
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
