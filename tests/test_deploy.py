"""Exported files compute what the libraries' models do, need nothing else, and are kept whole."""

import json
import re
import sys
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from PIL import Image
from torch.torch_version import TorchVersion

from crossformer_mm.deploy import compare, letterbox, onnx
from crossformer_mm.deploy.whole_models import whole_model
from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.runner import build_dataset
from crossformer_mm.models.build import build_model
from crossformer_mm.utils.errors import ExportError

try:
    onnx.check_installed("openvino", "nncf")
except ExportError as missing:
    pytest.skip(str(missing), allow_module_level=True)
from crossformer_mm.deploy.evaluation import StandIn  # noqa: E402
from crossformer_mm.deploy.runtimes import ExportedModel, openvino_core  # noqa: E402

EXPORT, EXAMPLE = ROOT / "tools/export.py", ROOT / "examples/run_exported.py"
CLASSIFIER = "classification/crossformer-nano_toy-imagenet.py"
SEGMENTORS = [f"segmentation/{name}_crossformer-nano_toy-ade.py" for name in ("fpn", "upernet")]
RETINANET, MASK_RCNN, CASCADE = DETECTORS = [
    f"detection/{name}_toy-coco.py"
    for name in (
        "retinanet_crossformer-nano_fpn",
        "mask-rcnn_crossformer-nano_fpn",
        "cascade-mask-rcnn_crossformer-nano_fpn_4conv1fc-giou",
    )
]
SMALL = {"model.backbone.arch.depths": (1, 1, 1, 1)}


def threshold_option(config: str) -> str:
    return "model.test_cfg." + ("score_thr" if config == RETINANET else "rcnn.score_thr")


def toy(config: str, **options: object):
    """A config and its model, whose heads have weights so large that scores differ."""
    cfg = load_config(str(CONFIGS / config), {**cfg_options(config), **options})
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build_model(cfg)).eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "backbone" not in name:
            torch.nn.init.normal_(weight, std=0.05)
    return cfg, model


def pictures(number: int, height: int, width: int) -> np.ndarray:
    coarse = torch.rand(number, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth * 255).byte().numpy()


@pytest.mark.parametrize("config", DETECTORS)
def test_a_whole_detector_finds_what_mmdet_does(config):
    images = pictures(2, 101, 140)  # padded by the model, and with ragged groups
    cfg, model = toy(config)
    scores = compare.predict(model, "mmdet", images)[0]["scores"]
    # So that an image has fewer boxes than there is room for
    (cfg, model), room = toy(config, **{threshold_option(config): scores[20].item()}), 100
    with torch.no_grad():
        outputs = whole_model(model, cfg)(torch.from_numpy(images))
    found = compare.split_images({name: value.numpy() for name, value in outputs.items()})
    expected = compare.predict(model, "mmdet", images)
    assert outputs["boxes"].shape == (2, room, 4) and len(expected[0]["boxes"]) == 20
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["scores"], other["scores"])
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=0, atol=1e-3)
    if config != RETINANET:
        with torch.no_grad():
            outputs = whole_model(model, cfg, pasted=True)(torch.from_numpy(images[:1]))
        assert torch.equal(outputs["masks"].bool(), expected[0]["masks"])
        assert found[0]["masks"].shape == (20, 28, 28) and expected[0]["masks"].any()


def test_a_box_that_is_dropped_pulls_no_other_down():
    """The few lines of suppression against the formula: every pair, best first."""
    from crossformer_mm.deploy.postprocess import suppress

    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 60, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(2, 60, 2, generator=generator)], 2)
    scores, real = torch.rand(2, 60, generator=generator), torch.rand(2, 60) > 0.2
    groups = torch.randint(0, 3, (2, 60), generator=generator)
    found = suppress(boxes, scores, groups, real, 0.3, 25)
    for i in range(2):
        left = []
        for j in scores[i].argsort(descending=True).tolist():
            ious = [compare.box_iou(boxes[i, j][None], boxes[i, k][None]).item() for k in left]
            rivals = [
                iou for iou, k in zip(ious, left, strict=True) if groups[i, j] == groups[i, k]
            ]
            if real[i, j] and all(iou <= 0.3 for iou in rivals):
                left.append(j)
        kept = left[:25]
        assert found.counts[i] == len(kept)
        assert torch.equal(found.scores[i][: len(kept)], scores[i][kept])
        assert torch.equal(found.labels[i][: len(kept)], groups[i][kept])
        assert not found.boxes[i][len(kept) :].any()


