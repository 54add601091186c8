"""tools/demo.py writes what the libraries' own functions predict, and names files it cannot use."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main

from crossformer_mm.engine.launch import load_config
from crossformer_mm.models.build import build_model

DEMO = ROOT / "tools/demo.py"
NANO = dict(
    classification=CONFIGS / "classification/crossformer-nano_toy-imagenet.py",
    detection=CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py",
    segmentation=CONFIGS / "segmentation/fpn_crossformer-nano_toy-ade.py",
)
# Small, and untrained detectors are sure of nothing.
RESIZED = "test_dataloader.dataset.pipeline.1.scale"
OPTIONS = dict(
    classification={},
    detection={
        RESIZED: (128, 96),
        "model.test_cfg.rcnn.score_thr": 0.0,
        "model.test_cfg.rcnn.max_per_img": 5,
    },
    # mmseg's own function reads another entry than its tools.
    segmentation={RESIZED: (96, 64), "test_pipeline.1.scale": (96, 64)},
)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of random weights for each task, with names for the first two classes."""
    folder = tmp_path_factory.mktemp("untrained")
    meta = dict(dataset_meta=dict(classes=("sea", "sky"), palette=[(1, 2, 3), (4, 5, 6)]))
    files = {}
    for task, config in NANO.items():
        torch.manual_seed(0)
        model = build_model(load_config(str(config)))
        files[task] = folder / f"{task}.pth"
        torch.save(dict(state_dict=model.state_dict(), meta=meta), files[task])
    return files


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Two images of one name in two folders, and one of another shape."""
    rng = np.random.default_rng(0)
    files = [tmp_path / "in" / name for name in ("a/0.jpg", "b/0.jpg", "b/1.bmp")]
    for file, shape in zip(files, ((96, 128), (96, 128), (64, 96)), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(file), cv2.resize(coarse, shape[::-1]))
    return files


@pytest.fixture
def demo(monkeypatch, untrained, tmp_path):
    """Runs the tool on the CPU for a task, and returns the folder of results."""

    def run(task: str, *arguments: object, checkpoint: Path | None = None, **more: object) -> Path:
        options = [f"{k}={v}".replace(" ", "") for k, v in {**OPTIONS[task], **more}.items()]
        tool_main(
            *(monkeypatch, DEMO, *arguments, "--config", NANO[task], "--device", "cpu"),
            *("--checkpoint", checkpoint or untrained[task], "--out-dir", tmp_path / "out"),
            *(["--cfg-options", *options] if options else []),
        )
        return tmp_path / "out"

    return run


def predict_with_the_library(task: str, checkpoint: Path, image: Path) -> object:
    """What the library's function or class predicts that loads config and checkpoint itself."""
    cfg, checkpoint, image = (
        load_config(str(NANO[task]), OPTIONS[task]),
        str(checkpoint),
        str(image),
    )
    if task == "detection":
        from mmdet.apis import inference_detector, init_detector

        model = init_detector(cfg, checkpoint, device="cpu")
        return inference_detector(model, image).pred_instances
    if task == "segmentation":
        from mmseg.apis import inference_model, init_model

        model = init_model(cfg, checkpoint, device="cpu")
        return inference_model(model, image).pred_sem_seg.data[0].numpy()
    from mmpretrain import ImageClassificationInferencer

    model = ImageClassificationInferencer(cfg, pretrained=checkpoint, device="cpu")
    return model(image, return_datasamples=True)[0].pred_score.numpy()


def name_of(label: int) -> str:
    return ("sea", "sky")[label] if label < 2 else f"class {label}"


def check_classification(record: dict, expected: np.ndarray) -> None:
    np.testing.assert_allclose(record["scores"], expected, atol=1e-6)
    best = np.argsort(-expected)[:5].tolist()
    assert [(entry["label"], entry["name"]) for entry in record["top"]] == [
        (label, name_of(label)) for label in best
    ]


