"""The toy ADE20K data set: its layout, the truth of its labels, and that they can be learned."""

from collections import Counter

import cv2
import numpy as np
import pytest

from crossformer_mm.datasets.toy import ade as toy_ade
from crossformer_mm.datasets.toy.ade import CLASSES, write_ade
from crossformer_mm.datasets.toy.shapes import KINDS
from crossformer_mm.datasets.toy.stuff import STUFF, draw_stuff

NUM_IMAGES = {"train": 60, "val": 30}
SIZE = (256, 192)
FOLDERS = {"train": "training", "val": "validation"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "ade"
    write_ade(out, **NUM_IMAGES, report=lambda line: None)
    return out


@pytest.fixture(scope="module")
def loaded(root):
    """Per split, (picture, labels) of each image."""
    return {
        split: [
            (cv2.imread(str(path)), cv2.imread(str(_label_path(path)), cv2.IMREAD_UNCHANGED))
            for path in sorted((root / "images" / folder).iterdir())
        ]
        for split, folder in FOLDERS.items()
    }


@pytest.fixture(scope="module")
def pairs(loaded):
    return loaded["train"] + loaded["val"]


def _label_path(path):
    return path.parents[2] / "annotations" / path.parent.name / f"{path.stem}.png"


def _value(name):
    return next(value for value, known in CLASSES.items() if known == name)


# Layout


def test_files_are_named_like_those_of_ade20k(root):
    names = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    expected = {"objectInfo150.txt", "annotations/README.txt"}
    for split, count in NUM_IMAGES.items():
        for number in range(1, count + 1):
            stem = f"{FOLDERS[split]}/ADE_{split}_{number:08d}"
            expected |= {f"images/{stem}.jpg", f"annotations/{stem}.png"}
    assert names == expected
    assert "images/validation/ADE_val_00000001.jpg" in names


def test_labels_are_bytes_of_the_shape_of_the_image(pairs):
    for picture, labels in pairs:
        assert labels.dtype == np.uint8 and labels.shape == picture.shape[:2]


def test_images_have_many_sizes(pairs):
    sizes = [labels.shape[::-1] for _, labels in pairs]
    assert SIZE in sizes and SIZE[::-1] in sizes
    assert any(width % 2 and height % 2 for width, height in sizes)
    for width, height in sizes:
        turned = SIZE if width > height else SIZE[::-1]
        assert 0.9 * turned[0] <= width <= turned[0] and 0.9 * turned[1] <= height <= turned[1]
    portraits = sum(height > width for width, height in sizes)
    assert 0.08 * len(sizes) < portraits < 0.35 * len(sizes)


def test_class_table_is_true(root, loaded):
    header, *lines = (root / "objectInfo150.txt").read_text().splitlines()
    assert header.split("\t") == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    rows = {int(line.split("\t")[0]): line.split("\t")[1:] for line in lines}
    assert list(rows) == sorted(set(CLASSES) - {0})
    pixels, images_with = Counter(), {split: Counter() for split in loaded}
    for split, split_pairs in loaded.items():
        for _, labels in split_pairs:
            pixels.update(labels[labels > 0].tolist())
            images_with[split].update(set(labels.ravel().tolist()))
    for value, (ratio, train, val, is_stuff, name) in rows.items():
        assert float(ratio) == pytest.approx(pixels[value] / pixels.total(), abs=6e-5)
        assert (int(train), int(val)) == tuple(images_with[split][value] for split in loaded)
        assert (name, is_stuff) == (CLASSES[value], str(int(name in STUFF)))
    assert {row[4] for row in rows.values() if row[3] == "1"} == set(STUFF)


def test_summary_is_what_is_on_disk(tmp_path):
    summary = write_ade(tmp_path, 3, 2, report=lambda line: None)["val"]
    files = sorted((tmp_path / "annotations" / "validation").iterdir())
    labels = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in files]
    assert summary["images"] == len(files) == 2
    counts = {name: sum((x == v).sum() for x in labels) for v, name in CLASSES.items()}
    assert summary["pixels"] == Counter(counts)
    counts = {name: sum((x == v).any() for x in labels) for v, name in CLASSES.items()}
    assert summary["images_with"] == Counter(counts)


