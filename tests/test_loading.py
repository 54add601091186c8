"""Checkpoints in the libraries and tools: authors' files load, hostile ones do not run."""

import sys
from pathlib import Path
from types import SimpleNamespace

import old_checkpoints as old
import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, tool_main
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from mmengine.runner.checkpoint import _load_checkpoint, load_checkpoint
from test_checkpoint import HOSTILE

from crossformer_mm import CrossFormer
from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.checkpoints.loader import load_from_safe
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine.hooks.checkpoint_match import CheckpointMatchHook
from crossformer_mm.engine.launch import load_config
from crossformer_mm.models.build import build_model
from crossformer_mm.utils.errors import CheckpointError, UnsafeCheckpointError

TRAIN, TEST = ROOT / "tools/train.py", ROOT / "tools/test.py"
NANO_ARCH = Config.fromfile(NANO_CONFIG).model.backbone.arch


def options(data: Path, *more: str) -> list[str]:
    """Make a run short."""
    small = ("train_dataloader.batch_size=8", "model.test_cfg.score_thr=0.0")
    return ["--cfg-options", f"data_root={data}", *small, "train_cfg.val_interval=100", *more]


@pytest.fixture
def hostile(tmp_path) -> tuple[Path, Path]:
    """A file that would run something, and the file that would prove it."""
    path, trace = tmp_path / "hostile.pth", tmp_path / "ran"
    HOSTILE["config"][0](path, trace)
    return path, trace


@pytest.mark.parametrize("first", ["crossformer_mm", "mmengine.runner"])
def test_files_and_the_web_are_read_as_data_and_other_loaders_stay(run_tool, first):
    code = (
        f"import {first}, mmengine.runner\n"
        "from mmengine.runner.checkpoint import CheckpointLoader\n"
        "if 'crossformer_mm' not in __import__('sys').modules:\n"
        "    @CheckpointLoader.register_scheme('https://', force=True)\n"
        "    def load_from_vault(filename, map_location): pass\n"
        "import crossformer_mm\n"
        "print([p for p, f in CheckpointLoader._schemes.items() if f.__name__ == 'load_from_safe'])"
    )
    found = run_tool(sys.executable, "-c", code).stdout
    ours = ["", "http://", "https://"] if first == "crossformer_mm" else ["", "http://"]
    assert sorted(eval(found.splitlines()[-1])) == ours
    assert ("load_from_vault" in found) == (first != "crossformer_mm")


def test_get_model_takes_the_authors_file_and_converted_ones(tmp_path, run_tool, hostile):
    path, trace = hostile
    weights = old.classifier_weights("tiny")
    old.save_classifier(tmp_path / "crossformer-t.pth", {**weights, **old.v1_buffers(weights)})
    for suffix in ("pth", "safetensors"):
        convert_checkpoint(tmp_path / "crossformer-t.pth", tmp_path / f"new.{suffix}")
    torch.save(old.classifier_weights("small"), tmp_path / "small.pth")
    script = tmp_path / "get.py"
    # As a user writes it.
    script.write_text(
        "import sys, torch, crossformer_mm, mmpretrain\n"
        "for file in ('crossformer-t.pth', 'new.pth', 'new.safetensors', *sys.argv[1:]):\n"
        "    try:\n"
        "        name = 'crossformer-tiny_8xb128_in1k'\n"
        "        model = mmpretrain.get_model(name, pretrained=file)\n"
        "        torch.save(model.state_dict(), f'{file}.loaded')\n"
        "    except Exception as error:\n"
        "        print('REFUSED', type(error).__name__, error)\n"
    )
    code = f"import os, runpy; os.chdir({str(tmp_path)!r}); runpy.run_path('get.py')"
    code = f"import sys; sys.argv[1:] = ['small.pth', {str(path)!r}]; {code}"
    said = run_tool(sys.executable, "-c", code, PYTHONPATH=str(ROOT)).stdout
    for file in ("crossformer-t.pth", "new.pth", "new.safetensors"):
        loaded = torch.load(tmp_path / f"{file}.loaded", weights_only=True)
        assert torch.equal(loaded["head.fc.weight"], weights["head.weight"])
        backbone = {n: v for n, v in weights.items() if not n.startswith("head.")}
        assert all(torch.equal(loaded[f"backbone.{n}"], v) for n, v in backbone.items())
        assert len(loaded) == len(weights)
    refused = [line for line in said.splitlines() if line.startswith("REFUSED")]
    assert "CheckpointError" in refused[0] and "those of arch 'small'" in refused[0]
    assert "UnsafeCheckpointError" in refused[1] and ".system" in refused[1]
    assert len(refused) == 2 and not trace.exists()