def check_detection(record: dict, expected: object) -> None:
    from pycocotools.mask import decode

    assert record["labels"] == expected.labels.tolist() and len(record["labels"]) == 5
    assert record["names"] == [name_of(label) for label in record["labels"]]
    np.testing.assert_allclose(record["scores"], expected.scores, atol=1e-6)
    np.testing.assert_allclose(record["bboxes"], expected.bboxes, atol=1e-3)
    masks = np.stack([decode(mask) for mask in record["masks"]])
    assert np.mean(masks != expected.masks.numpy()) < 1e-4


def check_segmentation(record: dict, expected: np.ndarray) -> None:
    shares = np.zeros(150)
    for segment in record["segments"]:
        assert segment["name"] == name_of(segment["label"])
        shares[segment["label"]] = segment["share"]
    expected = np.bincount(expected.ravel(), minlength=150) / expected.size
    np.testing.assert_allclose(shares, expected, atol=1e-3)


CHECKS = dict(
    classification=check_classification, detection=check_detection, segmentation=check_segmentation
)


@pytest.mark.parametrize("task", NANO)
def test_results_are_those_of_the_library_and_bad_files_are_named(
    task, demo, images, untrained, capfd
):
    folder = images[0].parents[1]
    (folder / "cut.jpg").write_bytes(images[0].read_bytes()[:-200])
    (folder / "noise.png").write_bytes(bytes(range(200)))
    (folder / "notes.txt").write_text("not an image, and not looked at")
    (folder / "clip.mp4").write_bytes(bytes(1000))
    with pytest.raises(SystemExit) as exit_info:
        demo(task, folder, folder / "clip.mp4", folder / "no*.jpg", images[0])
    assert exit_info.value.code == "error: 4 of 7 inputs failed, see above"
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cannot use")]
    named = dict(line.removeprefix(f"cannot use {folder}/").split(": ", 1) for line in errors)
    assert named["cut.jpg"].startswith("image file is truncated")
    assert named["noise.png"] == "it is not an image; of a video, extract the frames first"
    assert named["clip.mp4"] == named["noise.png"]
    assert named["no*.jpg"] == "no image is found there"

    results = folder.parent / "out"
    names = ["a/0.jpg", "b/0.jpg", "b/1.bmp"]
    assert sorted(str(f.relative_to(results)) for f in results.rglob("*.*")) == sorted(
        [*(f"{name}.json" for name in names), "a/0.jpg", "b/0.jpg", "b/1.bmp.png"]
    )
    for file, name in zip(images, names, strict=True):
        record = json.loads((results / f"{name}.json").read_text())
        original = cv2.imread(str(file))
        picture = cv2.imread(str(results / (name if name.endswith("jpg") else f"{name}.png")))
        assert (record["input"], record["task"]) == (str(file), task)
        assert (record["height"], record["width"]) == original.shape[:2]
        CHECKS[task](record, predict_with_the_library(task, untrained[task], file))
        if task == "classification":
            original = cv2.resize(original, picture.shape[1::-1])
            assert min(picture.shape[:2]) == 224
        assert picture.shape == original.shape
        if task != "detection":  # of which no score is high enough
            assert np.abs(picture.astype(int) - original).max() > 60


def test_boxes_are_drawn_from_a_score_on(demo, images):
    original = cv2.imread(str(images[2])).astype(int)
    for threshold, drawn in ((1, False), (0, True)):
        results = demo("detection", images[2], "--score-thr", threshold)
        picture = cv2.imread(str(results / "1.bmp.png"))
        assert (np.abs(picture - original).max() > 60) == drawn


