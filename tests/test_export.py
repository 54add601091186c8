"""Models as ONNX files and backbones as programs compute what they compute in PyTorch."""

import errno
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, tool_main

from crossformer_mm import CrossFormer
from crossformer_mm.export import destination, onnx_file
from crossformer_mm.export.any_size import replace_size_dependent
from crossformer_mm.export.backbone_program import export_backbone
from crossformer_mm.export.described_images import smallest_test_side
from crossformer_mm.export.errors import ExportError
from crossformer_mm.export.image_sizes import smallest_dynamic_side
from crossformer_mm.flops import build_model
from crossformer_mm.launch import load_config

EXPORT = ROOT / "tools/export.py"
CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
SEGMENTOR = CONFIGS / "segmentation/fpn_crossformer-nano_toy-ade.py"
ARCH = {
    "embed_dims": 32,
    "depths": (1, 2, 2, 1),
    "num_heads": (1, 1, 1, 1),
    "group_size": (4, 4, 2, 1),
    "interval": (3, 2, 2, 1),
}

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
try:
    onnx_file.check_installed()
except ExportError as too_old:
    pytest.skip(str(too_old), allow_module_level=True)


def make_checkpoint(config, folder):
    """A model with random weights, and its checkpoint."""
    torch.manual_seed(0)
    model = build_model(load_config(str(config))).eval()
    torch.save(dict(state_dict=model.state_dict()), folder / "random.pth")
    return model, folder / "random.pth"


def run_file(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": image.numpy()}), strict=True))


def texts_of(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def assert_close(found, expected):
    scale = expected.abs().max().item()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4 * scale)


def test_a_classifier_and_what_its_file_says(monkeypatch, tmp_path, capsys):
    model, checkpoint = make_checkpoint(CLASSIFIER, tmp_path)
    out = tmp_path / "model.onnx"
    tool_main(monkeypatch, EXPORT, CLASSIFIER, checkpoint, out, "--shape", 96, 112)
    image = torch.randn(1, 3, 96, 112)
    with torch.no_grad():
        assert_close(run_file(out, image)["logits"], model(image))
    printed = capsys.readouterr().out
    assert "Maximum deviation from PyTorch" in printed
    assert f"Wrote {out}, for normalised float32 images (1, 3, 96, 112)\n" in printed
    texts = texts_of(out)
    assert texts["mean"] == "[123.675, 116.28, 103.53]" and texts["channel_order"] == "RGB"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "random.pth"]


def test_a_segmentor(monkeypatch, tmp_path):
    model, checkpoint = make_checkpoint(SEGMENTOR, tmp_path)
    out = tmp_path / "model.onnx"
    tool_main(monkeypatch, EXPORT, SEGMENTOR, checkpoint, out, "--shape", 64, 100)
    image = torch.randn(1, 3, 64, 100)
    with torch.no_grad():
        expected = model.decode_head(model.extract_feat(image))
    assert_close(run_file(out, image)["logits"], expected)


def test_a_detector_for_images_of_any_size(monkeypatch, tmp_path, capsys):
    model, checkpoint = make_checkpoint(NANO_CONFIG, tmp_path)
    out = tmp_path / "model.onnx"
    tool_main(monkeypatch, EXPORT, NANO_CONFIG, checkpoint, out, "--dynamic", "--shape", 256, 288)
    printed = capsys.readouterr()
    assert printed.out.count("deviates most") == 4
    assert printed.out.endswith("images (B, C, H, W) with sides from 225 to 4096\n")
    assert printed.err.startswith("warning: the config tests images with sides of 192 pixels")
    assert (texts_of(out)["min_side"], texts_of(out)["max_side"]) == ("225", "4096")
    for size in ((192, 256), (224, 225), (225, 224), (225, 4097)):
        with pytest.raises(Exception, match="height_and_width_must_be_from_225_to_4096_pixels"):
            run_file(out, torch.zeros(1, 3, *size))
    image = torch.randn(3, 3, 237, 301)  # maps of odd sides, which are padded in every stage
    with torch.no_grad():
        scores, boxes = model.bbox_head(model.neck(model.backbone(image)))
    found = run_file(out, image)
    assert len(found) == 2 * len(scores)
    for level, (score, box) in enumerate(zip(scores, boxes, strict=True)):
        assert_close(found[f"cls_score_{level}"], score)
        assert_close(found[f"bbox_pred_{level}"], box)


