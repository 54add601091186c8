"""Compare data sets, class names, heads and evaluators before the first step."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from logging import WARNING
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from crossformer_mm.datasets.checked_pipeline import CheckedCompose
from crossformer_mm.datasets.coco_annotations import (
    check_categories,
    check_classes,
    complete_annotations,
    some,
)
from crossformer_mm.datasets.own.pictures import ORIENTATION
from crossformer_mm.datasets.paths import walk_datasets
from crossformer_mm.utils.errors import DataError

SAMPLES = 50  # of each data set are looked at
MORE_SAMPLES = 1000  # where these look wrong
HEAD = re.compile(r"(^|\.)(head|bbox_head|mask_head|decode_head|auxiliary_head)(\.\d+)?$")


class DataCheckHook(Hook):
    """Stops where data, class names, heads and evaluators contradict each other."""

    def before_run(self, runner: Runner) -> None:
        """Compare them all, and look at a few samples of each data set.

        Raises:
            DataError: If training or testing would fail later, or learn something wrong.
        """
        loops = {name: getattr(runner, f"_{name}_loop") for name in ("train", "val", "test")}
        loops = {name: loop for name, loop in loops.items() if isinstance(loop, BaseLoop)}
        datasets = [
            (f"{name}_dataloader", dataset)
            for name, loop in loops.items()
            for dataset in walk_datasets(loop.dataloader.dataset)
            if isinstance(dataset, BaseDataset)
        ]
        classes = _common_classes(datasets)
        model = runner.model
        while is_model_wrapper(model) or hasattr(model, "module"):  # also of TTA
            model = model.module
        if classes:
            check_heads(model, classes)
        for name, dataset in datasets:
            _check_dataset(dataset, name, classes)
        for name, loop in loops.items():
            if name != "train":
                _check_batches(model, name, loop.dataloader)
            for metric in loop.evaluator.metrics if hasattr(loop, "evaluator") else ():
                _check_metric(metric, name, loop.dataloader.dataset, classes)


def _common_classes(datasets: list[tuple[str, BaseDataset]]) -> tuple[str, ...]:
    """The class names of all data sets; raise DataError if they differ."""
    found = [(name, dataset.metainfo.get("classes") or ()) for name, dataset in datasets]
    for name, classes in found:
        check_classes(classes, name)
        if tuple(classes) != tuple(found[0][1]):
            raise DataError(
                f"classes of {found[0][0]} are {some(found[0][1])}, those of {name} "
                f"{some(classes)}: labels would get other names; give both the same metainfo, in "
                "the same order"
            )
    return tuple(found[0][1]) if found else ()


def _check_dataset(dataset: BaseDataset, name: str, classes: tuple) -> None:
    """Look at the folders and a few samples of a data set."""
    _check_folders(dataset, classes)
    numbers = np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int)
    samples = [dataset.get_data_info(int(number)) for number in np.unique(numbers)]
    if hasattr(dataset, "reduce_zero_label") and isinstance(dataset.pipeline, CheckedCompose):
        _check_label_maps(dataset, samples, classes)
    if samples and "gt_label" not in samples[0]:
        _check_orientation([sample["img_path"] for sample in samples if "img_path" in sample])
    print_log(f"{name}: {len(dataset)} images, {len(classes)} classes", logger="current")


def check_heads(model: nn.Module, classes: tuple) -> None:
    """Raise DataError if a head has another number of classes than the data."""
    wrong = {}
    for name, module in model.named_modules():
        count = getattr(module, "num_classes", None)
        is_agnostic = getattr(module, "class_agnostic", False)
        if HEAD.search(name) and count not in (None, len(classes)) and not is_agnostic:
            wrong[name] = count
    if wrong:
        found = ", ".join(f"{name} has num_classes={count}" for name, count in wrong.items())
        parts = next(iter(wrong)).split(".")
        cascade = " in each of its heads" if parts[-1].isdigit() else ""
        nested = f"num_classes={len(classes)}"
        for part in reversed([part for part in parts if not part.isdigit()]):
            nested = f"{part}=dict({nested})"
        raise DataError(
            f"the data has {len(classes)} classes {some(classes)}, but {found}: write "
            f"model=dict({nested}){cascade}, and so for every head"
        )


def _check_folders(dataset: BaseDataset, classes: tuple) -> None:
    """mmpretrain gives labels to folders by their alphabet, whatever the order of classes."""
    folders = list(getattr(dataset, "folder_to_idx", ()))
    if set(folders) == set(classes) and folders != list(classes):
        raise DataError(
            "the order of classes in metainfo is another than that of the folders in "
            f"{dataset.img_prefix}, by which mmpretrain numbers them: write metainfo=dict(classes="
            f"{some(folders, 100)})"
        )


def _check_label_maps(dataset: BaseDataset, samples: list[dict], classes: tuple) -> None:
    """Raise DataError if labels are no classes, or all but one class is ignored."""
    ignored, count = dataset.ignore_index, len(samples)
    found = _count_labels(dataset, samples)
    if len(found.keys() - {ignored}) < 2 <= len(classes) and ignored in found:
        count = min(len(dataset), MORE_SAMPLES)  # other classes may be rare
        found = _count_labels(dataset, map(dataset.get_data_info, range(count)))
        if len(found.keys() - {ignored}) < 2:
            raise DataError(
                f"in {count} label maps such as {samples[0]['seg_map_path']}, the labels are only "
                f"{sorted(found)}, and {ignored} is ignored: no other class would be learned. "
                "Masks of 0 and 255 must be of 0 and 1 (reduce_zero_label is "
                f"{dataset.reduce_zero_label}, which ignores 0 if it is True); --cfg-options "
                "check_data=False goes on regardless"
            )
    names = dict(enumerate(classes))
    shown = [f"{names[label]} in {found[label]}" for label in sorted(found) if label in names]
    print_log(f"of {count} label maps: {', '.join(shown)}", logger="current")


def _count_labels(dataset: BaseDataset, samples: Iterable[dict]) -> Counter:
    """How many label maps have each label; none if the pipeline loads no labels."""
    found: Counter = Counter()
    for sample in samples:
        loaded = dataset.pipeline.load_labels(sample) or {}
        found.update(np.unique(loaded.get("gt_seg_map", ())).tolist())
    return found


def _check_orientation(paths: list[str]) -> None:
    turned = []
    for path in filter(os.path.isfile, paths):  # a pipe would be waited for
        try:
            with Image.open(path) as image:
                if image.getexif().get(ORIENTATION, 1) != 1:
                    turned.append(path)
        except (OSError, Image.DecompressionBombError):  # loading it will tell
            continue
    if turned:
        print_log(
            f"{len(turned)} of {len(paths)} images, such as {turned[0]}, have an EXIF orientation: "
            "OpenCV turns them, and annotations must be those of the turned pictures",
            logger="current",
            level=WARNING,
        )


def _check_batches(model: nn.Module, name: str, loader: DataLoader) -> None:
    """mmseg stacks images of one size, or pads them if its preprocessor is told to."""
    pads = getattr(getattr(model, "data_preprocessor", None), "test_cfg", True) is not None
    if pads or (loader.batch_size or 1) == 1:
        return
    numbers = range(min(SAMPLES, len(loader.dataset)))
    sizes = {tuple(loader.dataset[number]["inputs"].shape[-2:]) for number in numbers}
    if len(sizes) > 1:
        raise DataError(
            f"images of {name}_dataloader have several sizes, such as {some(sorted(sizes))}, and "
            f"cannot be in one batch of {loader.batch_size}: write {name}_dataloader=dict("
            "batch_size=1), or model=dict(data_preprocessor=dict(test_cfg=dict(size_divisor=32))), "
            "which pads them"
        )


def check_topk(metric: Any, name: str, count: int) -> None:
    """Raise DataError if a metric of accuracy looks at more classes than there are."""
    ks = tuple(getattr(metric, "topk", ()))
    if count and max(ks, default=0) > count:
        mend = f"write {name}_evaluator=dict(topk=(1,))"
        raise DataError(f"{name}_evaluator has topk={ks}, but the data has {count} classes: {mend}")


def _check_metric(metric: Any, name: str, dataset: Dataset, classes: tuple) -> None:
    """Compare a metric with the data set that is evaluated."""
    check_topk(metric, name, len(classes))
    api = getattr(metric, "_coco_api", None)
    if api is None or not isinstance(dataset, BaseDataset):
        return
    where = f"ann_file of {name}_evaluator"
    complete_annotations(api.dataset, where)
    check_categories(api.dataset["categories"], classes, where)
    numbers = {dataset.get_data_info(i)["img_id"] for i in range(len(dataset))}
    if numbers - set(api.imgs):
        raise DataError(
            f"the {where} lacks {len(numbers - set(api.imgs))} images of {name}_dataloader, which "
            f"reads {dataset.ann_file}: both must read the same file"
        )
    if missing := len(set(api.imgs) - numbers):
        print_log(
            f"the {where} has {missing} images that {name}_dataloader has not: their objects count "
            "as missed",
            logger="current",
            level=WARNING,
        )