# Classes


def test_class_names_are_those_of_ade20k():
    names = pytest.importorskip("mmseg.datasets").ADE20KDataset.METAINFO["classes"]
    assert {value: names[value - 1] for value in CLASSES if value} == {
        value: name for value, name in CLASSES.items() if value
    }
    assert 8 <= len(CLASSES) - 1 <= 14 and CLASSES[0] == "other"


@pytest.mark.parametrize("split", NUM_IMAGES)
def test_every_class_is_frequent_and_none_is_everywhere(loaded, split):
    all_labels = [labels for _, labels in loaded[split]]
    present = Counter(value for labels in all_labels for value in np.unique(labels).tolist())
    assert present.keys() == CLASSES.keys()
    assert min(present.values()) >= 0.1 * NUM_IMAGES[split]
    assert all(len(np.unique(labels)) >= 3 for labels in all_labels)
    shares = np.bincount(np.concatenate([labels.ravel() for labels in all_labels]))
    assert shares.max() < 0.3 * shares.sum()


@pytest.mark.parametrize("split", FOLDERS)
def test_mmseg_loads_it(root, loaded, split):
    datasets = pytest.importorskip("mmseg.datasets")
    transforms = pytest.importorskip("mmseg.datasets.transforms")
    dataset = datasets.ADE20KDataset(
        data_root=str(root),
        data_prefix={
            "img_path": f"images/{FOLDERS[split]}",
            "seg_map_path": f"annotations/{FOLDERS[split]}",
        },
        pipeline=[transforms.LoadAnnotations()],
    )
    assert len(dataset) == NUM_IMAGES[split] and len(dataset.metainfo["classes"]) == 150
    for index, (_, labels) in enumerate(loaded[split]):
        expected = np.where(labels == 0, 255, labels.astype(int) - 1)
        np.testing.assert_array_equal(dataset[index]["gt_seg_map"], expected)


# Truth of the labels


def test_each_visible_pixel_of_a_thing_has_its_class(monkeypatch):
    things, draw_scene = [], toy_ade.draw_scene

    def spy(*args, **options):
        picture, objects = draw_scene(*args, **options)
        things[:] = objects
        return picture, objects

    monkeypatch.setattr(toy_ade, "draw_scene", spy)
    expected = {"stop sign": 44, "umbrella": 87, "kite": 150, "book": 68, "clock": 149}
    expected |= {"banana": 121, "pizza": 121, "donut": 121}
    seen = set()
    for index in range(30):
        _, labels = toy_ade._draw_image("train", index, SIZE, seed=0)
        free = np.ones(labels.shape, bool)
        for thing in things:
            assert (labels[thing.mask] == expected[thing.kind]).all()
            free &= ~thing.mask
            seen.add(thing.kind)
        assert not np.isin(labels[free], list(expected.values())).any()
    assert seen == set(KINDS)


def test_unlabelled_pixels_are_bands_around_things_and_patches(pairs):
    bands, patches, things = 0, 0, [_value(x) for x in CLASSES.values() if x not in STUFF][1:]
    for _, labels in pairs:
        zeros = (labels == 0).astype(np.uint8)
        cores = cv2.erode(zeros, np.ones((9, 9), np.uint8))
        near_thing = cv2.dilate(np.isin(labels, things).astype(np.uint8), np.ones((7, 7), np.uint8))
        patches += cores.any()
        if zeros.any() and not cores.any():
            bands += 1
            assert near_thing[zeros > 0].all()
    assert bands >= 0.2 * len(pairs)
    assert 0.2 * len(pairs) < patches < 0.6 * len(pairs)
    assert any(labels.all() for _, labels in pairs)
    share = np.mean([(labels == 0).mean() for _, labels in pairs])
    assert 0.01 < share < 0.1


