"""Whether an exported model gives what the library's own model predicts, and how far it is off."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from crossformer_mm.deploy.postprocess import paste_masks
from crossformer_mm.deploy.runtimes import ExportedModel
from crossformer_mm.utils.errors import ExportError

# A detection is found again by a box of its class that overlaps it by this much.
SAME_BOX = 0.5


class Tolerance(NamedTuple):
    """How far an exported model may be off.

    Args:
        values: Of scores, logits and coordinates, relative to the largest of them.
        missed: Share of detections that are not found again, and of pixels of another class.
        overlap: Of matched boxes and masks (intersection over union), on average.
    """

    values: float
    missed: float
    overlap: float


TOLERANCES = {"f32": Tolerance(1e-3, 0.01, 0.99), "int8": Tolerance(0.5, 0.5, 0.8)}


@torch.no_grad()
def predict(model: nn.Module, scope: str, images: np.ndarray) -> list[dict[str, Tensor]]:
    """What a library's model predicts, image by image, under the names of the exported outputs.

    Args:
        model: Of mmpretrain, mmdet or mmseg, in evaluation mode.
        scope: Which of them.
        images: (N, C, H, W) of uint8; three channels are RGB.
    """
    results = []
    as_read = images[:, ::-1] if images.shape[1] == 3 else images
    for image in torch.from_numpy(np.ascontiguousarray(as_read)):
        size = tuple(image.shape[1:])
        sample = make_sample(scope, size)
        batch = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
        (found,) = model(**batch, mode="predict")
        if scope == "mmpretrain":
            results.append(dict(scores=found.pred_score))
        elif scope == "mmseg":
            logits, labels = found.seg_logits.data, found.pred_sem_seg.data[0]
            results.append(dict(logits=logits, labels=labels))
        else:
            found = found.pred_instances
            named = dict(boxes=found.bboxes, scores=found.scores, labels=found.labels)
            results.append(named | (dict(masks=found.masks) if "masks" in found else {}))
    return results


def make_sample(scope: str, size: tuple[int, int]) -> object:
    """What a library's model takes beside an image that was not resized."""
    if scope == "mmpretrain":
        from mmpretrain.structures import DataSample as Sample
    elif scope == "mmseg":
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), size)
    return Sample(metainfo=dict(shapes, scale_factor=(1.0, 1.0)))


def split_images(outputs: Mapping[str, np.ndarray]) -> list[dict[str, Tensor]]:
    """The outputs of an exported model image by image, without padding."""
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in outputs.items()}
    if "boxes" in tensors and "counts" not in tensors:  # of one image
        return [tensors]
    counts = tensors.pop("counts", None)
    number = len(next(iter(tensors.values())))
    cut = [slice(None) if counts is None else slice(int(counts[i])) for i in range(number)]
    return [{name: value[i][cut[i]] for name, value in tensors.items()} for i in range(number)]


def compare(
    expected: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """How far outputs are off, over several images.

    Returns:
        Of scores and logits, ``NAME``: the largest difference relative to the largest value. Of a
        segmentor's labels: the share of pixels that differ. Of detections: ``missed``, the share of
        them that the other does not have, in either direction; of those that are matched, ``boxes``
        and ``masks``, 1 less the mean overlap, and ``scores``, the mean difference.
    """
    pairs = list(zip(expected, found, strict=True))
    if "boxes" in found[0]:
        return _compare_detections(pairs)
    (name,) = found[0]
    if name == "labels":
        shares = [(e["labels"] != f["labels"]).float().mean().item() for e, f in pairs]
        return {"labels": sum(shares) / len(shares)}
    return {name: max(_deviation(f[name], e[name]) for e, f in pairs)}


def _compare_detections(pairs: Sequence[tuple[Mapping, Mapping]]) -> dict[str, float]:
    matches = [_match(*pair) for pair in pairs]
    total = sum(len(one["labels"]) for pair in pairs for one in pair)
    matched = sum(len(ious) for ious, _, _ in matches)
    result = {"missed": 1 - 2 * matched / total if total else 0.0}
    if not matched:
        return result
    ious, scores, masks = (torch.cat(parts) for parts in zip(*matches, strict=True))
    result.update(boxes=1 - ious.mean().item(), scores=scores.mean().item())
    if len(masks):
        result["masks"] = 1 - masks.mean().item()
    return result


def _match(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Pair the detections of two results: overlaps, differences of scores, overlaps of masks."""
    ious = box_iou(expected["boxes"], found["boxes"].float())
    ious *= expected["labels"][:, None] == found["labels"][None]
    pairs = []
    for row in range(len(ious)):  # best scores first, as evaluation does
        best = int(ious[row].argmax()) if ious.shape[1] else -1
        if best >= 0 and ious[row, best] >= SAME_BOX:
            pairs.append((row, best, ious[row, best].item()))
            ious[:, best] = 0
    rows, columns = ([pair[i] for pair in pairs] for i in (0, 1))
    scores = (expected["scores"][rows] - found["scores"][columns]).abs()
    masks = torch.zeros(0)
    if "masks" in found and pairs:
        truth, masks = expected["masks"][rows], found["masks"][columns]
        if masks.is_floating_point():
            masks = paste_masks(masks, found["boxes"][columns], *truth.shape[-2:]) >= 0.5
        both = (truth & masks.bool()).sum((1, 2)) / (truth | masks.bool()).sum((1, 2)).clamp(min=1)
        masks = torch.where((truth | masks.bool()).any(2).any(1), both, 1.0)
    return torch.tensor([pair[2] for pair in pairs]), scores, masks


def _deviation(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    # NaN is no match, and would get lost when the largest of several is taken.
    return torch.nan_to_num((found - expected).abs().max() / scale, nan=float("inf")).item()


def check(
    exported: ExportedModel, model: nn.Module, scope: str, images: np.ndarray, allowed: Tolerance
) -> dict[str, float]:
    """Compare an exported model with the library's own; returns what :func:`compare` does.

    Args:
        exported: The file, running.
        model: Of mmpretrain, mmdet or mmseg, in evaluation mode.
        scope: Which of them.
        images: (N, C, H, W) of uint8; filled up to whole batches by the first.
        allowed: How far it may be off.

    Raises:
        ExportError: If it is off further.
    """
    batch = exported.shape[0]
    filled = np.concatenate([images, np.repeat(images[:1], -len(images) % batch, axis=0)])
    found = []
    for start in range(0, len(filled), batch):
        found += split_images(exported(filled[start : start + batch]))
    deviations = compare(predict(model, scope, images), found[: len(images)])
    excess = find_excess(deviations, allowed)
    if excess:
        raise ExportError(f"the file would not compute what PyTorch does: {excess}")
    return deviations


def find_excess(deviations: Mapping[str, float], allowed: Tolerance) -> str | None:
    """Say which deviation is beyond what is allowed, or return None."""
    limits = dict(missed=allowed.missed, labels=allowed.missed)
    limits |= dict.fromkeys(("boxes", "masks"), 1 - allowed.overlap)
    for name, deviation in deviations.items():
        limit = limits.get(name, allowed.values)
        if not deviation <= limit:
            return f"{name} deviates by {deviation:.1e}, and {limit:.0e} is allowed"
    return None
