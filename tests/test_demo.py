"""tools/demo.py writes what the libraries' own functions predict, and names files it cannot use."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, tool_main
from mmengine.utils import get_object_from_string
from pycocotools.mask import decode
from test_bad_data import CONFIG_OF
from test_hostile_checkpoints import ATTACKS

from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_model
from crossformer_mm.visualization.prediction import INFERENCERS, build_inferencer

DEMO = ROOT / "tools/demo.py"
RESIZED = "test_dataloader.dataset.pipeline.1.scale"
RCNN = "model.test_cfg.rcnn"
OPTIONS = dict(  # small; untrained detectors are sure of nothing
    classification={},
    detection={
        **{RESIZED: (128, 96), f"{RCNN}.score_thr": 0.0, f"{RCNN}.max_per_img": 5},
        "model.data_preprocessor.bgr_to_rgb": False,
    },
    segmentation={RESIZED: (96, 64)},
)
FOUR_CHANNELS = {
    "model.backbone.in_channels": 4,
    "model.data_preprocessor.mean": [114.0],
    "model.data_preprocessor.std": [57.0],
    "test_dataloader.dataset.pipeline.0.color_type": "unchanged",
}


def save_checkpoint(file: Path, task: str, options: dict, meta: dict | None = None) -> Path:
    torch.manual_seed(0)
    model = build_model(load_config(str(CONFIG_OF[task]), options))
    torch.save(dict(state_dict=model.state_dict(), meta=meta or {}), file)
    return file


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of random weights for each task, with names for the first two classes."""
    folder = tmp_path_factory.mktemp("untrained")
    meta = dict(dataset_meta=dict(classes=("sea", "sky"), palette=[(1, 2, 3), (4, 5, 6)]))
    return {task: save_checkpoint(folder / f"{task}.pth", task, {}, meta) for task in CONFIG_OF}


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Two images of one name in two folders, and one of another shape with four channels."""
    rng = np.random.default_rng(0)
    files = [tmp_path / "in" / name for name in ("a/0.jpg", "b/0.jpg", "b/1.png")]
    for file, shape in zip(files, ((96, 128, 3), (96, 128, 3), (64, 96, 4)), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4, shape[2]), dtype=np.uint8)
        cv2.imwrite(str(file), cv2.resize(coarse, shape[1::-1]))
    return files


@pytest.fixture
def demo(untrained, tmp_path):
    """Runs the tool on the CPU for a task, and returns the folder of results."""

    def run(task: str, *arguments: object, checkpoint: Path | None = None, **more: object) -> Path:
        options = [f"{k}={v}".replace(" ", "") for k, v in {**OPTIONS[task], **more}.items()]
        usual = ("--config", CONFIG_OF[task], "--device", "cpu")
        files = ("--checkpoint", checkpoint or untrained[task], "--out-dir", tmp_path / "out")
        options = ["--cfg-options", *options] if options else []
        tool_main(DEMO, *usual, *files, *arguments, *options)
        return tmp_path / "out"

    return run


def name_of(label: int) -> str:
    return ("sea", "sky")[label] if label < 2 else f"class {label}"


def check(task: str, record: dict, checkpoint: str, image: str) -> None:
    """Compare with the library's inferencer that loads config and checkpoint itself."""
    cfg = load_config(str(CONFIG_OF[task]), OPTIONS[task])
    inferencer = INFERENCERS[cfg.default_scope]
    config = str(Path(checkpoint).with_suffix(".py"))
    cfg.dump(config)
    model = get_object_from_string(inferencer)(config, checkpoint, device="cpu")
    found = model(image, return_datasamples=True)
    if task == "classification":
        scores = found[0].pred_score.numpy()
        np.testing.assert_allclose(record["scores"], scores, atol=1e-6)
        top = [(entry["label"], entry["name"]) for entry in record["top"]]
        assert top == [(label, name_of(label)) for label in np.argsort(-scores)[:5]]
    elif task == "detection":
        expected = found["predictions"][0].pred_instances
        assert record["labels"] == expected.labels.tolist() and len(record["labels"]) == 5
        assert record["names"] == [name_of(label) for label in record["labels"]]
        np.testing.assert_allclose(record["scores"], expected.scores, atol=1e-6)
        np.testing.assert_allclose(record["bboxes"], expected.bboxes, atol=1e-3)
        masks = np.stack([decode(mask) for mask in record["masks"]])
        assert np.mean(masks != expected.masks.numpy()) < 1e-4
    else:
        labels = found.pred_sem_seg.data.numpy()
        for segment in record["segments"]:
            assert segment["name"] == name_of(segment["label"])
            assert segment["share"] == pytest.approx(np.mean(labels == segment["label"]), abs=1e-3)
        assert sum(segment["share"] for segment in record["segments"]) == pytest.approx(1)


