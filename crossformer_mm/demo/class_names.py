"""The names and colours of a model's classes."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch import nn


class DatasetMeta(TypedDict):
    """What the libraries' visualizers want to know; the lists are equally long."""

    classes: list[str]
    palette: list[tuple[int, int, int]]


def find_dataset_meta(checkpoint: Mapping, cfg: Config, model: nn.Module) -> DatasetMeta:
    """Find the names of a model's classes.

    They are those in the checkpoint, else those of the config's data set. Where names or colours
    are missing, classes are called ``class 7`` and colours are drawn at random, always the same.
    """
    known = {**_meta_of_dataset(cfg), **_meta_of_checkpoint(checkpoint)}
    classes = [str(name) for name in known.get("classes") or ()]
    classes += [f"class {label}" for label in range(len(classes), count_classes(model))]
    palette = known.get("palette")
    palette = palette if isinstance(palette, (list, tuple)) else []
    colours = [tuple(int(part) for part in colour) for colour in palette[: len(classes)]]
    return DatasetMeta(classes=classes, palette=colours + _random_colours(classes, len(colours)))


def count_classes(model: nn.Module) -> int:
    """The largest number of classes that any part of the model says it has, or 0."""
    counts = (getattr(module, "num_classes", None) for module in model.modules())
    return max((count for count in counts if isinstance(count, int)), default=0)


def _meta_of_checkpoint(checkpoint: Mapping) -> dict:
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping):
        return {}
    # Older releases of mmdet and mmseg wrote capitals, right into ``meta``.
    found = meta.get("dataset_meta") or {key: meta[key] for key in ("CLASSES",) if key in meta}
    return {str(key).lower(): value for key, value in found.items() if value}


def _meta_of_dataset(cfg: Config) -> dict:
    dataset = innermost_dataset(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            return DATASETS.build({**dataset, "lazy_init": True, "pipeline": []}).metainfo
        except Exception:
            return {}  # a data set that cannot be built without its files


def innermost_dataset(cfg: Config) -> dict:
    """The test data set of a config, out of wrappers such as RepeatDataset."""
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset


def _random_colours(classes: list[str], start: int) -> list[tuple[int, int, int]]:
    colours = np.random.RandomState(42).randint(0, 256, (len(classes), 3))
    return [tuple(colour) for colour in colours[start:].tolist()]
