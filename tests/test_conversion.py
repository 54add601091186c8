"""Converting checkpoints: every kind of model in every layout, and that nothing is lost."""

import hashlib
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable

import old_checkpoints as old
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main
from torch import Tensor

from crossformer_mm import __version__
from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine.config import check_file, load_config
from crossformer_mm.models.build import build_model, build_on_meta
from crossformer_mm.utils.errors import CheckpointError

CONVERT = ROOT / "tools/convert_checkpoint.py"
NANO_CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
UPERNET = CONFIGS / "segmentation/upernet_crossformer-s_8xb2-160k_ade20k-512x512.py"


@pytest.fixture
def convert(tmp_path) -> Callable:
    """Save what it is given, convert the file, and return what the new one holds."""

    def convert(content: object, suffix: str = "pth", **kwargs: object) -> dict:
        torch.save(content, tmp_path / "w.pth")
        convert_checkpoint(tmp_path / "w.pth", tmp_path / f"new.{suffix}", **kwargs)
        return load_file(tmp_path / f"new.{suffix}")

    return convert


@pytest.mark.families
def test_the_authors_classifier_becomes_mmpretrains(capsys, tmp_path):
    weights, source, new = old.classifier_weights("tiny"), tmp_path / "w.pth", tmp_path / "new.pth"
    old.save_classifier(source, {**weights, **old.v1_buffers(weights)})
    tool_main(CONVERT, source, new)
    said = capsys.readouterr().out
    for line in (
        f"{source}: a classifier, architecture tiny\nmatched: all {len(weights)} weights\n",
        "dropped by rule: 16 biases, 16 relative_position_index\n",
        "not carried over: optimizer, lr_scheduler, max_accuracy, epoch, config\n",
    ):
        assert line in said
    # Nothing but weights and plain values: torch's own restricted loading takes it.
    result = torch.load(new, weights_only=True)
    old.assert_same(result["state_dict"], old.as_in_mmpretrain(weights))
    assert result["meta"] == dict(
        source="w.pth",
        source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        kind="classifier",
        arch="tiny",
        crossformer_mm_version=__version__,
    )


@pytest.mark.parametrize(
    ("kind", "module", "backbone", "key"),
    [
        ("classifier", "", "", None),
        ("classifier", "module.", "", "model"),
        ("classifier", "module.", "backbone.", "state_dict"),
        ("backbone", "", "", None),
        ("backbone", "module.", "backbone.", "model"),
    ],
)
def test_every_layout_is_recognised(convert, kind, module, backbone, key):
    weights = old.backbone_weights("tiny", final_norm=backbone == "")
    if kind == "classifier":
        weights = old.classifier_weights("tiny", classes=5)
    layout = {
        module + ("" if name.startswith("head.") else backbone) + name: value
        for name, value in {**weights, **old.v1_buffers(weights)}.items()
    }
    result = convert(layout if key is None else {key: layout})
    expected = weights if kind == "backbone" else old.as_in_mmpretrain(weights)
    old.assert_same(result["state_dict"], expected)
    assert result["meta"]["kind"] == kind


@pytest.mark.parametrize("kind", old.DENSE)
def test_an_old_dense_model_keeps_every_weight(tmp_path, kind):
    weights = old.dense_weights(kind, "tiny", 7)
    extra = {f"backbone.norm.{name}": torch.ones(512) for name in ("weight", "bias")}
    old.save_dense(tmp_path / "w.pth", {**weights, **extra, **old.v1_buffers(weights)}, 7)
    convert_checkpoint(tmp_path / "w.pth", tmp_path / "new.safetensors")
    result = load_file(tmp_path / "new.safetensors")
    old.assert_same(result["state_dict"], weights)
    assert result["meta"]["arch"] == "tiny"
    kept = result["meta"]["dataset_meta"]
    assert kept["classes"] == [f"class {i}" for i in range(7)]
    assert kept["palette"] == [[i, 0, 255] for i in range(7)]