@pytest.mark.fault("demo, visualize, explore")
@pytest.mark.parametrize("task", CONFIG_OF)
def test_results_are_those_of_the_library_and_bad_files_are_named(
    task, demo, images, untrained, capfd
):
    folder = images[0].parents[1]
    (folder / "cut.jpg").write_bytes(images[0].read_bytes()[:-200])
    (folder / "noise.png").write_bytes(bytes(range(200)))
    (folder / "notes.txt").write_text("not an image, and not looked at")
    with pytest.raises(SystemExit, match="^error: 3 of 6 inputs failed, see above$"):
        demo(task, folder, folder / "no*.jpg", f"{folder}/*/0.jpg", images[0])
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cannot use")]
    named = dict(line.removeprefix(f"cannot use {folder}/").split(": ", 1) for line in errors)
    assert named.pop("cut.jpg").startswith("image file is truncated")
    assert named.pop("noise.png").startswith("cannot identify image file")
    assert named == {"no*.jpg": "no image is found there"}
    results, names = folder.parent / "out", ["a/0.jpg", "b/0.jpg", "b/1.png"]
    written = {str(file.relative_to(results)) for file in results.rglob("*.*")}
    assert written == {f"{name}.{kind}" for name in names for kind in ("json", "png")}
    for file, name in zip(images, names, strict=True):
        record = json.loads((results / f"{name}.json").read_text())
        original, picture = cv2.imread(str(file)), cv2.imread(str(results / f"{name}.png"))
        assert (record["input"], record["task"]) == (str(file), task)
        assert (record["height"], record["width"]) == original.shape[:2]
        check(task, record, str(untrained[task]), str(file))
        original = cv2.resize(original, picture.shape[1::-1])
        drawn = np.abs(picture.astype(int) - original).max() > 60
        assert drawn == (task != "detection")  # of which no score is high enough


@pytest.mark.fault("demo, visualize, explore")
def test_a_name_that_is_no_text_ends_nothing(demo, images):
    (images[0].parent / os.fsdecode(b"0\xff.jpg")).write_bytes(images[0].read_bytes())
    results = sorted(demo("classification", images[0].parent).glob("*.json"))
    inputs = [json.loads(result.read_text())["input"] for result in results]
    assert inputs == [str(images[0]), os.fsdecode(b"%s/0\xff.jpg" % bytes(images[0].parent))]


def test_classes_may_be_types_as_in_pure_python_configs():
    from mmcv.transforms import LoadImageFromFile

    cfg = load_config(str(CONFIG_OF["detection"]), OPTIONS["detection"])
    cfg.test_dataloader.dataset.pipeline[0].type = LoadImageFromFile
    inferencer = build_inferencer(cfg, build_model(cfg), {})
    assert type(inferencer.pipeline.transforms[0]).__name__ == "InferencerLoader"


def test_boxes_are_drawn_from_a_score_on(demo, images):
    original = cv2.imread(str(images[0])).astype(int)
    for threshold, drawn in ((1, False), (0, True)):
        results = demo("detection", images[0], "--score-thr", threshold)
        picture = cv2.imread(str(results / "0.jpg.png"))
        assert (np.abs(picture - original).max() > 60) == drawn


@pytest.mark.parametrize("task", CONFIG_OF)
def test_four_channels_and_names_from_the_config(task, demo, images, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "four.pth", task, FOUR_CHANNELS)
    results = demo(task, images[2], checkpoint=checkpoint, **FOUR_CHANNELS)
    record = json.loads((results / "1.png.json").read_text())
    dataset = load_config(str(CONFIG_OF[task])).test_dataloader.dataset
    names = dataset.get("metainfo", {}).get("classes")
    entries = record.get("top") or record.get("segments") or []
    found = record.get("names") or [entry["name"] for entry in entries]
    assert found and all((name in names) if names else name for name in found)
    assert cv2.imread(str(results / "1.png.png")).shape[2] == 3


@pytest.mark.fault("demo, visualize, explore")
def test_a_model_that_predicts_no_numbers_is_named(demo, untrained, images, tmp_path, capfd):
    checkpoint = torch.load(untrained["classification"])
    checkpoint["state_dict"]["head.fc.bias"].fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "nan.pth")
    with pytest.raises(SystemExit, match="error: 3 of 3 inputs failed"):
        where = dict(checkpoint=tmp_path / "nan.pth", check_weights=False)
        demo("classification", images[0].parents[1], **where)
    assert capfd.readouterr().err.count("the model predicts NaN") == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("demo, visualize, explore")
@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--score-thr", "nan", "--score-thr nan: give a number from 0 to 1"),
        ("--device", "gpu", "--device gpu cannot be used"),
        ("--checkpoint", "no.pth", "--checkpoint no.pth does not exist"),
        ("--config", "no.py", "config no.py does not exist"),
        ("--config", CONFIG_OF["segmentation"], "does not fit this model"),
        ("--out-dir", DEMO, str(DEMO)),
        ("--cfg-options", "test_dataloader=", "no inferencer can be built"),
        ("--cfg-options", "model.backbone.arch=bogus", "unknown arch 'bogus'"),
        ("--cfg-options", "model=3", "no inferencer can be built"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(demo, images, tmp_path, option, value, named):
    with pytest.raises(SystemExit, match=rf"^error: .*{re.escape(named)}.*\Z"):
        demo("classification", images[0], option, value)
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("demo, visualize, explore")
def test_an_unsafe_checkpoint_is_refused(demo, images, tmp_path):
    ATTACKS["as config"][0](tmp_path / "hostile.pth", tmp_path / "ran")
    with pytest.raises(SystemExit, match=r"^error: .*hostile\.pth"):
        demo("classification", images[0], checkpoint=tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()
