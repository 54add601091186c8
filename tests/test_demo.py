"""tools/demo.py against the libraries' own ways to predict, and what it does with bad input."""

import errno
import json
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main

from crossformer_mm.demo.batches import MAX_WAITING_BATCHES, batches_of_one_size
from crossformer_mm.demo.class_names import find_dataset_meta
from crossformer_mm.demo.drawing import Painter, enlarged_short_side
from crossformer_mm.demo.inputs import find_files
from crossformer_mm.demo.naming import place_results, result_names
from crossformer_mm.demo.prediction import Predictor
from crossformer_mm.flops import build_model
from crossformer_mm.launch import load_config

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
IMAGES = dict(classification="val", detection="val2017", segmentation="images/validation")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of random weights for each task."""
    folder = tmp_path_factory.mktemp("untrained")
    files = {}
    for task, config in NANO.items():
        torch.manual_seed(0)
        model = build_model(load_config(str(config)))
        files[task] = folder / f"{task}.pth"
        torch.save(dict(state_dict=model.state_dict(), meta={}), files[task])
    return files


@pytest.fixture
def pictures(tmp_path, toy_data_roots) -> dict[str, list[Path]]:
    """For each task a folder with three images of two shapes, one of them in a folder below."""
    found = {}
    for task, root in toy_data_roots.items():
        image = cv2.imread(str(min((root / IMAGES[task]).rglob("*.[jJ]*"))))
        (tmp_path / task / "below").mkdir(parents=True)
        found[task] = [tmp_path / task / name for name in ("0.jpg", "below/1.jpg", "2.jpg")]
        for file, turned in zip(found[task], (image, image[::-1], image[:-40]), strict=True):
            cv2.imwrite(str(file), turned)
    return found


@pytest.fixture
def demo(monkeypatch, untrained, tmp_path):
    """Runs the tool on the CPU for a task, and returns the folder of results."""

    def run(task: str, *arguments: object, checkpoint: Path | None = None) -> Path:
        options = [f"{name}={value}".replace(" ", "") for name, value in OPTIONS[task].items()]
        tool_main(
            *(monkeypatch, DEMO, *arguments, "--config", NANO[task], "--device", "cpu"),
            *("--checkpoint", checkpoint or untrained[task], "--out-dir", tmp_path / "out"),
            *(["--cfg-options", *options] if options else []),
        )
        return tmp_path / "out"

    return run


def predict_with_the_library(task: str, checkpoint: Path, images: list) -> list:
    """What the library's own function or class for this predicts, one image at a time."""
    cfg = load_config(str(NANO[task]), OPTIONS[task])
    if task == "detection":
        from mmdet.apis import inference_detector, init_detector

        model = init_detector(cfg, str(checkpoint), device="cpu")
        return [inference_detector(model, image).pred_instances for image in images]
    if task == "segmentation":
        from mmseg.apis import inference_model, init_model

        model = init_model(cfg, str(checkpoint), device="cpu")
        return [inference_model(model, image).pred_sem_seg.data[0].numpy() for image in images]
    from mmpretrain import ImageClassificationInferencer

    model = ImageClassificationInferencer(cfg, pretrained=str(checkpoint), device="cpu")
    return [result["pred_scores"] for result in model(images)]


def check_record(task: str, record: dict, expected: object, names: tuple[str, ...]) -> None:
    """Compare a JSON object with the library's prediction."""
    from pycocotools.mask import decode

    if task == "classification":
        np.testing.assert_allclose(record["scores"], expected, atol=1e-6)
        best = np.argsort(-expected)[:5].tolist()
        assert [entry["label"] for entry in record["top"]] == best
        assert [entry["name"] for entry in record["top"]] == [names[label] for label in best]
    elif task == "detection":
        found = record["instances"]
        assert len(found) == len(expected.scores) == 5
        assert [instance["label"] for instance in found] == expected.labels.tolist()
        assert [i["name"] for i in found] == [names[label] for label in expected.labels]
        np.testing.assert_allclose([i["score"] for i in found], expected.scores, atol=1e-6)
        np.testing.assert_allclose([i["box"] for i in found], expected.bboxes, atol=1e-3)
        masks = np.stack([decode(instance["mask"]) for instance in found])
        assert masks.shape == expected.masks.shape
        assert np.mean(masks != expected.masks.numpy()) < 1e-4
    else:
        labels = np.full(expected.shape, -1)
        for segment in record["segments"]:
            mask = decode(segment["mask"]).astype(bool)
            assert mask.sum() == segment["pixels"] and (labels[mask] == -1).all()
            assert segment["name"] == names[segment["label"]]
            labels[mask] = segment["label"]
        assert np.mean(labels != expected) < 1e-3


