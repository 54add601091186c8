"""ONNX files compute what PyTorch's models compute, and are written whole or not at all."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, tool_main
from torch.torch_version import TorchVersion

from crossformer_mm.deploy import onnx
from crossformer_mm.deploy.dense_part import ExportError
from crossformer_mm.engine.launch import load_config
from crossformer_mm.models.build import build_model

EXPORT = ROOT / "tools/export.py"
CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
SEGMENTORS = [
    CONFIGS / f"segmentation/{name}_crossformer-nano_toy-ade.py" for name in ("fpn", "upernet")
]
TWO_STAGE = CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py"

onnxruntime = pytest.importorskip("onnxruntime")
try:
    onnx.check_installed()
except ExportError as missing:
    pytest.skip(str(missing), allow_module_level=True)


@pytest.fixture
def export(monkeypatch, tmp_path):
    """Export a config's model with random weights; returns the model and an onnxruntime session."""

    def run(config, *options, out="model.onnx", weights_of=None):
        torch.manual_seed(0)
        model = build_model(load_config(str(weights_of or config))).eval()
        torch.save(dict(state_dict=model.state_dict()), tmp_path / "random.pth")
        tool_main(monkeypatch, EXPORT, config, tmp_path / "random.pth", tmp_path / out, *options)
        providers = ["CPUExecutionProvider"]
        return model, onnxruntime.InferenceSession(str(tmp_path / out), providers=providers)

    return run


def assert_computes(session, image, expected):
    """The file has exactly the outputs of ``expected``, in this order, with these values."""
    assert [output.name for output in session.get_outputs()] == list(expected)
    for found, (name, value) in zip(
        session.run(None, {"image": image.numpy()}), expected.items(), strict=True
    ):
        scale = value.abs().max().item()
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-4 * scale, err_msg=name)


def number(name, levels):
    return {f"{name}_{level}": value for level, value in enumerate(levels)}


@torch.no_grad()
def test_a_classifier_and_what_its_file_says(export, tmp_path, capsys):
    model, session = export(CLASSIFIER, "--shape", 96, 112)
    image = torch.randn(1, 3, 96, 112)
    assert_computes(session, image, {"logits": model(image)})
    texts = session.get_modelmeta().custom_metadata_map
    assert texts["mean"] == "[123.675, 116.28, 103.53]" and texts["channel_order"] == "RGB"
    assert texts["std"] == "[58.395, 57.12, 57.375]" and texts["config"] == CLASSIFIER.name
    assert "images (1, 3, 96, 112)\n" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "random.pth"]


@torch.no_grad()
@pytest.mark.parametrize("config", SEGMENTORS, ids=["fpn", "upernet"])
def test_a_segmentor(export, config):
    model, session = export(config, "--shape", 64, 100)
    image = torch.randn(1, 3, 64, 100)
    assert_computes(session, image, {"logits": model.decode_head(model.extract_feat(image))})


@torch.no_grad()
def test_a_one_stage_detector(export):
    model, session = export(NANO_CONFIG, "--shape", 101, 140)  # maps are padded to whole groups
    image = torch.randn(1, 3, 101, 140)
    scores, boxes = model.bbox_head(model.extract_feat(image))
    expected = number("cls_score", scores) | number("bbox_pred", boxes)
    assert_computes(session, image, expected)


@torch.no_grad()
def test_a_two_stage_detector(export):
    model, session = export(TWO_STAGE, "--shape", 96, 128)
    image = torch.randn(1, 3, 96, 128)
    maps = model.extract_feat(image)
    assert len(maps) == 5  # the last by the FPN's max pooling
    scores, boxes = model.rpn_head(maps)
    outputs = number("rpn_cls_score", scores) | number("rpn_bbox_pred", boxes)
    assert_computes(session, image, number("feature", maps) | outputs)


def test_a_file_that_computes_something_else_is_not_kept(export, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx, "TOLERANCE", 1e-12)
    (tmp_path / "model.onnx").write_text("an older one")
    with pytest.raises(SystemExit, match="error: .* logits deviates by"):
        export(CLASSIFIER, "--shape", 64, 64)
    assert (tmp_path / "model.onnx").read_text() == "an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "random.pth"]


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("model.pth", "must end with .onnx"),
        ("folder.onnx", "is a folder"),
        ("nowhere/model.onnx", "nowhere does not exist"),
        ("/proc/model.onnx", "cannot be written"),  # folder permissions would not stop root
    ],
)
def test_where_no_file_can_be_written(export, tmp_path, out, named):
    if Path(out).is_absolute() and not Path(out).parent.is_dir():
        pytest.skip("no such folder on this system")
    (tmp_path / "folder.onnx").mkdir()
    assert_one_line(named, export, CLASSIFIER, out=out)


def test_what_cannot_be_exported_is_named_in_one_line(export):
    assert_one_line("--shape 16 64", export, CLASSIFIER, "--shape", 16, 64)
    assert_one_line("does not fit", export, CLASSIFIER, weights_of=SEGMENTORS[0])


def test_libraries_that_are_missing_or_too_old(export, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert_one_line("onnxruntime not installed: pip install", export, CLASSIFIER)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.1.2"))
    assert_one_line("PyTorch 2.1.2 is too old", export, CLASSIFIER)


def assert_one_line(named, function, *args, **kwargs):
    with pytest.raises(SystemExit) as exit_info:
        function(*args, **kwargs)
    message = exit_info.value.code
    assert message.startswith("error: ") and named in message and "\n" not in message