def test_class_names_come_from_the_config_where_the_checkpoint_has_none(
    demo, images, untrained, tmp_path
):
    checkpoint = torch.load(untrained["segmentation"])
    torch.save(checkpoint["state_dict"], tmp_path / "bare.pth")
    results = demo("segmentation", images[0], checkpoint=tmp_path / "bare.pth")
    from mmseg.datasets import ADE20KDataset

    for segment in json.loads((results / "0.jpg.json").read_text())["segments"]:
        assert segment["name"] == ADE20KDataset.METAINFO["classes"][segment["label"]]


def test_a_segmentor_of_four_channels(demo, images, untrained, tmp_path):
    checkpoint = torch.load(untrained["segmentation"])
    for name, weight in checkpoint["state_dict"].items():
        if "patch_embed.projs" in name and weight.ndim == 4:
            checkpoint["state_dict"][name] = torch.cat([weight, weight[:, :1]], dim=1)
    torch.save(checkpoint, tmp_path / "four.pth")
    image = tmp_path / "four.png"
    cv2.imwrite(str(image), np.dstack([cv2.imread(str(images[0]))[..., [0, 1, 2, 0]]]))
    arguments = ("segmentation", image)
    more = {
        "model.backbone.in_channels": 4,
        "model.data_preprocessor.mean": [114.0],
        "model.data_preprocessor.std": [57.0],
        "model.data_preprocessor.bgr_to_rgb": False,
    }
    with pytest.raises(SystemExit, match="error: 1 of 1 inputs failed"):  # loads three channels
        demo(*arguments, checkpoint=tmp_path / "four.pth", **more)
    more["test_dataloader.dataset.pipeline.0.color_type"] = "unchanged"
    results = demo(*arguments, checkpoint=tmp_path / "four.pth", **more)
    assert (results / "four.png").exists() and (results / "four.png.json").exists()


def test_a_model_that_predicts_no_numbers_is_named(demo, untrained, images, tmp_path, capfd):
    checkpoint = torch.load(untrained["classification"])
    checkpoint["state_dict"]["head.fc.bias"].fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "nan.pth")
    with pytest.raises(SystemExit, match="error: 3 of 3 inputs failed"):
        demo("classification", images[0].parents[1], checkpoint=tmp_path / "nan.pth")
    assert capfd.readouterr().err.count("the model predicts NaN") == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--score-thr", "nan"], "--score-thr nan: give a number from 0 to 1"),
        (["--device", "gpu"], "--device gpu cannot be used"),
        (["--checkpoint", "no.pth"], "--checkpoint no.pth does not exist"),
        (["--checkpoint", DEMO], "is not a PyTorch or safetensors checkpoint"),
        (["--config", "no.py"], "config no.py does not exist"),
        (["--config", NANO["segmentation"]], "does not fit this model"),
        (["--out-dir", DEMO], f"--out-dir {DEMO}: a result cannot be written"),
        (["--out-dir", "."], "a result would replace an input"),
        (["--cfg-options", "test_dataloader="], "no inferencer can be built"),
        (["--cfg-options", "model.backbone.arch=bogus"], "unknown arch 'bogus'"),
        (["--cfg-options", "model=3"], "needs a model and a default_scope"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(monkeypatch, images, arguments, named, untrained):
    image = images[0]
    monkeypatch.chdir(image.parent)
    names = ("--config", "--checkpoint", "--out-dir", "--device")
    values = (NANO["classification"], untrained["classification"], image.parent / "out", "cpu")
    given = {**dict(zip(names, values, strict=True)), **dict([arguments])}
    before = image.read_bytes()
    with pytest.raises(SystemExit) as exit_info:
        tool_main(monkeypatch, DEMO, image, *(part for pair in given.items() for part in pair))
    message = exit_info.value.code
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert image.read_bytes() == before and not (image.parent / "out").exists()


def test_an_unsafe_checkpoint_is_refused(demo, images, tmp_path):
    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save(dict(state_dict=Hostile()), tmp_path / "hostile.pth")
    with pytest.raises(SystemExit, match=r"^error: .*hostile\.pth"):
        demo("classification", images[0], checkpoint=tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()
