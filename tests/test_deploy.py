"""ONNX files compute what PyTorch's models compute, and are written whole or not at all."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main
from torch.torch_version import TorchVersion

from crossformer_mm.deploy import onnx
from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_model

EXPORT = ROOT / "tools/export.py"
CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"

onnxruntime = pytest.importorskip("onnxruntime")
try:
    onnx.check_installed()
except onnx.ExportError as missing:
    pytest.skip(str(missing), allow_module_level=True)


@pytest.fixture
def export(tmp_path):
    """Export a config's model with random weights; returns the model and an onnxruntime session."""

    def run(config, *options, out="model.onnx"):
        torch.manual_seed(0)
        model = build_model(load_config(str(config))).eval()
        torch.save(dict(state_dict=model.state_dict()), tmp_path / "random.pth")
        tool_main(EXPORT, config, tmp_path / "random.pth", tmp_path / out, *options)
        providers = ["CPUExecutionProvider"]
        return model, onnxruntime.InferenceSession(str(tmp_path / out), providers=providers)

    return run


def number(name, levels):
    return {f"{name}_{level}": value for level, value in enumerate(levels)}


@torch.no_grad()
def expected_outputs(model, image):
    """What the library's own methods compute."""
    maps = model.extract_feat(image)
    if hasattr(model, "rpn_head"):
        assert len(maps) == 5  # the last by the FPN's max pooling
        scores, boxes = model.rpn_head(maps)
        outputs = number("rpn_cls_score", scores) | number("rpn_bbox_pred", boxes)
        return number("feature", maps) | outputs
    if hasattr(model, "bbox_head"):
        scores, boxes = model.bbox_head(maps)
        return number("cls_score", scores) | number("bbox_pred", boxes)
    return {"logits": model.decode_head(maps) if hasattr(model, "decode_head") else model(image)}


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ("classification/crossformer-nano_toy-imagenet.py", (96, 112)),
        ("segmentation/fpn_crossformer-nano_toy-ade.py", (64, 100)),
        ("segmentation/upernet_crossformer-nano_toy-ade.py", (64, 100)),
        ("detection/retinanet_crossformer-nano_fpn_toy-coco.py", (101, 140)),  # maps are padded
        ("detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py", (96, 128)),
    ],
)
def test_a_file_computes_what_the_model_does(export, tmp_path, capsys, config, shape):
    model, session = export(CONFIGS / config, "--shape", *shape)
    image = torch.randn(1, 3, *shape)
    expected = expected_outputs(model, image)
    assert [output.name for output in session.get_outputs()] == list(expected)
    found = session.run(None, {"image": image.numpy()})
    for one, (name, other) in zip(found, expected.items(), strict=True):
        atol = 1e-4 * other.abs().max().item()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=name)
    texts = session.get_modelmeta().custom_metadata_map
    assert texts["mean"] == "[123.675, 116.28, 103.53]" and texts["channel_order"] == "RGB"
    assert texts["std"] == "[58.395, 57.12, 57.375]" and texts["config"] == Path(config).name
    assert f"images {(1, 3, *shape)}\n" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "random.pth"]


def test_a_file_that_computes_something_else_is_not_kept(export, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx, "TOLERANCE", 1e-12)
    (tmp_path / "model.onnx").write_text("an older one")
    with pytest.raises(SystemExit, match="error: .* logits deviates by"):
        export(CLASSIFIER, "--shape", 64, 64)
    assert (tmp_path / "model.onnx").read_text() == "an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "random.pth"]


@pytest.mark.parametrize(
    ("out", "options", "named"),
    [
        ("model.pth", (), "must be a file whose name ends with .onnx"),
        ("folder.onnx", (), "must be a file"),
        ("nowhere/model.onnx", (), "cannot be written: No such"),
        ("/proc/model.onnx", (), "/proc/model.onnx cannot be written"),  # root may write elsewhere
        ("model.onnx", ("--shape", 16, 64), "--shape 16 64"),
        ("model.onnx", ("--cfg-options", "model.head.num_classes=3"), "does not fit"),
    ],
)
def test_what_cannot_be_exported_is_named_in_one_line(export, tmp_path, out, options, named):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SystemExit, match=rf"^error: .*{re.escape(named)}.*\Z"):
        export(CLASSIFIER, *options, out=out)


def test_libraries_that_are_missing_or_too_old(export, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(SystemExit, match=r"^error: .*onnxruntime not installed: pip inst.*\Z"):
            export(CLASSIFIER)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.1.2"))
    with pytest.raises(SystemExit, match=r"^error: .*PyTorch 2\.1\.2 is too old.*\Z"):
        export(CLASSIFIER)