@pytest.mark.families
@pytest.mark.parametrize("kind", old.DENSE)
def test_every_dense_config_of_a_kind_has_the_old_names(kind):
    name = kind.removeprefix("semantic_").replace("_", "-")
    configs = {*CONFIGS.glob(f"*/{name}_crossformer-*.py")} - {*CONFIGS.glob("*/*-nano_*.py")}
    assert configs
    for config in configs:
        model = build_on_meta(load_config(str(config)))
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        heads = {name: shape for name, shape in own.items() if not name.startswith("backbone.")}
        channels = [model.backbone.arch.channels(stage) for stage in range(4)]
        assert heads == old.DENSE[kind](channels), config.name


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_any_type_and_memory_are_written_alone(convert, tmp_path, suffix):
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    weights = old.classifier_weights("tiny", 2)
    weights = {n: v.to(dtypes[i % 4]) for i, (n, v) in enumerate(weights.items())}
    weights["norm.bias"] = weights["norm.weight"].view(512)
    large = torch.ones(5000, *weights["head.weight"].shape)  # 20 MB
    weights["head.weight"] = large[7]
    result = convert(weights, suffix)
    old.assert_same(result["state_dict"], old.as_in_mmpretrain(weights))
    new, again = tmp_path / f"new.{suffix}", tmp_path / "again.pth"
    assert "names unchanged" in convert_checkpoint(new, again)[1]
    old.assert_same(load_file(again)["state_dict"], result["state_dict"])
    bytes_of_weights = sum(value.nbytes for value in weights.values())
    assert new.stat().st_size < 1.01 * bytes_of_weights + 100_000
    assert new.stat().st_mode == (tmp_path / "w.pth").stat().st_mode
    assert (new.read_bytes()[8:9] == b"{") == (suffix == "safetensors")


def test_a_config_gives_the_backbone_of_a_classifier_to_a_dense_model(tmp_path):
    weights = old.classifier_weights("small")
    old.save_classifier(tmp_path / "w.pth", weights)
    tool_main(CONVERT, tmp_path / "w.pth", tmp_path / "new.pth", "--config", UPERNET)
    expected = {n: v for n, v in weights.items() if not n.startswith(("head.", "norm."))}
    old.assert_same(load_file(tmp_path / "new.pth")["state_dict"], expected)


def test_a_config_describes_any_architecture(convert):
    cfg = load_config(str(NANO_CLASSIFIER))
    model = build_model(cfg)
    content = {"meta": {}, "state_dict": model.state_dict()}
    with pytest.raises(CheckpointError, match="none of the published architectures.*--config"):
        convert(content)
    result = convert(content, cfg=cfg)
    old.assert_same(result["state_dict"], model.state_dict())
    assert result["meta"]["arch"] == "custom"


def dense(name: str, value: Tensor | None) -> Callable:
    """A RetinaNet with another weight, or without one."""
    return lambda w: {**old.dense_weights("retinanet", "tiny", 3), name: value}


# What is changed in the weights of the authors' classifier (None: taken away), and what is said.
FAULTS = {
    "missing": ({"layers.2.blocks.1.norm1.weight": None}, r"1 missing: backbone\.layers\.2.*norm1"),
    "unexpected": ({"layers.0.extra": torch.ones(1)}, r"1 unexpected: backbone\.layers\.0\.extra$"),
    "misshapen": (
        {"patch_embed.projs.0.bias": torch.ones(33)},
        r"0\.bias \(33,\) instead of \(32,",
    ),
    "NaN": (
        {"norm.bias": torch.ones(512) * torch.nan},
        r"NaN or infinity .* in 1 weights: backbone\.norm\.bias \(",
    ),
    "infinite": (
        {"head.bias": torch.ones(2) / 0},
        r"NaN or infinity .* in 1 weights: head\.fc\.bias \(",
    ),
    "integers": ({"norm.bias": torch.ones(512).int()}, "1 of another type: backbone.norm.bias$"),
    "too large": (
        {"norm.bias": torch.full((512,), 1e39, dtype=torch.float64)},
        r"as float32.*norm\.bias \(",
    ),
    "complex": ({"norm.bias": torch.ones(512).cfloat()}, "1 of another type: backbone.norm.bias$"),
    "no classifier bias": ({"head.bias": None}, r"the classifier: 1 missing: head\.fc\.bias$"),
    "no axis": ({"head.weight": torch.ones(())}, r"head\.fc\.weight \(\) instead of \(0, 512\)"),
    "lines in a name": ({"a\nb" + "c" * 10**4: torch.ones(1)}, r": backbone.a\\nbc+\.\.\.$"),
    "foreign": ({"patch_embed.norm.weight": None}, "there is no patch_embed.norm.weight$"),
    "no head's bias": (dense("bbox_head.retina_reg.bias", None), r"missing: bbox_head.retina_reg"),
    "another head": (dense("bbox_head.other", torch.ones(1)), "1 unexpected: bbox_head.other$"),
    "no classes": (dense("bbox_head.retina_cls.weight", None), "1 missing: bbox_head.retina_cls"),
    "another detector": (
        lambda w: {f"backbone.{n}": v for n, v in w.items()} | {"bbox_head.a": torch.ones(1)},
        "none of the known kinds: give --config",
    ),
    "no list": (lambda w: {"meta": {"CLASSES": {"a"}}, "state_dict": w}, "that are no lists"),
}


