"""A validation split for a data set that has none."""

import random
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

from crossformer_mm.datasets.own.pictures import look_at_map
from crossformer_mm.datasets.own.records import DataSetError, OwnDataset, Sample


def with_validation(
    dataset: OwnDataset, fraction: float = 0.2, seed: int = 0
) -> tuple[OwnDataset, str]:
    """Take validation images from the training images if there are none.

    Each class with two images or more is on both sides, and of its images about ``fraction`` are
    for validation. The same seed takes the same images. A line that says so is returned as well.
    """
    train = dataset.splits.get("train", [])
    if train and dataset.splits.get("val"):
        return dataset, f"val: {len(dataset.splits['val'])} images, as found"
    if len(train) < 2:
        raise DataSetError(f"{dataset.root} has {len(train)} training images: give at least two")
    chosen = _choose([_classes_of(sample, dataset.task) for sample in train], fraction, seed)
    left = [sample for index, sample in enumerate(train) if index not in chosen]
    parts = dict(train=left, val=[train[index] for index in sorted(chosen)])
    split = replace(dataset, splits=dataset.splits | parts)
    return split, f"val: {len(chosen)} of {len(train)} training images, chosen with seed {seed}"


def _classes_of(sample: Sample, task: str) -> set[Hashable]:
    """Everything that an image shows; its lack of objects is a class as well."""
    if task == "classification":
        return {sample.category}
    if task == "detection":
        return {shape.category for shape in sample.shapes} or {None}
    label_map = look_at_map(sample.label_map)
    return {*label_map.counts} if label_map else set()


def _choose(shown: list[set[Hashable]], fraction: float, seed: int) -> set[int]:
    """Choose validation images, for the rarest class first: the others are more easily had."""
    order = list(range(len(shown)))
    random.Random(seed).shuffle(order)
    left = Counter(name for names in shown for name in names)
    taken, chosen = Counter[Hashable](), set[int]()
    for name, count in sorted(left.items(), key=lambda item: (item[1], str(item[0]))):
        wanted = max(1, round(fraction * count))
        for index in (index for index in order if name in shown[index]):
            stays = all(left[other] > 1 for other in shown[index])
            if taken[name] < wanted and stays and index not in chosen:
                chosen.add(index)
                taken.update(shown[index])
                left.subtract(shown[index])
    return chosen or {order[0]}
