"""Images as an exported model takes them: of one size, whatever size they come in."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from hashlib import sha256
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from crossformer_mm.datasets.paths import walk_datasets
from crossformer_mm.engine.config import find_classes, find_preprocessor, takes_rgb, type_name
from crossformer_mm.engine.runner import build_dataset
from crossformer_mm.version import __version__

RESIZES = ("Resize", "ResizeToMultiple", "Pad")
TASKS = dict(mmpretrain="classification", mmdet="detection", mmseg="segmentation")


def fill_colour(cfg: Config) -> list[int]:
    """Red, green and blue of what is left beside an image: the mean, which becomes about 0."""
    settings = find_preprocessor(cfg)
    mean = settings.get("mean") or [0, 0, 0]
    return [round(value) for value in (mean if takes_rgb(settings) else mean[::-1])]


def letterboxed(pipeline: Sequence[Mapping], shape: tuple[int, int], fill: Sequence[int]) -> list:
    """A test pipeline whose images have one size.

    Of detectors and segmentors every resizing becomes one :class:`.Letterbox`. A classifier's
    centre crop gets the size, and the edge before it changes in proportion.
    """
    pipeline = deepcopy(list(pipeline))
    crops = [step for step in pipeline if type_name(step) == "CenterCrop"]
    if crops:
        before = crops[0]["crop_size"]
        old = max(before) if isinstance(before, Sequence) else before
        crops[0]["crop_size"] = tuple(shape[::-1])  # width first
        for step in pipeline:
            if type_name(step) == "ResizeEdge":
                step["scale"] = round(step["scale"] * max(shape) / old)
        return pipeline
    kept = [step for step in pipeline if type_name(step) not in RESIZES]
    kept.insert(1, dict(type="Letterbox", size=tuple(shape), fill=tuple(fill[::-1])))
    if type_name(kept[-1]) == "PackSegInputs":
        shapes = ("ori_shape", "img_shape", "scale_factor", "padding_size")
        kept[-1]["meta_keys"] = ("img_path", *shapes)
    return kept


def use_letterbox(cfg: Config, loader: str, shape: tuple[int, int]) -> None:
    """Have a loader of a config give images of one size, by the test pipeline."""
    pipeline = cfg.test_dataloader.dataset.pipeline
    for dataset in walk_datasets(cfg[loader].dataset):
        if "pipeline" in dataset:
            dataset.pipeline = letterboxed(pipeline, shape, fill_colour(cfg))


def read_images(cfg: Config, loader: str, shape: tuple[int, int], number: int) -> np.ndarray:
    """Images of a loader's data set, evenly spread: (N, 3, H, W) of uint8, in RGB.

    Raises:
        OSError: If the data are missing.
        Exception: Whatever else the libraries raise.
    """
    cfg = deepcopy(cfg)
    init_default_scope(cfg.default_scope)
    use_letterbox(cfg, loader, shape)
    dataset = build_dataset(cfg[loader].dataset)
    chosen = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().astype(int)
    return np.stack([dataset[index]["inputs"].numpy()[::-1] for index in chosen])


def describe(
    cfg: Config, checkpoint: Mapping, model: nn.Module, shape: tuple[int, int]
) -> dict[str, str]:
    """What a file says about itself, as text or JSON, so that nothing else is needed to use it."""
    classes = find_classes(cfg, checkpoint, model)
    pipeline = cfg.test_dataloader.dataset.pipeline
    edges = [step for step in pipeline if type_name(step) == "ResizeEdge"]
    resize = dict(mode="letterbox", height=shape[0], width=shape[1], fill=fill_colour(cfg))
    if edges:
        steps = letterboxed(pipeline, shape, fill_colour(cfg))
        edge = next(step for step in steps if type_name(step) == "ResizeEdge")
        resize.update(mode="crop", edge=edge["scale"], interpolation=edge.get("interpolation"))
    test_cfg = cfg.model.get("test_cfg") or {}
    return dict(
        task=TASKS[cfg.default_scope],
        classes=json.dumps(classes["classes"]),
        palette=json.dumps(classes["palette"]),
        resize=json.dumps(resize),
        thresholds=json.dumps(test_cfg, default=str),
        config=Path(cfg.filename).name,
        config_sha256=sha256(cfg.pretty_text.encode()).hexdigest(),
        crossformer_mm=__version__,
    )
