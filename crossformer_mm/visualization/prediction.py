"""Predict on one image file with the inferencer of a config's library, and draw what it finds."""

from collections.abc import Mapping
from pathlib import Path

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, init_default_scope
from mmengine.utils import get_object_from_string
from PIL import Image
from torch import nn

from crossformer_mm.datasets.checked_pipeline import check_image_file
from crossformer_mm.engine.config import find_classes, type_name

INFERENCERS = {
    "mmpretrain": "mmpretrain.apis.ImageClassificationInferencer",
    "mmdet": "mmdet.apis.DetInferencer",
    "mmseg": "mmseg.apis.MMSegInferencer",
}


def build_inferencer(cfg: Config, model: nn.Module, checkpoint: Mapping) -> object:
    """Build the library's inferencer, and put a model into it.

    The checkpoint says how the classes are named, if it does.
    """
    init_default_scope(cfg.default_scope)
    cfg = Config(_with_type_names(dict(cfg.items())), filename=cfg.filename)
    cfg.visualizer.vis_backends = None
    kind = get_object_from_string(INFERENCERS[cfg.default_scope])
    # With a palette of its own, mmdet's does not build the data set.
    palette = dict(palette="random") if cfg.default_scope == "mmdet" else {}
    inferencer = kind(cfg, None, device="cpu", **palette)
    inferencer.model = model
    inferencer.visualizer = inferencer.visualizer or VISUALIZERS.build(cfg.visualizer)
    inferencer.visualizer.dataset_meta = find_classes(cfg, checkpoint, model)
    return inferencer


def _with_type_names(value: object) -> object:
    """Names for the classes that pure Python configs have as types; inferencers look for names."""
    if isinstance(value, Mapping):
        named = {key: _with_type_names(each) for key, each in value.items()}
        return {**named, "type": type_name(value)} if isinstance(value.get("type"), type) else named
    if isinstance(value, list | tuple):
        return type(value)(map(_with_type_names, value))
    return value


def predict(inferencer: object, file: Path, color_type: str, score_thr: float) -> tuple:
    """Predict on a file: the picture (H, W, 3) in RGB, and what the JSON file says.

    Boxes are drawn from a score on. What cannot be read or predicted raises any error.
    """
    check_image_file(file)
    with Image.open(file) as opened:  # OpenCV fills the missing end of a file with grey
        opened.draft("L", (1, 1))  # where the format can, the smallest is enough to see the end
        opened.load()
    image = mmcv.imread(file, color_type)
    rgb = np.dstack([image] * 3)[..., 2::-1].clip(0, 255).astype(np.uint8)  # of 1, 3 or more
    (batch,) = inferencer.preprocess([image])
    (sample,) = inferencer.forward(batch if isinstance(batch, dict) else batch[1])
    visualizer, names = inferencer.visualizer, inferencer.visualizer.dataset_meta["classes"]
    if "pred_instances" in sample:
        record, scores = inferencer.pred2dict(sample), sample.pred_instances.scores
        record.update(task="detection", names=[names[label] for label in record["labels"]])
        visualizer.add_datasample("", rgb, sample, draw_gt=False, pred_score_thr=score_thr)
    elif "pred_score" in sample:
        scores, (short, long) = sample.pred_score, sorted(image.shape[:2])
        best = scores.argsort(descending=True)[:5].tolist()
        top = [dict(label=label, name=names[label], score=scores[label].item()) for label in best]
        record = dict(task="classification", top=top, scores=scores.tolist())
        size = max(short, min(224, 2000 * short // long))  # text needs room
        visualizer.visualize_cls(rgb, sample, draw_gt=False, resize=size)
    else:
        scores, labels = sample.seg_logits.data, sample.pred_sem_seg.data
        shares = {i: (labels == i).float().mean().item() for i in labels.unique().tolist()}
        segments = [dict(label=i, name=names[i], share=share) for i, share in shares.items()]
        record = dict(task="segmentation", segments=segments)
        visualizer.add_datasample("", rgb, sample, draw_gt=False)
    if not scores.isfinite().all():
        raise ValueError("the model predicts NaN or infinite scores")
    record.update(input=str(file), width=image.shape[1], height=image.shape[0])
    return visualizer.get_image(), record