class InPyTorch:
    """Stands for an exported file."""

    def __init__(self, whole: torch.nn.Module, shape: tuple[int, ...]) -> None:
        self.whole, self.shape = whole, shape

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self.whole(torch.from_numpy(np.ascontiguousarray(images)))
        return {name: output.numpy() for name, output in outputs.items()}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        *[(config, {}) for config in (CLASSIFIER, *DETECTORS)],
        *[(SEGMENTORS[0], dict(labels=labels)) for labels in (False, True)],
        (MASK_RCNN, dict(pasted=True)),
    ],
)
def test_results_come_back_to_the_images_as_the_library_brings_them(
    toy_data_roots, config, options
):
    cfg, model = toy(config, data_root=str(toy_data_roots[config.split("/")[0]]))
    # mmdet itself fails to paste a mask whose box lies in the filling: here there is none.
    upright, shape = config in (MASK_RCNN, CASCADE), (64, 48)
    if not upright:
        shape = (64, 96)
    letterbox.use_letterbox(cfg, "test_dataloader", shape)
    letterbox.init_default_scope(cfg.default_scope)
    dataset = build_dataset(cfg.test_dataloader.dataset)
    samples = [dataset[i] for i in range(len(dataset))]
    if upright:
        samples = [s for s in samples if s["data_samples"].ori_shape == (128, 96)]
    batch = pseudo_collate(samples[:3])
    assert all(image.shape == (3, *shape) for image in batch["inputs"])
    with torch.no_grad():
        expected = model.test_step(deepcopy(batch))
    stand_in = StandIn(InPyTorch(whole_model(model, cfg, **options), (4, 3, *shape)), model)
    found = stand_in.test_step(batch)
    for one, other in zip(found, expected, strict=True):
        if "pred_instances" in other:
            one, other = one.pred_instances, other.pred_instances
            torch.testing.assert_close(one.bboxes, other.bboxes, rtol=0, atol=1e-3)
            assert torch.equal(one.labels, other.labels)
            if "masks" in other:  # pasted ones are of another size in between
                differing = (one.masks != other.masks).float().mean()
                assert differing < (0.03 if options else 1e-5)
        elif "pred_sem_seg" in other:
            differing = (one.pred_sem_seg.data != other.pred_sem_seg.data).float().mean()
            assert one.pred_sem_seg.data.shape == other.pred_sem_seg.data.shape
            assert differing < (0.15 if options else 1e-5)
        else:
            torch.testing.assert_close(one.pred_score, other.pred_score)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Exports a toy model once by the tool; returns the file and the model."""
    done = {}

    def run(config: str, suffix: str, *arguments: object, **options: object):
        key = (config, suffix, arguments)
        if key not in done:
            folder = tmp_path_factory.mktemp("exported")
            cfg, model = toy(config, **options)
            torch.save(dict(state_dict=model.state_dict()), folder / "random.pth")
            changed = {**cfg_options(config), **options}
            tool_main(
                *(EXPORT, CONFIGS / config, folder / "random.pth", folder / f"model{suffix}"),
                *(*arguments, "--cfg-options"),
                *[f"{name}={value}".replace(" ", "") for name, value in changed.items()],
            )
            (folder / "random.pth").unlink()
            done[key] = folder / f"model{suffix}", model
        return done[key]

    return run


def cfg_options(config: str) -> dict:
    """Options for a small model; untrained, a detector is sure of nothing."""
    threshold = 0.0105 if config == RETINANET else 0.014
    return {**SMALL, **({threshold_option(config): threshold} if config in DETECTORS else {})}


CASES = [  # config, ending, options of the tool, outputs
    (CLASSIFIER, ".onnx", ("--shape", 96, 112), dict(scores=(1, 1000))),
    (SEGMENTORS[0], ".onnx", ("--shape", 64, 100, "--labels"), dict(labels=(1, 64, 100))),
    (SEGMENTORS[1], ".xml", ("--shape", 64, 100), dict(logits=(1, 150, 64, 100))),
    (
        *(RETINANET, ".onnx", ("--shape", 101, 140, "--batch", 2)),
        dict(boxes=(2, 100, 4), scores=(2, 100), labels=(2, 100), counts=(2,)),
    ),
    (
        *(MASK_RCNN, ".xml", ("--shape", 96, 128)),
        dict(boxes=(100, 4), scores=(100,), labels=(100,), masks=(100, 28, 28)),
    ),
    pytest.param(
        *(CASCADE, ".onnx", ("--shape", 96, 128, "--paste-masks", "--float")),
        dict(boxes=(100, 4), scores=(100,), labels=(100,), masks=(100, 96, 128)),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("config", "suffix", "arguments", "outputs"), CASES)
def test_a_file_computes_what_the_model_does(exported, config, suffix, arguments, outputs, capsys):
    file, model = exported(config, suffix, *arguments)
    said = capsys.readouterr().out
    assert re.search(r"Deviation from PyTorch on 3 random images \(no test set\): \w+ \d", said)
    names = {file.name, file.with_suffix(".bin").name} if suffix == ".xml" else {file.name}
    assert {path.name for path in file.parent.iterdir()} == names
    running, (height, width) = ExportedModel(file, threads=1), arguments[1:3]
    assert running.dtype == (np.float32 if "--float" in arguments else np.uint8)
    images = pictures(running.shape[0], height, width)
    found = running(images)
    assert {name: value.shape for name, value in found.items()} == outputs
    expected = compare.predict(model, load_config(str(CONFIGS / config)).default_scope, images)
    deviations = compare.compare(expected, compare.split_images(found))
    assert deviations.keys() >= outputs.keys() - {"boxes", "labels", "counts"}
    assert max(deviations.values()) < 1e-3


@pytest.mark.slow
def test_a_model_of_four_channels_takes_them_in_the_order_of_the_files(exported, capsys):
    four = {"model.backbone.in_channels": 4}
    mean, std = [100, 110, 120, 130], [50, 60, 70, 80]
    four |= {"data_preprocessor.mean": mean, "data_preprocessor.std": std}
    arguments = ("--shape", 64, 64, "--float")
    file, _ = exported(CLASSIFIER, ".onnx", *arguments, **four)
    said = capsys.readouterr().out
    assert "on 3 random images (4 channels): " in said
    assert said.endswith(f"Wrote {file}, for float32 images (1, 4, 64, 64)\n")
    with pytest.raises(SystemExit, match="--int8 calibrates on RGB images, not on 4 channels$"):
        exported(CLASSIFIER, ".onnx", *arguments, "--int8", **four)


def test_a_file_says_how_to_use_it(exported):
    file, _ = exported(*CASES[4][:2], *CASES[4][2])
    running = ExportedModel(file)
    assert running.metadata["task"] == "detection" and len(running.read("classes")) == 80
    fill = [124, 116, 104]  # the mean of ImageNet in RGB
    assert running.read("resize") == dict(mode="letterbox", height=96, width=128, fill=fill)
    assert running.read("thresholds")["rcnn"]["score_thr"] == 0.014
    assert running.metadata["config"].startswith("mask-rcnn")
    assert re.fullmatch(r"[0-9a-f]{64}", running.metadata["config_sha256"])


def test_nothing_may_be_found(exported, tmp_path):
    """The same graph with a threshold that nothing reaches: the mask head gets no boxes."""
    import openvino

    file, _ = exported(*CASES[4][:2], *CASES[4][2])
    model = openvino.Core().read_model(file)
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    (threshold,) = (op for op in constants if np.allclose(op.data, 0.014) and op.data.size == 1)
    never = openvino.op.Constant(np.full_like(threshold.data, 0.99))
    openvino.utils.replace_node(threshold, never)
    openvino.save_model(model, tmp_path / "never.xml", compress_to_fp16=False)
    found = ExportedModel(tmp_path / "never.xml")(pictures(1, 96, 128))
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes == dict(boxes=(0, 4), scores=(0,), labels=(0,), masks=(0, 28, 28))


def test_positions_of_rois_stay_exact_in_bfloat16(exported):
    """OpenVINO rounds to bf16 whatever is not marked; RoIs at 800 would move by 2 pixels."""
    file, _ = exported(*CASES[4][:2], *CASES[4][2])
    settings = {"INFERENCE_PRECISION_HINT": "bf16"}
    compiled = openvino_core().compile_model(file, "CPU", settings)
    operations = compiled.get_runtime_model().get_ops()
    cuts = [op for op in operations if op.get_rt_info()["layerType"].astype(str) == "ROIAlign"]
    assert len(cuts) == 8  # of four levels, for boxes and for masks
    todo = [cut.input_value(1).get_node() for cut in cuts]
    for _ in range(3):  # back to where boxes are multiplied by the mark of their level
        kinds = {node.get_output_element_type(0).get_type_name() for node in todo}
        assert kinds == {"f32"}
        todo = [node.input_value(0).get_node() for node in todo if node.get_input_size()]


@pytest.mark.fault("export, exported models")
def test_signals_are_survived_after_two_models_of_openvino(exported, run_tool):
    file, _ = exported(*CASES[4][:2], *CASES[4][2])
    code = """