def test_the_authors_file_is_pretrained_on_two_processes(toy_coco, run_tool, tmp_path):
    weights = old.classifier_weights(NANO_ARCH, classes=3)
    old.save_classifier(tmp_path / "authors.pth", {**weights, **old.v1_buffers(weights)})
    result = run_tool(
        *("bash", ROOT / "tools/dist_train.sh", NANO_CONFIG, 2, tmp_path / "authors.pth"),
        *("--work-dir", tmp_path / "work"),
        *options(toy_coco, "train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=0.0"),
    )
    assert "weights match those in" in result.stdout
    blocks = sum(name.endswith("qkv.weight") for name in weights)
    for dropped in (
        f"{blocks} biases, {blocks} relative_position_index",
        "2 classifier, 2 final norm",
    ):
        assert f"dropped by rule: {dropped}" in result.stdout
    saved = load_file(tmp_path / "work/epoch_1.pth")["state_dict"]
    own = [name for name in weights if not name.startswith(("head.", "norm."))]
    assert all(torch.equal(saved[f"backbone.{name}"], weights[name]) for name in own)


@pytest.mark.parametrize("option", ["--pretrained", "--resume", "test"])
def test_a_hostile_file_ends_the_tools_in_one_line(toy_coco, run_tool, tmp_path, hostile, option):
    path, trace = hostile
    work = ("--work-dir", tmp_path / "work")
    if option == "test":
        command = [TEST, NANO_CONFIG, path, *work, *options(toy_coco)]
    else:
        command = [TRAIN, NANO_CONFIG, option, path, *work, *options(toy_coco)]
    result = run_tool(sys.executable, *command, check=False)
    assert result.returncode == 1 and not trace.exists()
    last_line = result.stdout.strip().splitlines()[-1]
    assert last_line.startswith("error: checkpoint ") and ".system" in last_line
    assert "Traceback" not in result.stdout


def test_training_with_averaged_weights_resumes_and_runs_no_config(toy_coco, run_tool, tmp_path):
    config = tmp_path / "ema.py"
    config.write_text(
        f"_base_ = {str(NANO_CONFIG)!r}\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.1)]\n"
        "default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP', rule='greater'))\n"
    )
    short = options(toy_coco)[:-1]
    command = [sys.executable, TRAIN, config, "--work-dir", tmp_path / "work"]
    run_tool(*command, *short, "train_cfg.max_epochs=1")
    first = tmp_path / "work/epoch_1.pth"
    saved = load_file(first)
    assert {"ema_state_dict", "message_hub", "optimizer", "param_schedulers"} <= set(saved)
    assert saved["message_hub"]["runtime_info"]["best_score"] >= 0
    # mmengine runs this text when it resumes.
    trace = tmp_path / "ran"
    saved["meta"]["config"] = f"gpu_ids = []\nopen({str(trace)!r}, 'w').close()\n"
    torch.save(saved, first)
    result = run_tool(*command, *short, "train_cfg.max_epochs=2", "--resume")
    assert "resumed epoch: 1" in result.stdout and not trace.exists()
    own = len(saved["state_dict"])
    assert f"Checkpoint: {own} of the model's {own} weights match" in result.stdout
    second = load_file(tmp_path / "work/epoch_2.pth")
    assert second["meta"]["epoch"] == 2
    assert second["ema_state_dict"]["steps"] > saved["ema_state_dict"]["steps"]


def test_weights_alone_are_not_resumed(toy_coco, monkeypatch, run_tool, tmp_path):
    weights = old.classifier_weights(NANO_ARCH, classes=3)
    old.save_classifier(tmp_path / "authors.pth", weights)
    result = run_tool(
        *(sys.executable, TRAIN, NANO_CONFIG, "--work-dir", tmp_path / "work"),
        *("--resume", tmp_path / "authors.pth", *options(toy_coco)),
        check=False,
    )
    assert result.returncode == 1
    assert "not the state of a training" in result.stdout.strip().splitlines()[-1]


def training_with_groups(rates: list[float]) -> SimpleNamespace:
    """What a hook sees of a training whose parameters have these learning rates, one each."""
    groups = [dict(params=[torch.nn.Parameter(torch.ones(1))], lr=rate) for rate in rates]
    optim_wrapper = OptimWrapper(torch.optim.SGD(groups, lr=1.0))
    CosineAnnealingLR(optim_wrapper, T_max=5)
    warnings = []
    logger = SimpleNamespace(warning=warnings.append, info=lambda line: None)
    model = torch.nn.Linear(1, 1)
    state = dict(
        optimizer=optim_wrapper.state_dict(), message_hub={}, state_dict=model.state_dict()
    )
    return SimpleNamespace(
        model=model, optim_wrapper=optim_wrapper, logger=logger, warnings=warnings, state=state
    )


