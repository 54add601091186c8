"""The toy ImageNet data set: its layout, its classes, and what its images show."""

from collections import Counter

import cv2
import numpy as np
import pytest

from crossformer_mm.datasets.toy import imagenet as toy_imagenet
from crossformer_mm.datasets.toy.imagenet import CLASSES, MAX_DISTRACTORS, write_imagenet
from crossformer_mm.datasets.toy.shapes import KINDS

NUM_IMAGES = {"train": 48, "val": 16}
SIZE = (224, 168)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "imagenet"
    write_imagenet(out, **NUM_IMAGES, report=lambda line: None)
    return out


@pytest.fixture(scope="module")
def lists(root):
    """Per split, {path relative to the split's folder: label}."""
    found = {}
    for split in NUM_IMAGES:
        lines = (root / "meta" / f"{split}.txt").read_text().splitlines()
        found[split] = {path: int(label) for path, label in map(str.split, lines)}
        assert len(found[split]) == len(lines)
    return found


@pytest.fixture(scope="module")
def scenes():
    """(index, things asked for, things seen, picture) of 160 images."""
    found, draw_things = [], toy_imagenet.draw_things

    def spy(rng, background, things):
        picture, objects = draw_things(rng, background, things)
        found.append((len(found), things, objects, picture))
        return picture, objects

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(toy_imagenet, "draw_things", spy)
        for index in range(160):
            toy_imagenet._draw_image("train", index, SIZE, seed=0)
    return found


# Layout


def test_files_are_named_like_those_of_imagenet(root, lists):
    names = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    images = {f"{split}/{path}" for split, paths in lists.items() for path in paths}
    assert names == images | {"meta/train.txt", "meta/val.txt", "meta/README.txt"}
    numbers = {split: set() for split in lists}
    for split, paths in lists.items():
        for path in paths:
            folder, name = path.split("/")
            prefix = f"{folder}_" if split == "train" else "ILSVRC2012_val_"
            number = name.removeprefix(prefix).removesuffix(".JPEG")
            assert len(number) == 8 or split == "train"
            numbers[split].add(int(number))
    assert numbers == {split: set(range(1, n + 1)) for split, n in NUM_IMAGES.items()}


def test_images_have_many_sizes_and_shapes(root, lists):
    shapes = [cv2.imread(str(root / "train" / path)).shape for path in lists["train"]]
    assert {depth for _, _, depth in shapes} == {3}
    aspects = [width / height for height, width, _ in shapes]
    assert min(aspects) < 0.8 and max(aspects) > 1.7
    assert len(set(shapes)) > 0.9 * len(shapes)
    for height, width, _ in shapes:
        assert 0.75 * min(SIZE) <= min(height, width) <= max(height, width) <= 1.25 * max(SIZE)


# Classes


def test_labels_are_those_of_the_folders(lists):
    index_of = {each.wnid: each.index for each in CLASSES.values()}
    for paths in lists.values():
        assert all(label == index_of[path.split("/")[0]] for path, label in paths.items())


@pytest.mark.parametrize("split", NUM_IMAGES)
def test_classes_are_balanced(lists, split):
    counts = Counter(lists[split].values())
    assert counts.keys() == {each.index for each in CLASSES.values()}
    assert set(counts.values()) == {NUM_IMAGES[split] // len(CLASSES)}


def test_classes_are_the_real_ones():
    expected = {"clock": 409, "kite": 701, "umbrella": 879, "book": 917}
    expected |= {"stop sign": 919, "donut": 931, "banana": 954, "pizza": 963}
    assert {kind: each.index for kind, each in CLASSES.items()} == expected
    assert set(expected) == set(KINDS)
    # ImageNet-1K numbers its classes in the order of their WordNet ids.
    by_index = sorted(CLASSES.values(), key=lambda each: each.index)
    assert by_index == sorted(CLASSES.values(), key=lambda each: each.wnid)


def test_class_names_are_those_of_mmpretrain():
    categories = pytest.importorskip("mmpretrain.datasets.categories").IMAGENET_CATEGORIES
    for each in CLASSES.values():
        assert categories[each.index].split(", ")[0] == each.name


@pytest.mark.parametrize("split", NUM_IMAGES)
def test_mmpretrain_loads_it(root, lists, split):
    datasets = pytest.importorskip("mmpretrain.datasets")
    dataset = datasets.ImageNet(data_root=str(root), split=split)
    assert len(dataset) == NUM_IMAGES[split] and len(dataset.CLASSES) == 1000
    samples = {each["img_path"]: each["gt_label"] for each in map(dataset.get_data_info, range(16))}
    first = list(lists[split].items())[:16]
    assert samples == {str(root / split / path): label for path, label in first}
    assert all(cv2.imread(path) is not None for path in samples)


def test_summary_counts_the_classes(tmp_path):
    summary = write_imagenet(tmp_path, 9, 1, report=lambda line: None)
    assert summary["val"] == {"images": 1, "classes": Counter({"street sign": 1})}
    expected = Counter({each.name: 1 for each in CLASSES.values()}) + Counter({"street sign": 1})
    assert summary["train"] == {"images": 9, "classes": expected}


# What the images show


def test_the_thing_of_the_class_dominates(scenes):
    for index, _, objects, picture in scenes:
        main, others = objects[-1], objects[:-1]
        assert main.kind == KINDS[index % len(KINDS)]
        assert main.mask.sum() >= 0.01 * picture[..., 0].size
        for other in others:
            assert other.kind != main.kind
            assert other.mask.sum() < 0.6 * main.mask.sum()


def test_sizes_places_and_company_vary(scenes):
    shares = [objects[-1].mask.mean() for _, _, objects, _ in scenes]
    assert np.quantile(shares, 0.9) > 3 * np.quantile(shares, 0.1)
    company = Counter(len(things) - 1 for _, things, _, _ in scenes)
    assert company.keys() == set(range(MAX_DISTRACTORS + 1))
    masks = [objects[-1].mask for _, _, objects, _ in scenes]
    cut = sum(m[[0, -1]].any() or m[:, [0, -1]].any() for m in masks)
    assert 0.1 * len(scenes) < cut < 0.6 * len(scenes)
    middles = [np.mean(np.nonzero(m), axis=1) / m.shape for m in masks]
    assert (np.std(middles, axis=0) > 0.08).all()


def test_street_signs_are_the_reddest_images(root, lists):
    red = {}
    for path, label in lists["train"].items():
        b, g, r = np.moveaxis(cv2.imread(str(root / "train" / path)).astype(int), 2, 0)
        red.setdefault(label, []).append(np.mean(r - np.maximum(b, g) > 60))
    mean = {label: np.mean(shares) for label, shares in red.items()}
    assert max(mean, key=mean.get) == 919