def class_names(task: str) -> tuple[str, ...]:
    if task == "detection":
        from mmdet.datasets import CocoDataset as Dataset
    elif task == "segmentation":
        from mmseg.datasets import ADE20KDataset as Dataset
    else:
        from mmpretrain.datasets import ImageNet as Dataset
    return Dataset.METAINFO["classes"]


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file of a size in pixels, without its pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


@pytest.mark.parametrize("task", NANO)
def test_the_good_images_of_a_folder_are_predicted_and_the_bad_are_named(
    task, demo, pictures, untrained, capfd
):
    folder = pictures[task][0].parent
    whole = pictures[task][0].read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "noise.png").write_bytes(bytes(range(200)))
    (folder / "empty.png").touch()
    (folder / "huge.png").write_bytes(png_of_size(60_000, 60_000))
    (folder / "notes.txt").write_text("no image, and not looked at")
    with pytest.raises(SystemExit) as exit_info:
        demo(task, folder, "--batch-size", 2)
    assert exit_info.value.code == "error: 4 of 7 inputs failed, see above"
    out, errors = capfd.readouterr()
    assert "3 of 7 inputs done" in out
    assert f"cannot use {folder}/cut.jpg: the image is cut off" in errors
    assert f"cannot use {folder}/noise.png: it is not an image" in errors
    assert f"cannot use {folder}/huge.png: it is not an image that OpenCV can read" in errors
    assert f"cannot use {folder}/empty.png: the file is empty" in errors

    results = folder.parent / "out"
    assert {str(path.relative_to(results)) for path in results.rglob("*")} == {
        f"{index}.{suffix}" for index in range(3) for suffix in ("jpg", "json")
    }
    expected = predict_with_the_library(task, untrained[task], list(map(str, pictures[task])))
    for file, prediction in zip(pictures[task], expected, strict=True):
        record = json.loads((results / f"{file.stem}.json").read_text())
        original = cv2.imread(str(file))
        assert record["input"] == str(file) and record["task"] == task
        assert (record["height"], record["width"]) == original.shape[:2]
        check_record(task, record, prediction, class_names(task))
        check_picture(task, cv2.imread(str(results / f"{file.stem}.jpg")), original)