def test_stuff_lies_above_each_other_as_in_the_world(pairs):
    rows = {name: [] for name in STUFF}
    for _, labels in pairs:
        for name in STUFF:
            found = np.nonzero(labels == _value(name))[0]
            if found.size > 200:
                rows[name].append(found.mean() / len(labels))
    middle = {name: np.mean(found) for name, found in rows.items()}
    assert middle["sky"] < middle["mountain"] < middle["grass"] < middle["road"]
    assert middle["mountain"] < middle["sea"] < middle["sand"]
    assert middle["wall"] < middle["floor"]


@pytest.mark.parametrize("seed", range(20))
def test_regions_cover_the_image_and_their_edges_wobble(seed):
    image, regions = draw_stuff(np.random.default_rng(seed), 120, 160)
    assert image.shape == (120, 160, 3) and image.min() >= 0 and image.max() <= 1
    masks = [mask for kind, mask in regions if kind != "other"]
    assert 2 <= len(masks) <= 4 and masks[0].all()
    for mask in masks[1:]:
        top = mask.argmax(axis=0)
        assert mask.any(axis=0).all() and len(set(top)) > 1
        assert abs(np.diff(top)).max() <= 8  # smooth


def test_colours_are_those_one_expects(pairs):
    mean = {}
    for value, name in CLASSES.items():
        pixels = np.concatenate([picture[labels == value] for picture, labels in pairs])
        mean[name] = pixels.mean(axis=0)
    redness = {name: r - max(b, g) for name, (b, g, r) in mean.items()}
    assert max(redness, key=redness.get) == "signboard"
    greenness = {name: g - max(b, r) for name, (b, g, r) in mean.items()}
    assert max(greenness, key=greenness.get) == "grass"
    blueness = {name: b - r for name, (b, g, r) in mean.items()}
    assert max(blueness, key=blueness.get) == "sea"
    assert np.ptp(mean["road"]) < 15 < np.ptp(mean["sand"])


def test_classes_can_be_told_apart_but_not_by_brightness(loaded):
    """Gaussians of simple features, fitted to train, score on val between poor and perfect."""
    colour_and_texture, brightness = _accuracy(loaded, slice(None)), _accuracy(loaded, slice(1))
    assert 0.55 < colour_and_texture < 0.95
    assert brightness < 0.35


def _accuracy(loaded, columns):
    features, values = _samples(loaded["train"])
    classes = np.unique(values)
    scores = []
    val_features, val_values = _samples(loaded["val"])
    for value in classes:
        own = features[values == value][:, columns]
        spread = np.atleast_2d(np.cov(own.T)) + 1e-3 * np.eye(own.shape[1])
        off = val_features[:, columns] - own.mean(axis=0)
        distance = np.einsum("ni,ij,nj->n", off, np.linalg.inv(spread), off)
        scores.append(np.log(len(own)) - 0.5 * (distance + np.linalg.slogdet(spread)[1]))
    return (classes[np.argmax(scores, axis=0)] == val_values).mean()


def _samples(split_pairs):
    """Brightness, colour, colour around and contrast at every 8th labelled pixel; its label."""
    features, values = [], []
    for picture, labels in split_pairs:
        colour = picture.astype(np.float32) / 255
        around = cv2.blur(colour, (15, 15))
        contrast = cv2.blur(colour**2, (15, 15)) - around**2
        grey = colour.mean(axis=2, keepdims=True)
        stacked = np.concatenate([grey, colour[..., :2], around, np.sqrt(abs(contrast))], axis=2)
        at = labels[::8, ::8] > 0
        features.append(stacked[::8, ::8][at])
        values.append(labels[::8, ::8][at])
    return np.concatenate(features), np.concatenate(values)