import signal, sys
from crossformer_mm.deploy.runtimes import ExportedModel
models = [ExportedModel(sys.argv[1], "openvino") for _ in range(2)]
while models:
    models.pop(0)
signal.signal(signal.SIGUSR1, lambda *_: print("told"))
signal.raise_signal(signal.SIGUSR1)
"""
    assert run_tool(sys.executable, "-c", code, file).stdout.endswith("told\n")


@pytest.mark.parametrize(("config", "suffix", "arguments", "outputs"), CASES)
def test_the_example_needs_numpy_pillow_and_the_runtime_alone(
    exported, run_tool, tmp_path, config, suffix, arguments, outputs
):
    file, _ = exported(config, suffix, *arguments)
    Image.fromarray(pictures(1, 90, 60)[0].transpose(1, 2, 0)).save(tmp_path / "photo.png")
    forbidden = "; ".join(f"sys.modules[{name!r}] = None" for name in ("torch", "mmengine", "cv2"))
    code = f"import runpy, sys; {forbidden}; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    arguments = (file, tmp_path / "photo.png", "--out", tmp_path / "out.png", "--score-thr", 0.02)
    said = run_tool(sys.executable, "-c", code, *arguments).stdout
    assert said.endswith(f"Wrote {tmp_path / 'out.png'}\n")
    expected = dict(classification=5, detection=1, segmentation=1)[config.split("/")[0]]
    assert len(said.splitlines()) > expected
    assert Image.open(tmp_path / "out.png").size == (60, 90)


def test_the_example_draws_the_right_places(exported, tmp_path):
    """A box that the file gives in its own pixels is printed in those of the photo."""
    import runpy

    example = runpy.run_path(str(EXAMPLE))
    fitted, factor = example["fit"](
        Image.new("RGB", (60, 90)), dict(mode="letterbox", width=128, height=96, fill=[1, 2, 3])
    )
    assert fitted.size == (128, 96) and factor == 96 / 90
    assert fitted.getpixel((127, 0)) == (1, 2, 3) and fitted.getpixel((63, 95)) == (0, 0, 0)
    mask = np.zeros((28, 28), np.float32)
    mask[:, :14] = 1
    placed = example["place_mask"](mask, [10, 20, 30, 60], factor, (60, 90))
    assert placed.getpixel((12, 40)) == 255 and placed.getpixel((28, 40)) == 0
    assert placed.getpixel((5, 40)) == 0


@pytest.mark.slow
def test_int8_is_calibrated_on_the_training_set(exported, toy_data_roots, capsys):
    data = {"data_root": toy_data_roots["classification"]}
    shape = ("--shape", 64, 64)
    quantised, model = exported(CLASSIFIER, ".xml", *shape, "--int8", "--calibration", 8, **data)
    assert "on 3 images of the test set" in capsys.readouterr().out
    whole, _ = exported(CLASSIFIER, ".xml", *shape, **data)
    sizes = [file.with_suffix(".bin").stat().st_size for file in (quantised, whole)]
    assert sizes[0] < 0.4 * sizes[1]
    images = pictures(4, 64, 64)
    found = [ExportedModel(quantised)(image[None])["scores"][0] for image in images]
    expected = compare.predict(model, "mmpretrain", images)
    for one, other in zip(found, expected, strict=True):
        correlation = np.corrcoef(np.log(one), np.log(other["scores"]))[0, 1]
        assert correlation > 0.9
    assert not np.allclose(found[0], expected[0]["scores"], atol=1e-7)


@pytest.mark.fault("export, exported models")
def test_a_file_that_computes_something_else_is_not_kept(exported, monkeypatch, tmp_path):
    cfg, model = toy(CLASSIFIER)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "random.pth")
    monkeypatch.setitem(compare.TOLERANCES, "f32", compare.Tolerance(1e-12, 0, 1))
    (tmp_path / "model.onnx").write_text("an older one")
    options = ("--shape", 64, 64, "--cfg-options", "model.backbone.arch.depths=(1,1,1,1)")
    files = (CONFIGS / CLASSIFIER, tmp_path / "random.pth", tmp_path / "model.onnx")
    with pytest.raises(SystemExit, match="error: .* scores deviates by"):
        tool_main(EXPORT, *files, *options)
    assert (tmp_path / "model.onnx").read_text() == "an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "random.pth"]


def test_what_is_compared_can_fail():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([1, 2])
    masks = torch.zeros(2, 50, 50, dtype=torch.bool)
    masks[0, :10, :10], masks[1, 20:40, 20:40] = True, True
    expected = dict(boxes=boxes, scores=scores, labels=labels, masks=masks)
    same = partial(compare.compare, [expected])
    assert same([expected]) == dict(missed=0, boxes=0, scores=0, masks=0)
    assert same([{**expected, "labels": labels.flip(0)}])["missed"] == 1
    assert same([{**expected, "scores": scores - 0.2}])["scores"] == pytest.approx(0.2)
    assert same([{**expected, "boxes": boxes + 1}])["boxes"] == pytest.approx(0.25, abs=0.01)
    assert same([{**expected, "masks": ~masks}])["masks"] == 1
    fewer = {name: value[:1] for name, value in expected.items()}
    assert same([fewer])["missed"] == pytest.approx(1 / 3)
    logits = torch.tensor([1.0, -4.0])
    nan = [dict(logits=logits * float("nan"))]
    assert compare.compare([dict(logits=logits)], [dict(logits=logits + 1)])["logits"] == 0.25
    allowed = compare.Tolerance(1, 1, 0)
    assert compare.find_excess(compare.compare([dict(logits=logits)], nan), allowed)


@pytest.mark.fault("export, exported models")
@pytest.mark.parametrize(
    ("out", "options", "named"),
    [
        ("model.pth", (), "must be a file whose name ends with .onnx or .xml"),
        ("folder.onnx", (), "must be a file"),
        ("nowhere/model.onnx", (), "cannot be written: No such"),
        ("/proc/model.onnx", (), "/proc/model.onnx cannot be written"),  # root may write elsewhere
        ("model.onnx", ("--shape", 16, 64), "--shape 16 64"),
        ("model.onnx", ("--batch", 0), "--batch 0"),
        ("model.onnx", ("--labels",), "--labels is for segmentors"),
        ("model.onnx", ("--paste-masks",), "--paste-masks is for detectors"),
        ("model.xml", ("--int8", "--calibration", 0), "--calibration 0"),
        ("model.xml", ("--int8",), "--int8 needs training images: "),
        ("model.onnx", ("--cfg-options", "model.head.num_classes=3"), "does not fit"),
    ],
)
def test_what_cannot_be_exported_is_named_in_one_line(tmp_path, out, options, named):
    (tmp_path / "folder.onnx").mkdir()
    model = build_model(load_config(str(CONFIGS / CLASSIFIER)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "random.pth")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=rf"^error: .*{re.escape(named)}.*\Z"):
        tool_main(EXPORT, CONFIGS / CLASSIFIER, tmp_path / "random.pth", tmp_path / out, *options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.fault("export, exported models")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model.bbox_head.type": "FCOSHead"}, "FCOSHead"),
        ({"model.test_cfg.nms.type": "soft_nms"}, "soft_nms"),
    ],
)
def test_heads_that_are_not_known_are_named(change, named):
    cfg, model = toy(RETINANET)
    if named == "soft_nms":
        model.bbox_head.test_cfg.nms.type = named
    else:
        from mmdet.models import FCOSHead

        model.bbox_head = FCOSHead(num_classes=8, in_channels=64)
    with pytest.raises(ExportError, match=named):
        whole_model(model, cfg)


@pytest.mark.fault("export, exported models")
def test_libraries_that_are_missing_or_too_old(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ExportError, match=r"onnxruntime not installed: pip install"):
            onnx.check_installed()
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.1.2"))
    with pytest.raises(ExportError, match=r"PyTorch 2\.1\.2 is too old"):
        onnx.check_installed()
    (tmp_path / "model.onnx").write_text("not a model")
    with pytest.raises(ExportError, match=r"onnxruntime cannot run .*model\.onnx"):
        ExportedModel(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="onnxruntime runs .onnx files in f32"):
        ExportedModel(tmp_path / "model.onnx", precision="bf16")
    with pytest.raises(ExportError, match="ends with .onnx or .xml"):
        ExportedModel(tmp_path / "model.pth")


def test_the_tools_test_and_draw_an_exported_file(exported, toy_data_roots, tmp_path, run_tool):
    file, _ = exported(*CASES[4][:2], *CASES[4][2])
    root = toy_data_roots["detection"]
    options = ("--cfg-options", f"data_root={root}")
    tool_main(
        *(ROOT / "tools/test_exported.py", CONFIGS / MASK_RCNN, file),
        *("--work-dir", tmp_path / "work", *options),
    )
    (metrics,) = (tmp_path / "work").glob("*/*.json")
    assert json.loads(metrics.read_text())["coco/bbox_mAP"] >= 0
    image = next((root / "val2017").iterdir())
    tool_main(
        *(ROOT / "tools/demo.py", image, "--config", CONFIGS / MASK_RCNN, "--model", file),
        *("--out-dir", tmp_path / "drawn", "--device", "cpu"),
    )
    record = json.loads((tmp_path / "drawn" / f"{image.name}.json").read_text())
    found = ExportedModel(file)
    shape = SimpleNamespace(height=record["height"], width=record["width"])
    factor = min(96 / shape.height, 128 / shape.width)
    assert record["names"] and found.shape == (1, 3, 96, 128)
    assert max(box[2] for box in record["bboxes"]) <= 128 / factor + 1
