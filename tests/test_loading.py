"""Weights and training state load, wherever they come from, and what does not fit is refused."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import old_checkpoints as old
import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, SMALL_ARCH, tool_main
from mmengine.logging import MessageHub
from mmengine.model import PretrainedInit
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader, load_checkpoint
from test_hostile_checkpoints import ATTACKS
from test_tools import options

from crossformer_mm import CrossFormer, register_classifiers
from crossformer_mm.checkpoints import loader
from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.checkpoints.loader import (
    find_file,
    load_from_safe,
    load_model,
    use_safe_loader,
)
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.hooks.whole_checkpoints import find_checkpoint_to_resume
from crossformer_mm.models.build import build_model
from crossformer_mm.utils.errors import CheckpointError, UnsafeCheckpointError
from crossformer_mm.visualization.inputs import build_backbone

# --- Backbones and whole models -----------------------------------------------------------------

# How a checkpoint names the backbone's weights and where it has them, and how init_cfg asks for it.
LAYOUTS = {
    "weights": ("", None, lambda form: form),
    "the authors' layout": ("module.", "model", lambda form: form),
    "mmengine's": ("backbone.", "state_dict", lambda form: {**form, "map_location": "cpu"}),
    "in parallel": ("module.backbone.", "state_dict", lambda form: [form]),
    "no prefix": ("backbone.", "model", lambda form: {**form, "prefix": None}),
    "a prefix": ("encoder.", "model", lambda form: {**form, "prefix": "encoder."}),
    "a prefix without a dot": ("backbone.", None, lambda form: {**form, "prefix": "backbone"}),
    "the class": ("", "state_dict", lambda form: {**form, "type": PretrainedInit}),
}


@pytest.mark.families
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_every_layout_load_by_every_form_of_init_cfg(tmp_path, layout):
    prefix, key, form = LAYOUTS[layout]
    source = CrossFormer(SMALL_ARCH, final_norm=True)
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    weights[prefix.removesuffix("backbone.") + "head.weight"] = torch.zeros(10, 128)
    weights[prefix + "layers.0.blocks.0.attn.biases"] = torch.zeros(49, 2)
    weights[prefix + "layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    weights[prefix + "layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "w.pth")
    if key is not None:  # as in dense models
        del source.norm
    init_cfg = form(dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth")))
    model = CrossFormer(SMALL_ARCH, final_norm=key is None, init_cfg=init_cfg)
    model.init_weights()
    old.assert_same(model.state_dict(), source.state_dict())


@pytest.mark.fault("weights that do not fit, converting")
@pytest.mark.families
def test_a_weight_that_does_not_fit_is_named_and_nothing_is_loaded(tmp_path):
    weights = CrossFormer(SMALL_ARCH).state_dict()
    del weights["layers.2.blocks.1.mlp.fc1.bias"]
    torch.save(weights, tmp_path / "w.pth")
    init_cfg = dict(type="Pretrained", checkpoint=f"{tmp_path}/w.pth")
    with pytest.raises(ValueError, match="init_cfg must be .*'layer'"):
        CrossFormer(SMALL_ARCH, init_cfg={**init_cfg, "layer": "Linear"}).init_weights()
    backbone = CrossFormer(SMALL_ARCH, init_cfg=init_cfg)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"1 missing: layers\.2\.blocks\.1\.mlp\.fc1\.bias"):
        backbone.init_weights()
    torch.save({name: value * torch.nan for name, value in before.items()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth has NaN .* in \d+ weights: patch_embed"):
        backbone.init_weights()
    old.assert_same(backbone.state_dict(), before)
    # Where torch is told so, a part is loaded.
    assert backbone.load_state_dict(weights, strict=False).missing_keys
    assert torch.equal(backbone.patch_embed.norm.weight, weights["patch_embed.norm.weight"])


def test_get_model_takes_the_authors_file_and_converted_ones(monkeypatch, tmp_path):
    from mmpretrain import get_model  # takes seconds

    register_classifiers()
    monkeypatch.chdir(tmp_path)
    weights = old.classifier_weights("tiny")
    old.save_classifier(Path("authors.pth"), {**weights, **old.v1_buffers(weights)})
    for new in ("new.pth", "new.safetensors"):
        convert_checkpoint(Path("authors.pth"), Path(new))
    for file in ("authors.pth", "new.pth", "new.safetensors"):
        loaded = get_model("crossformer-tiny_8xb128_in1k", pretrained=file).state_dict()
        old.assert_same(loaded, old.as_in_mmpretrain(weights))
    torch.save(old.classifier_weights("small"), "small.pth")
    with pytest.raises(CheckpointError, match="those of arch 'small'"):
        get_model("crossformer-tiny_8xb128_in1k", pretrained="small.pth")


@pytest.mark.fault("weights that do not fit, converting")
@pytest.mark.families
def test_mmengine_loads_whole_models_and_refuses_part_of_a_backbone(tmp_path):
    cfg = load_config(str(CONFIGS / "classification/crossformer-nano_toy-imagenet.py"))
    model, other = build_model(cfg), build_model(cfg)
    file = str(tmp_path / "w.pth")
    torch.save({"state_dict": model.state_dict()}, file)
    load_checkpoint(other, file)
    old.assert_same(other.state_dict(), model.state_dict())
    part = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
    torch.save({"state_dict": part}, file)
    with pytest.raises(CheckpointError, match="does not fit this backbone: .* missing: layers"):
        load_checkpoint(other, file)
    torch.save(model.backbone.state_dict(), file)
    with pytest.raises(CheckpointError, match="missing: patch_embed"):
        load_checkpoint(other, file)
    alone = CrossFormer(cfg.model.backbone.arch, out_indices=(3,), final_norm=True)
    load_checkpoint(alone, file)
    old.assert_same(alone.state_dict(), model.backbone.state_dict())


@pytest.mark.fault("weights that do not fit, converting")
@pytest.mark.families
@pytest.mark.parametrize("lost", ["patch_embed.projs.0.weight", "norm.bias", "patch_embed."])
def test_any_weight_that_is_lost_is_missed(tmp_path, lost):
    cfg = load_config(str(CONFIGS / "classification/crossformer-nano_toy-imagenet.py"))
    model = build_model(cfg)
    weights = model.state_dict()
    kept = {n: v for n, v in weights.items() if not n.startswith(f"backbone.{lost}")}
    torch.save({"state_dict": kept}, tmp_path / "w.pth")
    said = rf"{len(weights) - len(kept)} missing: {lost}"
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(model, str(tmp_path / "w.pth"))


@pytest.mark.fault("weights that do not fit, converting")
@pytest.mark.families
@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"backbone.conv1.weight": torch.ones(64, 3, 7, 7)}},
        {"conv1.weight": torch.ones(64, 3, 7, 7)},
        {"model": {"a": 1}},
        {"state_dict": {"backbone.norm.weight": 3}},
        {"epoch": 3},
    ],
    ids=str,
)
def test_a_file_of_another_model_is_refused_by_a_model_with_a_crossformer(tmp_path, content):
    cfg = load_config(str(CONFIGS / "classification/crossformer-nano_toy-imagenet.py"))
    torch.save(content, tmp_path / "w.pth")
    for model in (build_model(cfg), CrossFormer(SMALL_ARCH)):
        with pytest.raises(CheckpointError, match="does not fit this backbone: .* missing: patch"):
            load_checkpoint(model, str(tmp_path / "w.pth"))


@pytest.mark.families
def test_a_backbone_with_or_without_its_prefix_loads(tmp_path):
    detector, file = build_model(load_config(str(NANO_CONFIG))), str(tmp_path / "w.pth")
    expected = detector.backbone.state_dict()
    named = {f"backbone.{name}": value for name, value in expected.items()}
    for weights in (named, {**named, "neck.a": torch.ones(1)}, expected):
        torch.save({"state_dict": weights}, file)
        alone = build_model(load_config(str(NANO_CONFIG))).backbone
        load_checkpoint(alone, file)
        old.assert_same(alone.state_dict(), expected)
    torch.save({"state_dict": named}, file)
    other = build_model(load_config(str(NANO_CONFIG)))
    load_checkpoint(other, file)
    old.assert_same(other.backbone.state_dict(), expected)


@pytest.mark.fault("weights that do not fit, converting")
@pytest.mark.families
@pytest.mark.parametrize("metadata", [{"": {"version": "2"}}, {"": 3}, [1], {"": {"version": 2.5}}])
def test_versions_of_modules_that_are_none_are_refused(tmp_path, metadata):
    state = torch.nn.BatchNorm2d(3).state_dict()
    state._metadata = metadata
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(UnsafeCheckpointError, match="sets attributes of an OrderedDict"):
        load_checkpoint(torch.nn.BatchNorm2d(3), str(tmp_path / "w.pth"))


@pytest.mark.fault("weights that do not fit, converting")
@pytest.mark.families
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, 1e39])
@pytest.mark.parametrize("key", ["state_dict", "ema_state_dict"])
def test_weights_of_a_head_that_are_not_finite_are_named_unless_told_otherwise(
    toy_coco, tmp_path, capsys, key, value
):
    cfg, file = load_config(str(NANO_CONFIG)), tmp_path / "w.pth"
    weights = build_model(cfg).state_dict()
    name = "bbox_head.retina_cls.bias"
    bad = {**weights, name: torch.full_like(weights[name].double(), value)}
    torch.save({"state_dict": weights, key: bad}, file)
    said = rf"w\.pth has NaN or infinity .* in 1 weights: {name} \(check_weights=False"
    for load in (
        lambda: load_model(cfg, str(file), torch.device("cpu")),
        lambda: load_checkpoint(build_model(cfg), str(file)),
        lambda: build_backbone(cfg, str(file)),
    ):
        with pytest.raises(CheckpointError, match=said):
            load()
    test = (ROOT / "tools/test.py", NANO_CONFIG, file, "--work-dir", tmp_path / "work")
    with pytest.raises(SystemExit, match=f"^error: .*{said}"):
        tool_main(*test, *options(toy_coco))
    cfg.check_weights = False
    assert load_model(cfg, str(file), torch.device("cpu")) and build_backbone(cfg, str(file))
    if key == "state_dict" and value is torch.nan:
        tool_main(*test, *options(toy_coco, "check_weights=False"))
        assert (
            f"{len(weights)} of the model's {len(weights)} weights match" in capsys.readouterr().out
        )


@pytest.mark.families
def test_files_of_other_models_load_as_before(tmp_path):
    model, file = torch.nn.BatchNorm2d(3), str(tmp_path / "w.pth")
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 3}}, file)
    loaded = CheckpointLoader.load_checkpoint(file)
    assert loaded["meta"] == {"epoch": 3}
    assert loaded["state_dict"]._metadata == model.state_dict()._metadata
    torch.save([1, 2], file)
    assert CheckpointLoader.load_checkpoint(file) == [1, 2]
    ATTACKS["as config"][0](Path(file), tmp_path / "ran")
    with pytest.raises(UnsafeCheckpointError):
        CheckpointLoader.load_checkpoint(file)


@pytest.mark.families
def test_loaders_that_others_registered_stay(monkeypatch, capsys):
    loaders = CheckpointLoader._schemes
    ours = {prefix for prefix, loader in loaders.items() if loader is load_from_safe}
    assert ours == {"", "http://", "https://"}

    def load_from_vault(filename: str, map_location: str) -> None: ...

    monkeypatch.setitem(loaders, "https://", load_from_vault)
    use_safe_loader()
    assert CheckpointLoader._schemes["https://"] is load_from_vault
    assert "load_from_vault, which another package registered" in capsys.readouterr().out


# --- Training state -----------------------------------------------------------------------------

# Those with more than numbers in their state, one of each kind, and one that has only these.
SCHEDULES = {
    "CosineRestartLR": dict(periods=[2, 3], restart_weights=[1, 0.5], eta_min=0.0),
    "MultiStepMomentum": dict(milestones=[2, 2, 3]),
    "OneCycleLR": dict(eta_max=1.0, total_steps=10, anneal_strategy="linear"),
    "OneCycleParamScheduler": dict(eta_max=1.0, total_steps=10, param_name="lr"),
    "ReduceOnPlateauLR": dict(monitor="loss"),
    "PolyLR": dict(),
}


@pytest.mark.families
@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_state_of_every_schedule_loads(tmp_path, kind):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    schedule = PARAM_SCHEDULERS.build(dict(type=kind, optimizer=optimizer, **SCHEDULES[kind]))
    optimizer.step()
    schedule.step(*([{"loss": 1.0}] if kind == "ReduceOnPlateauLR" else []))
    saved = {"state_dict": {}, "param_schedulers": [schedule.state_dict()]}
    torch.save(saved, tmp_path / "w.pth")
    assert load_file(tmp_path / "w.pth")["param_schedulers"] == saved["param_schedulers"]


@pytest.mark.families
def test_training_state_loads(tmp_path):
    hub = MessageHub.get_instance("test_training_state_loads")
    hub.update_scalar("train/loss", 0.5)
    hub.update_info("iter", 7)
    hub.update_info("best_score", np.float64(0.25))
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = {
        "message_hub": hub.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state_dict": model.half().state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "arrays": [np.arange(6.0).reshape(2, 3).T, np.array(["a", "bc"]), np.array([], np.int32)],
        "plain": [torch.Size([2]), torch.device("cpu"), torch.float16, {1, 2}, np.bool_(True)],
    }
    torch.save(saved, tmp_path / "epoch_1.pth")
    loaded = load_file(tmp_path / "epoch_1.pth")
    assert loaded["message_hub"]["log_scalars"]["train/loss"].current() == 0.5
    assert loaded["message_hub"]["runtime_info"]["best_score"] == 0.25
    assert torch.equal(loaded["state_dict"]["weight"], model.weight)
    assert loaded["state_dict"]._metadata == model.state_dict()._metadata
    old.assert_same(loaded["optimizer"]["state"], saved["optimizer"]["state"])
    assert loaded["parameter"].requires_grad and loaded["plain"] == saved["plain"]
    for array, expected in zip(loaded["arrays"], saved["arrays"], strict=True):
        assert array.dtype == expected.dtype and np.array_equal(array, expected)


@pytest.mark.fault("resuming")
def test_the_last_complete_checkpoint_is_resumed(tmp_path):
    assert find_checkpoint_to_resume(tmp_path) is None
    assert find_checkpoint_to_resume(tmp_path / "missing") is None
    for name in ("epoch_2", "iter_9", "epoch_10", "best_coco_epoch_11"):
        torch.save({"a": torch.ones(1000)}, tmp_path / f"{name}.pth")
    assert find_checkpoint_to_resume(tmp_path).name == "epoch_10.pth"
    size = (tmp_path / "epoch_10.pth").stat().st_size
    os.truncate(tmp_path / "epoch_10.pth", size - 100)
    assert find_checkpoint_to_resume(tmp_path).name == "iter_9.pth"
    with (tmp_path / "iter_9.pth").open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(100))
    assert find_checkpoint_to_resume(tmp_path).name == "epoch_2.pth"


@pytest.mark.fault("resuming")
@pytest.mark.parametrize(
    ("written", "resumed"),  # from the oldest to the newest
    [
        (["epoch_3.pth", "epoch_1.pth", "last_checkpoint: epoch_1.pth"], "epoch_1.pth"),
        (["iter_500.pth", "epoch_1.pth"], "epoch_1.pth"),
        # A copy of the folder, made by the names.
        (["epoch_10.pth", "epoch_9.pth", "last_checkpoint: epoch_10.pth"], "epoch_10.pth"),
        # Killed before the note was written, while it was, and in a folder that was moved.
        (["epoch_1.pth", "last_checkpoint: epoch_1.pth", "epoch_2.pth"], "epoch_2.pth"),
        (["iter_9.pth", "iter_10.pth", "last_checkpoint: "], "iter_10.pth"),
        (["iter_10.pth", "iter_9.pth", "last_checkpoint: elsewhere/iter_10.pth"], "iter_10.pth"),
        (["stopped.pth", "epoch_1.pth", "last_checkpoint: epoch_1.pth"], "epoch_1.pth"),
        (["epoch_1.pth", "stopped.pth", "last_checkpoint: stopped.pth"], "stopped.pth"),
    ],
)
def test_the_training_that_wrote_last_is_resumed(tmp_path, written, resumed):
    for second, what in enumerate(written):
        name, _, noted = what.partition(": ")
        if name == "last_checkpoint":
            (tmp_path / name).write_text(noted and str(tmp_path / noted))
        else:
            torch.save({"a": torch.ones(1)}, tmp_path / name)
        os.utime(tmp_path / name, (second, second))
    assert find_checkpoint_to_resume(tmp_path).name == resumed


# --- The tools ----------------------------------------------------------------------------------


@pytest.fixture
def run(toy_coco, tmp_path, capsys):
    """Run a tool in this process, briefly, on the tiny data set; return what it printed."""

    def run(tool: str, *arguments: object, changes: Sequence[str] = ()) -> str:
        arguments = (*arguments, "--work-dir", tmp_path / "work", *options(toy_coco, *changes))
        tool_main(ROOT / f"tools/{tool}.py", NANO_CONFIG, *arguments)
        return capsys.readouterr().out

    return run


def test_the_authors_file_is_trained_on_and_resumed_and_no_config_in_it_runs(run, tmp_path):
    file, trace, first = tmp_path / "w.pth", tmp_path / "ran", tmp_path / "work/epoch_1.pth"
    arch = load_config(str(NANO_CONFIG)).model.backbone.arch
    weights = CrossFormer(arch, final_norm=True).state_dict()
    weights |= {"head.weight": torch.ones(3, len(weights["norm.bias"])), "head.bias": torch.ones(3)}
    old.save_classifier(file, {**weights, **old.v1_buffers(weights)})
    with pytest.raises(SystemExit, match="^error: .*holds weights, but not the state of a train"):
        run("train", "--resume", file)
    no_change = ["optim_wrapper.optimizer.lr=0.0", "train_cfg.max_epochs=1"]
    said = run("train", "--pretrained", file, changes=no_change)
    assert "2 classifier, 2 final norm" in said and "6 biases, 6 relative_position_index" in said
    saved = load_file(first)
    own = {f"backbone.{n}": v for n, v in weights.items() if not n.startswith(("head.", "norm."))}
    old.assert_same({name: saved["state_dict"][name] for name in own}, own)
    # mmengine runs this text when it resumes.
    saved["meta"]["config"] = f"gpu_ids = []\nopen({str(trace)!r}, 'w').close()\n"
    torch.save(saved, first)
    with pytest.raises(SystemExit, match="^error: .* parameters in 1 groups, the config trains "):
        run("train", "--resume", changes=["optim_wrapper.paramwise_cfg.norm_decay_mult=0"])
    said = run("train", "--resume", changes=["train_cfg.max_epochs=2"])
    assert "goes on with the checkpoint's initial_lr, not the config's" in said
    count = len(saved["state_dict"])
    assert f"Checkpoint: {count} of the model's {count} weights match" in said
    assert "resumed epoch: 1" in said and not trace.exists()
    assert load_file(tmp_path / "work/epoch_2.pth")["meta"]["epoch"] == 2


def test_an_old_detector_is_tested_as_it_is(run, tmp_path):
    model = build_model(load_config(str(NANO_CONFIG)))
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    old.save_dense(tmp_path / "w.pth", {**weights, **old.v1_buffers(weights)}, 80)
    said = run("test", tmp_path / "w.pth")
    assert f"took {len(weights)} weights; dropped by rule: " in said
    assert f"Checkpoint: {len(weights)} of the model's {len(weights)} weights match" in said


# --- From names to files ------------------------------------------------------------------------


def test_names_and_addresses_become_files(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "download", Path)
    assert find_file("torchvision://resnet50").name.startswith("resnet50-")
    assert find_file("open-mmlab://resnet50_v1c").name.startswith("resnet50_v1c-")
    assert find_file("~/w.pth") == Path.home() / "w.pth"
    assert find_file((tmp_path / "a b.pth").as_uri()) == tmp_path / "a b.pth"
    for name in ("s3://bucket/w.pth", "pavi://w", "torchvision://no_such_model"):
        with pytest.raises(CheckpointError, match=name):
            find_file(name)