def test_pooling_as_matrix_products():
    head = torch.nn.Sequential(*(torch.nn.AdaptiveAvgPool2d(size) for size in (6, 3, 2)))
    replace_size_dependent(head)
    for pool in head:
        for height, width in ((8, 9), (15, 6), (3, 7)):
            x = torch.randn(2, 3, height, width)
            expected = torch.nn.functional.adaptive_avg_pool2d(x, pool.size)
            assert not isinstance(pool, torch.nn.AdaptiveAvgPool2d)
            torch.testing.assert_close(pool(x), expected)


@pytest.mark.parametrize("lda_mode", ["fixed_interval", "adaptive_interval"])
def test_a_backbone_as_a_program_for_images_of_any_size(lda_mode):
    backbone = CrossFormer(ARCH, lda_mode=lda_mode).eval()
    assert smallest_dynamic_side(backbone) == 33
    program = export_backbone(backbone).module()
    for shape in ((1, 3, 33, 130), (3, 3, 93, 64)):
        image = torch.randn(shape)
        with torch.no_grad():
            for one, other in zip(program(image), backbone(image), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_file_that_computes_something_else_is_not_kept(monkeypatch, tmp_path):
    _, checkpoint = make_checkpoint(CLASSIFIER, tmp_path)
    monkeypatch.setattr(onnx_file, "TOLERANCE", 1e-12)
    (tmp_path / "model.onnx").write_text("an older one")
    with pytest.raises(SystemExit, match="error: the file would not compute what PyTorch does"):
        tool_main(
            *(monkeypatch, EXPORT, CLASSIFIER, checkpoint, tmp_path / "model.onnx"),
            *("--shape", 64, 64),
        )
    assert (tmp_path / "model.onnx").read_text() == "an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "random.pth"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--shape", 16, 64], "--shape 16 64: sides must be at least 32"),
        (["--shape", 224, 256, "--dynamic"], "--shape 224 256: with --dynamic, sides must be from"),
    ],
)
def test_a_wrong_size_is_named_in_one_line(monkeypatch, tmp_path, options, named):
    _, checkpoint = make_checkpoint(CLASSIFIER, tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        tool_main(monkeypatch, EXPORT, CLASSIFIER, checkpoint, tmp_path / "model.onnx", *options)
    message = exit_info.value.code
    assert message.startswith("error: ") and named in message and "\n" not in message


@pytest.mark.parametrize(
    ("config", "side"),
    [
        ("classification/crossformer-small_8xb128_in1k.py", 224),
        ("detection/retinanet_crossformer-s_fpn_1x_coco.py", 800),
        ("segmentation/fpn_crossformer-s-g14_4xb4-80k_ade20k-512x512.py", 512),
    ],
)
def test_the_least_side_of_a_configs_test_images(config, side):
    assert smallest_test_side(load_config(str(CONFIGS / config))) == side


def test_where_no_file_can_be_written(monkeypatch, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SystemExit, match="error: OUT .*folder.onnx is a folder: give the name"):
        tool_main(monkeypatch, EXPORT, CLASSIFIER, "none.pth", tmp_path / "folder.onnx")
    with pytest.raises(SystemExit, match="error: OUT .* folder .*nowhere does not exist"):
        tool_main(monkeypatch, EXPORT, CLASSIFIER, "none.pth", tmp_path / "nowhere/model.onnx")
    # Folder permissions would not stop root.
    refusal = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(destination, "TemporaryFile", Mock(side_effect=refusal))
    with pytest.raises(SystemExit, match="error: OUT .*model.onnx cannot be written: Permission"):
        tool_main(monkeypatch, EXPORT, CLASSIFIER, "none.pth", tmp_path / "model.onnx")


def test_a_missing_library_is_named_in_one_line(monkeypatch, tmp_path):
    _, checkpoint = make_checkpoint(CLASSIFIER, tmp_path)
    monkeypatch.setattr(onnx_file, "NEEDED_MODULES", ("onnx", "no_such_runtime"))
    with pytest.raises(SystemExit, match="error: no_such_runtime not installed: pip install"):
        tool_main(monkeypatch, EXPORT, CLASSIFIER, checkpoint, tmp_path / "model.onnx")


def test_a_checkpoint_of_another_model_is_refused(monkeypatch, tmp_path):
    _, checkpoint = make_checkpoint(SEGMENTOR, tmp_path)
    with pytest.raises(SystemExit, match="error: .* does not fit"):
        tool_main(monkeypatch, EXPORT, CLASSIFIER, checkpoint, tmp_path / "model.onnx")