def check_picture(task: str, picture: np.ndarray, original: np.ndarray) -> None:
    """Something is drawn over the image, and the rest of it is there in its own colours."""
    if task == "classification":
        height, width = original.shape[:2]
        factor = 224 / min(height, width)
        assert picture.shape[:2] == (int(height * factor), int(width * factor))
        original = cv2.resize(original, picture.shape[1::-1])
    assert picture.shape == original.shape
    difference = np.abs(picture.astype(int) - original).max(axis=2)
    if task == "classification":  # text in the upper part
        assert (difference[: len(difference) // 4] > 60).any()
        assert (difference[len(difference) // 2 :] < 60).all()
    elif task == "segmentation":  # colours everywhere
        assert np.mean(difference > 20) > 0.5


def test_boxes_are_drawn_from_a_score_on(demo, pictures):
    changed = {}
    for threshold in (0, 1):
        results = demo("detection", pictures["detection"][0], "--score-thr", threshold)
        picture = cv2.imread(str(results / "0.jpg")).astype(int)
        difference = np.abs(picture - cv2.imread(str(pictures["detection"][0])))
        changed[threshold] = np.mean(difference.max(axis=2) > 60)
    assert changed[1] < 0.001 < 0.01 < changed[0]


def test_a_video_becomes_a_video_and_one_record_a_frame(demo, pictures, untrained, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", pictures["segmentation"])
    results = demo("segmentation", clip, "--batch-size", 2)
    assert sorted(path.name for path in results.iterdir()) == ["clip.json", "clip.mp4"]

    frames = read_frames(clip)
    record = json.loads((results / "clip.json").read_text())
    assert record["fps"] == pytest.approx(7) and len(record["frames"]) == len(frames) == 3
    expected = predict_with_the_library("segmentation", untrained["segmentation"], frames)
    for entry, labels in zip(record["frames"], expected, strict=True):
        check_record("segmentation", entry, labels, class_names("segmentation"))
    drawn = read_frames(results / "clip.mp4")
    assert [frame.shape for frame in drawn] == [(64, 96, 3)] * 3
    for frame, original in zip(drawn, frames, strict=True):
        check_picture("segmentation", frame, original)


def write_video(
    path: Path, images: list[Path], codec: str = "mp4v", size: tuple[int, int] = (96, 64)
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 7, size)
    for image in images:
        writer.write(cv2.resize(cv2.imread(str(image)), size))
    writer.release()
    return path


def read_frames(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1])
    return frames


def test_a_bad_video_leaves_nothing_behind(demo, tmp_path, capfd, pictures):
    (tmp_path / "bad.mp4").write_bytes(bytes(1000))
    with pytest.raises(SystemExit, match="error: 1 of 2 inputs failed"):
        demo("classification", tmp_path / "bad.mp4", pictures["classification"][0])
    assert f"cannot use {tmp_path}/bad.mp4: it is not a video" in capfd.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.jpg", "0.json"]


def test_pictures_of_long_thin_images_are_enlarged_within_limits(demo, tmp_path):
    for name, size in (("long.jpg", (10, 4000)), ("thin.png", (3000, 1)), ("ok.png", (20, 80))):
        cv2.imwrite(str(tmp_path / name), np.full((*size, 3), 90, np.uint8))
    results = demo("classification", tmp_path / "*.*g")
    shapes = {path.name: cv2.imread(str(path)).shape[:2] for path in results.glob("*.*g")}
    assert shapes == {"long.jpg": (10, 4000), "thin.png": (3000, 1), "ok.png": (224, 896)}
    assert enlarged_short_side(2, 1000) == 4 and enlarged_short_side(224, 224) is None


def test_a_picture_too_large_for_its_format_is_named_and_the_rest_goes_on(
    demo, pictures, monkeypatch, capfd
):
    first, *others = pictures["classification"]
    draw, drawn = Painter.draw, []

    def draw_once_too_long(self, image, prediction):
        drawn.append(image)
        return draw(self, image, prediction) if drawn[1:] else np.zeros((1, 65_501, 3), np.uint8)

    monkeypatch.setattr(Painter, "draw", draw_once_too_long)
    with pytest.raises(SystemExit, match="error: 1 of 3 inputs failed"):
        demo("classification", first, *others)
    line = f"cannot use {first}: OpenCV cannot write .jpg pictures of 65501 x 1 pixels"
    assert line in capfd.readouterr().err
    results = first.parent.parent / "out"
    assert sorted(p.name for p in results.iterdir()) == ["1.jpg", "1.json", "2.jpg", "2.json"]


def test_files_too_thin_for_the_writer_or_the_pipeline_are_named(demo, pictures, tmp_path, capfd):
    image = pictures["segmentation"][0]
    clip = write_video(tmp_path / "clip.avi", [image] * 2, codec="MJPG", size=(8, 64))
    cv2.imwrite(str(tmp_path / "thin.png"), np.zeros((3000, 1, 3), np.uint8))
    with pytest.raises(SystemExit, match="error: 2 of 3 inputs failed"):
        demo("segmentation", clip, tmp_path / "thin.png", image)
    errors = capfd.readouterr().err
    assert f"cannot use {clip}: a video of its pictures, 8 x 64 pixels, cannot be" in errors
    (line,) = (line for line in errors.splitlines() if "thin.png" in line)
    assert "1 x 3000 pixels do not suit: Resize failed: " in line and line.count("thin.png") == 1
    assert "\n\n" not in errors[errors.index(line) :]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.jpg", "0.json"]


def test_a_video_that_is_cut_off_gives_a_warning(demo, pictures, tmp_path, capfd):
    clip = write_video(tmp_path / "clip.avi", pictures["classification"][:1] * 4, codec="MJPG")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    results = demo("classification", clip)
    count = len(read_frames(clip))
    assert 0 < count < 4
    line = f"warning: {clip} has {count} frames, but says that it has 4: is it cut off?"
    errors = capfd.readouterr().err
    assert line in errors and "100%" in errors
    assert len(json.loads((results / "clip.json").read_text())["frames"]) == count


def test_an_input_that_stands_for_nothing_is_named(demo, tmp_path, pictures, capfd):
    with pytest.raises(SystemExit) as exit_info:
        demo("classification", "nothing*.jpg", tmp_path / "no.jpg")
    assert exit_info.value.code == (
        f"error: INPUT: glob nothing*.jpg matches no file; {tmp_path}/no.jpg does not exist"
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="error: 1 of 2 inputs failed"):
        demo("classification", "nothing*.jpg", pictures["classification"][0])
    assert "glob nothing*.jpg matches no file" in capfd.readouterr().err
    assert (tmp_path / "out/0.json").exists()


def test_a_model_that_predicts_no_numbers_is_named(demo, untrained, pictures, tmp_path, capfd):
    checkpoint = torch.load(untrained["classification"])
    checkpoint["state_dict"]["head.fc.bias"].fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "nan.pth")
    with pytest.raises(SystemExit, match="error: 3 of 3 inputs failed"):
        demo(*("classification", *pictures["classification"]), checkpoint=tmp_path / "nan.pth")
    assert capfd.readouterr().err.count("the model predicts nan") == 3
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_it_with_one_line_and_no_half_files(demo, pictures, tmp_path, monkeypatch):
    replace = os.replace

    def replace_first(source: Path, target: Path) -> None:
        if Path(target).name != "0.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_first)
    with pytest.raises(SystemExit, match="error: --out-dir .*No space left") as exit_info:
        demo("classification", *pictures["classification"])
    assert "\n" not in exit_info.value.code
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.json"]


def test_an_interrupted_video_leaves_nothing_behind(demo, pictures, tmp_path, monkeypatch, capfd):
    predict, calls = Predictor.predict, []

    def predict_twice(self, samples):
        calls.append(samples)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return predict(self, samples)

    monkeypatch.setattr(Predictor, "predict", predict_twice)
    image = pictures["classification"][0]
    with pytest.raises(SystemExit) as exit_info:
        demo("classification", write_video(tmp_path / "clip.avi", [image] * 3), image)
    assert exit_info.value.code == 130 and "interrupted" in capfd.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.jpg", "0.json"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch-size", 0], "--batch-size 0: give 1 or more"),
        (["--score-thr", 7], "--score-thr 7.0: give a number from 0 to 1"),
        (["--score-thr", "nan"], "--score-thr nan: give a number from 0 to 1"),
        (["--device", "gpu"], "--device gpu cannot be used"),
        (["--device", "meta"], "--device meta computes nothing"),
        (["--checkpoint", "no.pth"], "--checkpoint no.pth does not exist"),
        (["--checkpoint", DEMO], "is not a PyTorch or safetensors checkpoint"),
        (["--config", "no.py"], "config no.py does not exist"),
        (["--config", NANO["segmentation"]], "does not fit this model"),
        (["--out-dir", ""], "--out-dir is empty: name a folder"),
        (["--out-dir", DEMO], "is a file: name a folder"),
        (["--out-dir", "."], "a result would replace the input"),
        (["--cfg-options", "test_dataloader.dataset.pipeline="], "does not begin with LoadImage"),
        (["--cfg-options", "model.backbone.arch=bogus"], "be built: unknown arch 'bogus'"),
        (["--cfg-options", "model=3"], "needs a model and a default_scope"),
        (["--cfg-options", "nonsense"], "--cfg-options takes KEY=VALUE"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(
    demo, pictures, monkeypatch, arguments, named, untrained
):
    image = pictures["classification"][0]
    monkeypatch.chdir(image.parent)
    given = dict(
        zip(
            ("--config", "--checkpoint", "--out-dir", "--device"),
            (NANO["classification"], untrained["classification"], image.parent / "out", "cpu"),
            strict=True,
        )
    )
    given.update([arguments])
    before = image.read_bytes()
    with pytest.raises(SystemExit) as exit_info:
        tool_main(monkeypatch, DEMO, image, *(part for pair in given.items() for part in pair))
    message = exit_info.value.code
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert image.read_bytes() == before and not (image.parent / "out").exists()


def test_a_checkpoint_must_have_every_weight(demo, untrained, pictures, tmp_path):
    checkpoint = torch.load(untrained["classification"])
    del checkpoint["state_dict"]["head.fc.bias"]
    torch.save(checkpoint, tmp_path / "part.pth")
    with pytest.raises(SystemExit, match=r"does not fit this model: 1 missing: head\.fc\.bias$"):
        demo("classification", pictures["classification"][0], checkpoint=tmp_path / "part.pth")


def test_what_inputs_stand_for(tmp_path, monkeypatch):
    for name in ("a/2.png", "a/1.JPG", "a/b/1.jpg", "a/notes.txt", "a/out/1.jpg", "[c].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)

    def find(*inputs: str) -> tuple[list[str], list[str]]:
        files, problems = find_files(inputs, Path("a/out"))
        return [str(file.relative_to(tmp_path)) for file in files], problems

    assert find("a") == (["a/1.JPG", "a/2.png", "a/b/1.jpg"], [])
    assert find("a/*.*") == (["a/1.JPG", "a/2.png", "a/notes.txt"], [])
    assert find("a/**/1.*") == (["a/1.JPG", "a/b/1.jpg"], [])
    assert find("a/2.png", str(tmp_path / "a/2.png"), "a/*.png") == (["a/2.png"], [])
    assert find("[c].jpg", "a/out/1.jpg") == (["[c].jpg", "a/out/1.jpg"], [])
    assert find("nothing", "a/2.png") == (["a/2.png"], ["folder nothing has no images"])
    assert find("", "~nosuchuser/x.jpg") == (
        [],
        ["an empty name stands for nothing", "~nosuchuser/x.jpg does not exist"],
    )
    left_out = "but those in --out-dir a/out, which are left out"
    assert find("a/out", "a/out/*") == (
        [],
        [f"folder a/out has no images {left_out}", f"glob a/out/* matches no file {left_out}"],
    )


def test_folders_are_followed_through_links(tmp_path):
    for name in ("top/real/1.jpg", "other/2.jpg", "other/below/3.jpg", "4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    top = tmp_path / "top"
    links = {"linked": "../other", "twice": "../other", "below": "../other/below", "loop": ".."}
    for name, target in {**links, "gone.jpg": "nowhere.jpg", "file.jpg": "../4.jpg"}.items():
        (top / name).symlink_to(target)
    (tmp_path / "other/back").symlink_to("../top/real")
    files, problems = find_files([str(top)], tmp_path / "out")
    names = ["below/3.jpg", "file.jpg", "gone.jpg", "linked/2.jpg", "real/1.jpg"]
    assert files == [top / name for name in names] and problems == []
    files, _ = find_files([str(top)], tmp_path / "other")
    assert files == [top / name for name in ("file.jpg", "gone.jpg", "real/1.jpg")]


def test_names_of_results_are_short_and_differ():
    def names(*files: str) -> list[str]:
        return result_names([Path(file) for file in files])

    assert names("/d/a/x.jpg", "/d/b/y.v2.png") == ["x", "y.v2"]
    assert names("/d/a/x.jpg", "/d/b/x.jpg", "/d/b/y.jpg") == ["a/x", "b/x", "y"]
    assert names("/d/a/x.jpg", "/e/a/x.jpg") == ["d/a/x", "e/a/x"]
    assert names("/x.jpg", "/a/x.jpg") == ["x", "a/x"]
    assert names("/d/x.jpg", "/d/x.png", "/d/y.png") == ["x.jpg", "x.png", "y.png"]
    with pytest.raises(FileExistsError, match="replace the input /d/x.png"):
        place_results([Path("/d/x.png")], Path("/d"))


def test_batches_have_one_size_and_few_images_wait():
    sizes = [1, 1, 2, 1, 2, 1, 3] + list(range(10, 40))
    taken = 0

    def items():
        nonlocal taken
        for size in sizes:
            taken += 1
            yield taken, size

    given = []
    for batch in batches_of_one_size(items(), lambda item: item[1], 2):
        assert len({size for _, size in batch}) == 1 and len(batch) <= 2
        given += batch
        assert taken - len(given) < MAX_WAITING_BATCHES * 2
    assert sorted(given) == [(index, size) for index, size in enumerate(sizes, 1)]
    assert [item for item in given if item[1] == 1] == [(1, 1), (2, 1), (4, 1), (6, 1)]


def test_class_names_come_from_the_checkpoint_then_the_config():
    cfg = load_config(str(NANO["segmentation"]))
    model = build_model(cfg)
    ade = find_dataset_meta({}, cfg, model)
    assert tuple(ade["classes"]) == class_names("segmentation") and len(ade["palette"]) == 150
    own = dict(classes=("sea", "sky"), palette=[[1, 2, 3], [4, 5, 6]])
    for meta in (dict(dataset_meta=own), dict(dataset_meta={"CLASSES": own["classes"]})):
        found = find_dataset_meta(dict(meta=meta), cfg, model)
        assert found["classes"] == ["sea", "sky", *(f"class {i}" for i in range(2, 150))]
        assert len(found["palette"]) == 150
    assert find_dataset_meta(dict(meta=dict(dataset_meta=own)), cfg, model)["palette"][:2] == [
        (1, 2, 3),
        (4, 5, 6),
    ]
    assert find_dataset_meta(dict(meta=dict(CLASSES=("a",))), cfg, model)["classes"][0] == "a"
    cfg.test_dataloader = None
    assert find_dataset_meta({}, cfg, model)["classes"][149] == "class 149"