def test_resuming_with_another_optimizer_is_refused_or_said():
    hook = CheckpointMatchHook(all_weights_needed=True, resumes=True)
    training = training_with_groups([0.1, 0.2])
    hook.after_load_checkpoint(training, training_with_groups([0.1, 0.2]).state)
    assert not training.warnings
    hook.after_load_checkpoint(training, training_with_groups([0.1, 0.1]).state)
    assert training.warnings == [
        "Training goes on with the learning rates of the checkpoint, not those of the config"
    ]
    with pytest.raises(CheckpointError, match="3 parameters in 3 groups, the config trains 2 in 2"):
        hook.after_load_checkpoint(training, training_with_groups([0.1, 0.2, 0.3]).state)


def test_an_old_detector_is_tested_as_it_is(toy_coco, run_tool, tmp_path):
    model = build_model(load_config(str(NANO_CONFIG)))
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    old.save_dense(tmp_path / "w.pth", {**weights, **old.v1_buffers(weights)}, 80)
    result = run_tool(
        *(sys.executable, TEST, NANO_CONFIG, tmp_path / "w.pth"),
        *("--work-dir", tmp_path / "work", *options(toy_coco)),
    )
    own = len(weights)
    assert f"took {own} weights; dropped by rule: " in result.stdout
    assert "Attention runs on '" in result.stdout
    assert f"Checkpoint: {own} of the model's {own} weights match" in result.stdout


def test_mmengine_loads_whole_models_and_refuses_part_of_a_backbone(tmp_path):
    cfg = load_config(str(CONFIGS / "classification/crossformer-nano_toy-imagenet.py"))
    model, other = build_model(cfg), build_model(cfg)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    load_checkpoint(other, str(tmp_path / "w.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    part = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
    torch.save({"state_dict": part}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="does not fit this backbone: .* missing: layers"):
        load_checkpoint(other, str(tmp_path / "part.pth"))
    backbone = model.backbone.state_dict()
    torch.save(backbone, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="missing: patch_embed"):
        load_checkpoint(other, str(tmp_path / "backbone.pth"))
    alone = CrossFormer(cfg.model.backbone.arch, out_indices=(3,), final_norm=True)
    load_checkpoint(alone, str(tmp_path / "backbone.pth"))
    assert all(torch.equal(alone.state_dict()[name], value) for name, value in backbone.items())


def test_only_the_weights_are_renamed(tmp_path):
    weights = old.classifier_weights("tiny", 2)
    old.save_classifier(tmp_path / "w.pth", weights)
    loaded = load_from_safe(str(tmp_path / "w.pth"))
    assert list(loaded["state_dict"]["head.fc.weight"].shape) == [2, 512]
    assert "model" not in loaded and loaded["epoch"] == 299
    torch.save(weights, tmp_path / "w.pth")
    assert list(load_from_safe(str(tmp_path / "w.pth"))) == ["state_dict"]


def test_a_part_is_still_loaded_where_torch_is_told_so():
    backbone, other = CrossFormer(NANO_ARCH), CrossFormer(NANO_ARCH)
    part = {n: v for n, v in backbone.state_dict().items() if n.startswith("patch_embed.")}
    result = other.load_state_dict(part, strict=False)
    assert result.missing_keys and not result.unexpected_keys
    assert torch.equal(other.patch_embed.norm.weight, backbone.patch_embed.norm.weight)


def test_files_of_other_models_load_as_before(tmp_path, hostile):
    model = torch.nn.BatchNorm2d(3)
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 3}}, tmp_path / "w.pth")
    loaded = _load_checkpoint(str(tmp_path / "w.pth"))
    assert loaded["meta"] == {"epoch": 3}
    assert loaded["state_dict"]._metadata == model.state_dict()._metadata
    torch.save([1, 2], tmp_path / "list.pth")
    assert _load_checkpoint(str(tmp_path / "list.pth")) == [1, 2]
    with pytest.raises(UnsafeCheckpointError):
        _load_checkpoint(str(hostile[0]))


def test_a_config_that_needs_a_library_is_refused_by_the_converter(monkeypatch, tmp_path):
    old.save_classifier(tmp_path / "w.pth", old.classifier_weights("tiny", 2))
    with pytest.raises(SystemExit, match="config nowhere.py does not exist"):
        tool_main(
            monkeypatch,
            ROOT / "tools/convert_checkpoint.py",
            *(tmp_path / "w.pth", tmp_path / "new.pth", "--config", "nowhere.py"),
        )
    assert not (tmp_path / "new.pth").exists()