@pytest.mark.fault("weights that do not fit, converting")
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_does_not_fit_is_named_and_nothing_is_written(convert, tmp_path, fault):
    change, said = FAULTS[fault]
    weights = old.classifier_weights("tiny", 2)
    changed = change(weights) if callable(change) else {**weights, **change}
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/w\.pth .*{said}") as caught:
        convert({name: value for name, value in changed.items() if value is not None})
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.fault("weights that do not fit, converting")
def test_at_most_ten_weights_are_named_and_the_fitting_architecture(convert):
    with pytest.raises(CheckpointError, match=r"those of arch 'tiny'\)") as caught:
        convert(old.backbone_weights("tiny"), arch="pp-s")
    assert 1 <= len(re.findall(r"layers\.|patch_embed\.|norm\.", str(caught.value))) <= 10
    # 'small' has all the names and shapes of 'base', and fewer blocks.
    base, cfg = old.backbone_weights("base"), load_config(str(UPERNET))
    for expected in (dict(arch="small"), dict(cfg=cfg)):
        with pytest.raises(CheckpointError, match=r"those of arch 'base'\): 312 unexpected"):
            convert(base, **expected)
    with pytest.raises(ValueError, match="unknown arch 'huge'"):
        convert(base, arch="huge")
    cfg.model = dict(type="Nothing")
    with pytest.raises(CheckpointError, match=r"^the model of .*512x512\.py cannot be built"):
        convert(base, cfg=cfg)


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_a_destination_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = tmp_path / "w.pth"
    torch.save(old.classifier_weights("tiny", 2), source)
    content = source.read_bytes()
    for destination, said in {
        tmp_path / "missing/new.pth": f"there is no folder {tmp_path / 'missing'}$",
        tmp_path / ("n" * 300): "File name too long",
        tmp_path: "it is not a file$",
        source: "is the source: give the result another name$",
    }.items():
        with pytest.raises(SystemExit, match=f"^error: {destination}.*{said}"):
            tool_main(CONVERT, "~/w.pth", destination)
    with pytest.raises(SystemExit, match=r"^error: checkpoint .*nowhere\.pth does not exist$"):
        tool_main(CONVERT, tmp_path / "nowhere.pth", tmp_path / "new.pth")
    assert list(tmp_path.iterdir()) == [source] and source.read_bytes() == content
    tool_main(CONVERT, "~/w.pth", "~/new.pth")
    check_file("~/new.pth", "--pretrained")


@pytest.mark.fault("disk, permissions, kills, two at once")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_full_disk_leaves_what_was_there(tmp_path, suffix):
    new = tmp_path / f"new.{suffix}"
    new.write_bytes(b"older")
    torch.save(old.classifier_weights("tiny", 2), tmp_path / "w.pth")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, usual[1]))  # of files that are written
    try:
        with pytest.raises(CheckpointError, match=f"^{new} cannot be written: File too large$"):
            convert_checkpoint(tmp_path / "w.pth", new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert new.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 2


MEASURE = """
import json, re, sys
from pathlib import Path
from crossformer_mm.checkpoints.convert import convert_checkpoint
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
loaded = sorted({"mmcv", "mmdet", "mmseg", "mmpretrain", "yacs"} & set(sys.modules))
print(json.dumps([before, peak(), loaded]))
"""


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_classifier_takes_little_memory_and_no_library(tmp_path, suffix):
    weights = old.classifier_weights("large")
    old.save_classifier(tmp_path / "w.pth", weights)
    command = [sys.executable, "-c", MEASURE, tmp_path / "w.pth", tmp_path / f"new.{suffix}"]
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True).stdout
    before, peak, loaded = json.loads(output)
    size = (tmp_path / "w.pth").stat().st_size
    assert 0.9 * size < peak - before < 1.25 * size
    assert not loaded
