"""Converting checkpoints: every layout, every kind of model, and that nothing is lost."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import old_checkpoints as old
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main
from mmengine.config import Config
from torch import Tensor

from crossformer_mm import CrossFormer, __version__
from crossformer_mm.checkpoints import reader
from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine.launch import load_config
from crossformer_mm.models.architectures import ARCH_ZOO
from crossformer_mm.models.build import build_model, build_on_meta
from crossformer_mm.utils.errors import CheckpointError

CONVERT = ROOT / "tools/convert_checkpoint.py"
CLASSIFIER_CONFIG = CONFIGS / "classification/crossformer-tiny_8xb128_in1k.py"
NANO_CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
DENSE_CONFIGS = dict(
    retinanet=CONFIGS / "detection/retinanet_crossformer-s_fpn_1x_coco.py",
    mask_rcnn=CONFIGS / "detection/mask-rcnn_crossformer-s_fpn_1x_coco.py",
    cascade_mask_rcnn=CONFIGS
    / "detection/cascade-mask-rcnn_crossformer-s-g14_fpn_4conv1fc-giou_ms-crop-3x_coco.py",
    semantic_fpn=CONFIGS / "segmentation/fpn_crossformer-s-g14_4xb4-80k_ade20k-512x512.py",
    upernet=CONFIGS / "segmentation/upernet_crossformer-s_8xb2-160k_ade20k-512x512.py",
)


def converted(source: Path, destination: Path, **kwargs) -> dict:
    convert_checkpoint(source, destination, **kwargs)
    return load_file(destination)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and torch.equal(actual[name], value), name


def as_in_mmpretrain(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names, renamed by hand."""
    return {
        re.sub(r"^head\.", "head.fc.", name) if name.startswith("head.") else f"backbone.{name}": v
        for name, v in weights.items()
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A classifier as the authors saved it."""
    path = tmp_path_factory.mktemp("authors") / "crossformer-t.pth"
    weights = old.classifier_weights("tiny")
    old.save_classifier(path, {**weights, **old.v1_buffers(weights)})
    return path


@pytest.mark.parametrize("arch", ARCH_ZOO)
def test_every_architecture_is_recognised(monkeypatch, tmp_path, arch):
    monkeypatch.setattr(reader, "MAX_EXPANSION", 10**6)  # the file is small: all values are one
    with torch.device("meta"):
        backbone = CrossFormer(arch, final_norm=True).state_dict()
    weights = {name: torch.zeros(1).expand(value.shape) for name, value in backbone.items()}
    weights |= {"head.weight": torch.zeros(3, len(weights["norm.weight"]))}
    weights |= {"head.bias": torch.zeros(3)}
    torch.save({"model": weights}, tmp_path / "w.pth")
    meta = converted(tmp_path / "w.pth", tmp_path / "new.pth", arch=arch)["meta"]
    assert (meta["arch"], meta["kind"]) == (arch, "classifier")


def test_the_authors_classifier_becomes_mmpretrains(tmp_path):
    weights = old.classifier_weights("tiny")
    old.save_classifier(tmp_path / "w.pth", {**weights, **old.v1_buffers(weights)})
    result = converted(tmp_path / "w.pth", tmp_path / "new.pth")
    assert_equal(result["state_dict"], as_in_mmpretrain(weights))
    model = build_model(load_config(str(CLASSIFIER_CONFIG)))
    model.load_state_dict(result["state_dict"], strict=True)
    assert result["meta"] == dict(
        source="w.pth",
        source_sha256=hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest(),
        kind="classifier",
        arch="tiny",
        crossformer_mm_version=__version__,
    )
    # Nothing but weights and plain values: torch's own restricted loading takes it.
    torch.load(tmp_path / "new.pth", weights_only=True)


def test_the_tool_says_what_it_did(monkeypatch, capsys, tmp_path, tiny):
    tool_main(monkeypatch, CONVERT, tiny, tmp_path / "new.pth")
    assert capsys.readouterr().out.splitlines() == [
        f"{tiny}: a classifier, architecture tiny",
        f"matched: all {len(load_file(tmp_path / 'new.pth')['state_dict'])} weights",
        "dropped by rule: 16 biases, 16 relative_position_index",
        "not carried over: optimizer, lr_scheduler, max_accuracy, epoch, config",
        f"wrote {tmp_path / 'new.pth'}",
    ]


@pytest.mark.parametrize("module", ["", "module."])
@pytest.mark.parametrize("backbone", ["", "backbone."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_every_prefix_is_recognised(tmp_path, module, backbone, key):
    weights = old.classifier_weights("tiny", classes=5)
    layout = {
        module + ("" if name.startswith("head.") else backbone) + name: value
        for name, value in {**weights, **old.v1_buffers(weights)}.items()
    }
    torch.save(layout if key is None else {key: layout}, tmp_path / "w.pth")
    result = converted(tmp_path / "w.pth", tmp_path / "new.pth")
    assert_equal(result["state_dict"], as_in_mmpretrain(weights))


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_a_backbone_alone_keeps_its_names(tmp_path, prefix, final_norm):
    weights = old.backbone_weights("tiny", final_norm)
    torch.save({prefix + name: value for name, value in weights.items()}, tmp_path / "w.pth")
    result = converted(tmp_path / "w.pth", tmp_path / "new.pth")
    assert_equal(result["state_dict"], weights)
    assert result["meta"]["kind"] == "backbone"
    new = dict(type="Pretrained", checkpoint=str(tmp_path / "new.pth"))
    backbone = CrossFormer("tiny", init_cfg=new)
    backbone.init_weights()
    own = backbone.state_dict()
    assert_equal(own, {name: weights[name] for name in own})


@pytest.mark.parametrize("classes", [None, 7])
@pytest.mark.parametrize("kind", DENSE_CONFIGS)
def test_old_dense_models_load_with_nothing_missing_or_unexpected(tmp_path, kind, classes):
    shipped = 150 if kind in ("semantic_fpn", "upernet") else 80
    weights = old.dense_weights(kind, "small", classes or shipped)
    extra = old.v1_buffers(weights)
    old.save_dense(tmp_path / "w.pth", {**weights, **extra}, classes or shipped)
    result = converted(tmp_path / "w.pth", tmp_path / "new.pth")
    assert_equal(result["state_dict"], weights)
    assert result["meta"]["arch"] == "small"
    assert len(result["meta"]["dataset_meta"]["classes"]) == (classes or shipped)
    if classes is None:
        model = build_on_meta(load_config(str(DENSE_CONFIGS[kind])))
        model.load_state_dict(result["state_dict"], strict=True, assign=True)
        assert_equal(model.state_dict(), weights)


@pytest.mark.parametrize("kind", DENSE_CONFIGS)
def test_every_dense_config_of_a_kind_has_the_old_names(kind):
    base = re.sub(r"_?crossformer.*", "", DENSE_CONFIGS[kind].name)
    configs = [c for c in DENSE_CONFIGS[kind].parent.glob(f"{base}_*.py") if "nano" not in c.name]
    assert configs
    for config in configs:
        model = build_on_meta(load_config(str(config)))
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        heads = {name: shape for name, shape in own.items() if not name.startswith("backbone.")}
        classes = 150 if kind in ("semantic_fpn", "upernet") else 80
        channels = [model.backbone.arch.channels(stage) for stage in range(4)]
        assert heads == old.DENSE[kind](channels, classes), config.name


def test_converted_files_load_save_and_load_again_bitwise_the_same(tmp_path, tiny):
    first = converted(tiny, tmp_path / "1.pth")
    torch.save(first, tmp_path / "2.pth")
    assert_equal(load_file(tmp_path / "2.pth")["state_dict"], first["state_dict"])
    again = converted(tmp_path / "2.pth", tmp_path / "3.safetensors")
    assert_equal(again["state_dict"], first["state_dict"])
    lines = convert_checkpoint(tmp_path / "3.safetensors", tmp_path / "4.pth")
    assert lines[1].endswith("weights, names unchanged")
    back = load_file(tmp_path / "4.pth")
    assert_equal(back["state_dict"], first["state_dict"])


def test_both_formats_agree(tmp_path):
    weights = old.dense_weights("mask_rcnn", "tiny", 3)
    weights["backbone.norm.weight"] = torch.ones(512)
    weights["backbone.norm.bias"] = torch.ones(512)
    old.save_dense(tmp_path / "w.pth", weights, 3)
    pth = converted(tmp_path / "w.pth", tmp_path / "new.pth")
    safetensors = converted(tmp_path / "w.pth", tmp_path / "new.safetensors")
    assert pth["meta"] == safetensors["meta"]
    assert_equal(pth["state_dict"], safetensors["state_dict"])
    assert "backbone.norm.weight" not in pth["state_dict"]
    assert (tmp_path / "new.safetensors").read_bytes()[8:9] == b"{"
    modes = {(tmp_path / f"new.{suffix}").stat().st_mode for suffix in ("pth", "safetensors")}
    assert modes == {(tmp_path / "w.pth").stat().st_mode}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_keep_their_type(tmp_path, dtype):
    weights = {name: v.to(dtype) for name, v in old.classifier_weights("tiny", 2).items()}
    torch.save(weights, tmp_path / "w.pth")
    for suffix in ("pth", "safetensors"):
        result = converted(tmp_path / "w.pth", tmp_path / f"new.{suffix}")
        assert_equal(result["state_dict"], as_in_mmpretrain(weights))


def test_parts_of_larger_memory_are_written_alone(tmp_path):
    weights = old.classifier_weights("tiny", 2)
    flat = torch.cat([value.flatten() for value in weights.values()] + [torch.zeros(10**7)])
    start, views = 0, {}
    for name, value in weights.items():
        views[name] = flat[start : start + value.numel()].view(value.shape)
        start += value.numel()
    torch.save({"model": views}, tmp_path / "w.pth")
    for suffix in ("pth", "safetensors"):
        result = converted(tmp_path / "w.pth", tmp_path / f"new.{suffix}")
        assert_equal(result["state_dict"], as_in_mmpretrain(weights))
        size = (tmp_path / f"new.{suffix}").stat().st_size
        assert size < 1.01 * 4 * start + 200_000


def test_weights_that_share_memory_are_written_each(tmp_path):
    weights = old.classifier_weights("tiny", 2)
    weights["norm.bias"] = weights["norm.weight"]
    torch.save(weights, tmp_path / "w.pth")
    for suffix in ("pth", "safetensors"):
        result = converted(tmp_path / "w.pth", tmp_path / f"new.{suffix}")
        assert_equal(result["state_dict"], as_in_mmpretrain(weights))


@pytest.mark.parametrize("palette", [np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]])
def test_classes_and_colours_are_kept(tmp_path, palette):
    meta = dict(CLASSES=("cat", "dog"), PALETTE=palette)
    torch.save(
        {"meta": meta, "state_dict": old.dense_weights("upernet", "tiny", 2)}, tmp_path / "w.pth"
    )
    kept = converted(tmp_path / "w.pth", tmp_path / "new.pth")["meta"]["dataset_meta"]
    assert kept == dict(classes=["cat", "dog"], palette=[[0, 1, 2], [3, 4, 5]])


def test_classes_that_are_no_list_are_refused(tmp_path):
    content = {"meta": dict(CLASSES={"cat"}), "state_dict": old.classifier_weights("tiny", 2)}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"w\.pth has class names or colours that are no lists"
    ):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "new.pth")


@pytest.mark.parametrize("model", [None, "x", dict(type="Nothing"), dict(type="ImageClassifier")])
def test_a_config_without_a_model_is_named(tmp_path, tiny, model):
    cfg = load_config(str(NANO_CLASSIFIER))
    cfg.model = model
    with pytest.raises(
        CheckpointError, match=r"^the model of .*toy-imagenet\.py cannot be built: "
    ):
        convert_checkpoint(tiny, tmp_path / "new.pth", cfg=cfg)


def test_a_config_gives_the_backbone_of_a_classifier_to_a_dense_model(tmp_path):
    weights = old.classifier_weights("small")
    old.save_classifier(tmp_path / "w.pth", weights)
    cfg = load_config(str(DENSE_CONFIGS["upernet"]))
    lines = convert_checkpoint(tmp_path / "w.pth", tmp_path / "new.pth", cfg=cfg)
    assert "dropped by rule: 2 classifier, 2 final norm" in lines
    expected = {n: v for n, v in weights.items() if not n.startswith(("head.", "norm."))}
    assert_equal(load_file(tmp_path / "new.pth")["state_dict"], expected)


def test_a_config_describes_any_architecture(tmp_path):
    cfg = load_config(str(NANO_CLASSIFIER))
    model = build_model(cfg)
    torch.save({"meta": {}, "state_dict": model.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="none of the published architectures.*--config"):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "new.pth")
    result = converted(tmp_path / "w.pth", tmp_path / "new.pth", cfg=cfg)
    assert_equal(result["state_dict"], model.state_dict())
    assert result["meta"]["arch"] == "custom"


def broken(weights: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    weights = dict(weights)
    first = next(iter(weights))
    if fault == "missing":
        del weights["layers.2.blocks.1.norm1.weight"]
    elif fault == "unexpected":
        weights["layers.0.extra.weight"] = torch.zeros(1)
    elif fault == "misshapen":
        weights[first] = weights[first][:, :, 1:]
    elif fault == "no classifier bias":
        del weights["head.bias"]
    elif fault == "classifier without an axis":
        weights["head.weight"] = torch.zeros(())
    elif fault == "foreign":
        weights = {f"conv{i}.weight": torch.zeros(3) for i in range(20)}
    return weights


FAULTS = {
    "missing": r"1 missing: layers\.2\.blocks\.1\.norm1\.weight$",
    "unexpected": r"1 unexpected: layers\.0\.extra\.weight$",
    "misshapen": r"patch_embed\.projs\.0\.weight \(32, 3, 3, 4\) instead of \(32, 3, 4, 4\)$",
    "no classifier bias": r"does not fit the classifier: 1 missing: head\.fc\.bias$",
    "classifier without an axis": r"head\.fc\.weight \(\) instead of \(0, 512\)",
    "foreign": r"holds no CrossFormer: there is no patch_embed\.norm\.weight$",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_does_not_fit_is_named_and_nothing_is_written(tmp_path, fault):
    torch.save({"model": broken(old.classifier_weights("tiny", 2), fault)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/w\.pth .*{FAULTS[fault]}"):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "new.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize("kind", ["retinanet", "upernet"])
def test_a_dense_model_with_a_wrong_head_is_refused(tmp_path, kind):
    weights = old.dense_weights(kind, "tiny", 3)
    head = {"retinanet": "bbox_head", "upernet": "decode_head"}[kind]
    name = [name for name in weights if name.startswith(f"{head}.")][-1]
    faults = {
        f"missing: {name}": {n: value for n, value in weights.items() if n != name},
        f"1 unexpected: {head}.other": {**weights, f"{head}.other": torch.zeros(1)},
    }
    for complaint, faulty in faults.items():
        torch.save({"state_dict": faulty}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=re.escape(complaint)):
            convert_checkpoint(tmp_path / "w.pth", tmp_path / "new.pth")
    assert not (tmp_path / "new.pth").exists()


def test_a_dense_model_of_another_kind_needs_a_config(tmp_path):
    weights = {f"backbone.{name}": v for name, v in old.backbone_weights("tiny").items()}
    torch.save({**weights, "bbox_head.atss_cls.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="none of the known kinds: give --config"):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "new.pth")


def test_at_most_ten_weights_are_named_and_the_fitting_architecture(tmp_path, tiny):
    with pytest.raises(CheckpointError, match=r"those of arch 'tiny'\)") as caught:
        convert_checkpoint(tiny, tmp_path / "new.pth", arch="pp-s")
    assert 1 <= len(re.findall(r"layers\.|patch_embed\.|norm\.", str(caught.value))) <= 10
    # 'small' has all the names and shapes of 'base', and fewer blocks.
    torch.save(old.backbone_weights("base"), tmp_path / "base.pth")
    cfg = load_config(str(DENSE_CONFIGS["upernet"]))
    for expected in (dict(arch="small"), dict(cfg=cfg), dict(arch="small", cfg=cfg)):
        with pytest.raises(CheckpointError, match=r"those of arch 'base'\): 312 unexpected"):
            convert_checkpoint(tmp_path / "base.pth", tmp_path / "new.pth", **expected)
    with pytest.raises(CheckpointError, match="base.pth is not of arch 'large'"):
        convert_checkpoint(tmp_path / "base.pth", tmp_path / "new.pth", arch="large", cfg=cfg)


def test_an_unknown_architecture_is_named(tmp_path, tiny):
    with pytest.raises(ValueError, match="unknown arch 'huge'"):
        convert_checkpoint(tiny, tmp_path / "new.pth", arch="huge")


def test_no_library_is_imported_for_a_classifier(tmp_path, tiny):
    code = (
        "import sys; from pathlib import Path; from crossformer_mm.checkpoints.convert import *;"
        f"convert_checkpoint(Path({str(tiny)!r}), Path({str(tmp_path / 'new.pth')!r}));"
        "loaded = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'yacs'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_largest_model_takes_little_memory(tmp_path):
    with torch.device("meta"):
        backbone = CrossFormer("pp-huge", final_norm=True).state_dict()
    weights = {name: torch.zeros(value.shape) for name, value in backbone.items()}
    weights |= {"head.weight": torch.zeros(1000, 1024), "head.bias": torch.zeros(1000)}
    old.save_classifier(tmp_path / "huge.pth", weights)
    for suffix in ("pth", "safetensors"):
        code = (
            "import json, re, sys; from pathlib import Path;"
            "from crossformer_mm.checkpoints.convert import convert_checkpoint;"
            "status = Path('/proc/self/status');"
            "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]);"
            "before = peak(); convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]));"
            "print(json.dumps([before, peak()]))"
        )
        command = [sys.executable, "-c", code, tmp_path / "huge.pth", tmp_path / f"new.{suffix}"]
        output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True).stdout
        before, peak = json.loads(output)
        size = (tmp_path / "huge.pth").stat().st_size
        assert 0.9 * size < peak - before < 1.25 * size


def test_the_kinds_of_dense_models_have_configs():
    from crossformer_mm.checkpoints.dense_models import DENSE_MODELS

    assert all(Config.fromfile(CONFIGS / kind.base).model for kind in DENSE_MODELS)
    assert len(DENSE_MODELS) == len(DENSE_CONFIGS)
