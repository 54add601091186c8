"""Predictions as plain numbers and text, for JSON files.

Masks are in the run-length encoding of COCO, which ``pycocotools.mask.decode`` reads.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from mmengine.structures import BaseDataElement

from crossformer_mm.demo.prediction import UnusableError

TOP = 5


def describe_scores(sample: BaseDataElement, classes: Sequence[str]) -> dict:
    """A classifier's prediction: the best classes, and the scores of all."""
    scores = sample.pred_score
    best = scores.topk(min(TOP, len(scores)))
    return dict(
        top=[
            dict(label=label, name=classes[label], score=score)
            for label, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        scores=scores.tolist(),
    )


def describe_instances(sample: BaseDataElement, classes: Sequence[str]) -> dict:
    """A detector's prediction: all instances, boxes as left, top, right and bottom in pixels."""
    found = sample.pred_instances
    boxes = found.bboxes.tolist()
    instances = [
        dict(label=label, name=classes[label], score=score, box=box)
        for label, score, box in zip(
            found.labels.tolist(), found.scores.tolist(), boxes, strict=True
        )
    ]
    if "masks" in found:
        for instance, mask in zip(instances, np.asarray(found.masks), strict=True):
            instance["mask"] = encode_mask(mask)
    return dict(instances=instances)


def describe_segments(sample: BaseDataElement, classes: Sequence[str]) -> dict:
    """A segmentor's prediction: for each class in the image, its pixels."""
    # Segmentors with one output, for two classes, give their labels as floats.
    labels = sample.pred_sem_seg.data[0].numpy().astype(int)
    segments = []
    found, counts = np.unique(labels, return_counts=True)
    for label, pixels in zip(found.tolist(), counts.tolist(), strict=True):
        mask = encode_mask(labels == label)
        segments.append(dict(label=label, name=classes[label], pixels=pixels, mask=mask))
    return dict(segments=segments)


DESCRIBE: dict[str, Callable[[BaseDataElement, Sequence[str]], dict]] = dict(
    mmpretrain=describe_scores, mmdet=describe_instances, mmseg=describe_segments
)
TASKS = dict(mmpretrain="classification", mmdet="detection", mmseg="segmentation")


def check_finite(value: object) -> None:
    """Raise UnusableError if a record has a number that is infinite or none, as JSON cannot."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UnusableError(f"the model predicts {value}")
    if isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            check_finite(entry)


def encode_mask(mask: np.ndarray) -> dict:
    """Encode a mask, (H, W) booleans, as COCO does: ``{'size': [H, W], 'counts': text}``."""
    # Imported here: a classifier does without it.
    from pycocotools.mask import encode

    encoded = encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode())
