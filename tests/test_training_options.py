"""The options of docs/training.md, read from that page: each takes effect."""

import json
import math
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from crossformer_mm import CrossFormer, CrossFormerLayerDecayConstructor
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine import launch
from crossformer_mm.engine.hooks.loss_check import InvalidLossError, LossCheckHook
from crossformer_mm.models import CrossFormerBlock

TRAIN = ROOT / "tools/train.py"
PAGE = (ROOT / "docs/training.md").read_text()
CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
DETECTOR = CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py"
SEGMENTOR = CONFIGS / "segmentation/upernet_crossformer-nano_toy-ade.py"
NANO_DEPTHS = (1, 1, 2, 2)

# One epoch of 4 iterations with 4 images each, without validation.
SHORT = {
    "train_dataloader.batch_size": 4,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "train_cfg.max_epochs": 1,
    "val_cfg": None,
    "val_dataloader": None,
    "val_evaluator": None,
    "default_hooks.logger.interval": 1,
}


def documented(section: str, language: str) -> str:
    """The lines of a section of the page: its code block in ``language``."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    (lines,) = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    return lines


def sections_with_command_lines() -> list[str]:
    """The sections that show a config line and options of the tool for the same thing."""
    found = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return [name for name, text in found if "```bash" in text and "```python" in text]


def config_with(
    section: str | None, tmp_path: Path, base: Path = CLASSIFIER, options: Mapping | None = None
) -> Config:
    """A config on top of ``base``, with the lines of a section of the page."""
    path = tmp_path / "config.py"
    lines = "" if section is None else documented(section, "python")
    path.write_text(f"_base_ = {str(base)!r}\n{lines}")
    return launch.load_config(str(path), options, str(tmp_path / "work"))


class Recorder(Hook):
    """Keeps the parameters as they are after every iteration."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def after_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        """Take a copy."""
        self.weights.append(copy_weights(runner.model))


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def build(
    section: str | None, data_roots: Mapping[str, Path], tmp_path: Path, **options: object
) -> Runner:
    """The runner of a short training with the lines of a section."""
    options = {**SHORT, "data_root": str(data_roots["classification"]), **options}
    cfg = config_with(section, tmp_path, options=options)
    return launch.build_runner(cfg, "none", all_weights_needed=False)


@pytest.mark.parametrize("section", sections_with_command_lines())
def test_config_line_and_command_line_say_the_same(monkeypatch, tmp_path, section):
    parser = ArgumentParser()
    launch.add_cfg_options(parser)
    parser.add_argument("--amp", action="store_true")
    args = parser.parse_args(documented(section, "bash").split())
    # The shipped classifier has mixed precision already, the detector has not.
    by_option = config_with(None, tmp_path, DETECTOR, args.cfg_options)
    by_line = config_with(section, tmp_path, DETECTOR)
    if args.amp:
        by_option.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
        by_line.optim_wrapper.setdefault("loss_scale", "dynamic")
    assert by_option.to_dict() == by_line.to_dict()
    assert by_option.to_dict() != config_with(None, tmp_path, DETECTOR).to_dict()


# Layer decay


def expected_scale(name: str, decay_rate: float) -> float:
    """The factor of a parameter's learning rate, from the authors' names of parameters."""
    depth = sum(NANO_DEPTHS)
    if "backbone.patch_embed." in name:
        return decay_rate ** (depth + 1)
    block = re.search(r"backbone\.layers\.(\d)\.blocks\.(\d)\.", name)
    if block:
        stage, index = map(int, block.groups())
        return decay_rate ** (depth + 1 - (sum(NANO_DEPTHS[:stage]) + index + 1))
    downsample = re.search(r"backbone\.layers\.(\d)\.downsample\.", name)
    if downsample:
        return decay_rate ** (depth + 1 - sum(NANO_DEPTHS[: int(downsample.group(1)) + 1]))
    return 1.0


@pytest.mark.parametrize("base", [CLASSIFIER, DETECTOR, SEGMENTOR], ids=lambda path: path.stem)
def test_layer_decay_in_every_library(tmp_path, base):
    cfg = config_with("Layer decay", tmp_path, base)
    launch.replace_gpu_only_parts(cfg)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(groups) == len(names)
    for name, parameter in names.items():
        group = groups[id(parameter)]
        expected = cfg.optim_wrapper.optimizer.lr * expected_scale(name, 0.8)
        assert group["lr"] == pytest.approx(expected, rel=1e-9), name
        decay = cfg.optim_wrapper.optimizer.weight_decay if parameter.ndim > 1 else 0.0
        assert group["weight_decay"] == decay, name
    assert {expected_scale(name, 0.8) for name in names} == {0.8**i for i in range(8)} | {1.0}


def layer_decay(model: nn.Module, **paramwise: object) -> OptimWrapper:
    optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.1)
    return CrossFormerLayerDecayConstructor(dict(optimizer=optimizer), paramwise)(model)


def tiny_model() -> nn.Module:
    arch = dict(embed_dims=16, depths=NANO_DEPTHS, num_heads=(1, 1, 2, 2))
    backbone = CrossFormer(arch, group_size=4, interval=1, final_norm=True, frozen_stages=1)
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(128, 2)))


def test_layer_decay_keeps_the_other_options_by_parameter():
    model = tiny_model()
    keys = {"head.weight": dict(lr_mult=10), "layers.3.blocks.1": dict(lr_mult=2, decay_mult=3)}
    wrapper = layer_decay(model, decay_rate=0.5, norm_decay_mult=1.0, custom_keys=keys)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group["params"]}
    block, norm = model["backbone"].layers[3].blocks[1].norm1.weight, model["backbone"].norm.weight
    stem = model["backbone"].patch_embed.norm.weight
    assert groups[id(model["head"].weight)]["lr"] == pytest.approx(1e-2)
    assert groups[id(model["head"].bias)]["lr"] == pytest.approx(1e-3)
    assert groups[id(block)]["lr"] == pytest.approx(1e-3 * 2 * 0.5)
    assert groups[id(block)]["weight_decay"] == pytest.approx(0.3)
    assert groups[id(norm)]["lr"] == pytest.approx(1e-3)
    assert groups[id(norm)]["weight_decay"] == pytest.approx(0.1)
    assert groups[id(model["head"].bias)]["weight_decay"] == 0
    assert id(stem) not in groups, "frozen"


def test_layer_decay_acts_without_weight_decay():
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9)
    constructor = CrossFormerLayerDecayConstructor(dict(optimizer=optimizer), dict(decay_rate=0.5))
    groups = constructor(tiny_model()).optimizer.param_groups
    assert len({group["lr"] for group in groups}) == sum(NANO_DEPTHS[1:]) + 1
    assert all("weight_decay" not in group or group["weight_decay"] == 0 for group in groups)


@pytest.mark.parametrize("decay_rate", [None, 0, -0.5, 1.5, "0.8", True])
def test_a_wrong_decay_rate_is_named(decay_rate):
    paramwise = {} if decay_rate is None else dict(decay_rate=decay_rate)
    with pytest.raises(ValueError, match=rf"decay_rate must be .*not {decay_rate!r}"):
        layer_decay(tiny_model(), **paramwise)


def test_layer_decay_needs_a_crossformer_and_a_learning_rate():
    with pytest.raises(ValueError, match="no CrossFormer"):
        layer_decay(nn.Linear(2, 2), decay_rate=0.8)
    with pytest.raises(ValueError, match="learning rate"):
        CrossFormerLayerDecayConstructor(dict(optimizer=dict(type="AdamW")), dict(decay_rate=0.8))


# Averages, accumulation, frozen stages, recomputation, compilation


def test_ema(toy_data_roots, tmp_path):
    runner, recorder = build("EMA", toy_data_roots, tmp_path), Recorder()
    momentum = runner.cfg.custom_hooks[0].momentum
    runner.register_hook(recorder, priority="HIGHEST")
    runner.train()
    expected = recorder.weights[0]
    for weights in recorder.weights[1:]:
        for name, average in expected.items():
            expected[name] = (1 - momentum) * average + momentum * weights[name]
    saved = load_file(tmp_path / "work/epoch_1.pth")
    last = recorder.weights[-1]
    assert any(not torch.equal(expected[name], last[name]) for name in last)
    for name, average in expected.items():
        torch.testing.assert_close(saved["state_dict"][name], average, rtol=0, atol=1e-6)
        torch.testing.assert_close(saved["ema_state_dict"][f"module.{name}"], last[name])


def test_gradient_accumulation(toy_data_roots, tmp_path):
    runner = build("Gradient accumulation", toy_data_roots, tmp_path, **{"train_cfg.max_epochs": 2})
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    changed = [
        any(not torch.equal(new[name], old[name]) for name in new)
        for old, new in zip(recorder.weights, recorder.weights[1:], strict=False)
    ]
    # From iteration 1 to 2, from 2 to 3, and so on to 8: the weights change in 4 and 8.
    assert changed == [False, False, True, False, False, False, True]


def test_frozen_stages(toy_data_roots, tmp_path):
    runner = build("Frozen stages", toy_data_roots, tmp_path)
    before = copy_weights(runner.model)
    runner.train()
    frozen = ("backbone.patch_embed.", "backbone.layers.0.", "backbone.layers.1.")
    for name, weight in copy_weights(runner.model).items():
        assert torch.equal(weight, before[name]) == name.startswith(frozen), name


def test_gradient_checkpointing(toy_data_roots, tmp_path):
    runner = build("Gradient checkpointing", toy_data_roots, tmp_path)
    calls = []
    for module in runner.model.modules():
        if isinstance(module, CrossFormerBlock):
            module.register_forward_pre_hook(lambda *args: calls.append(1))
    runner.train()
    assert len(calls) == 2 * 4 * sum(NANO_DEPTHS)


# Mixed precision


class Score(BaseModel):
    """A tiny backbone under one linear layer, with a loss of some hundreds."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model()

    def forward(self, images: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        """The loss."""
        maps = self.model["backbone"](images)[-1]
        return dict(loss=1e4 * self.model["head"](maps.mean((2, 3))).float().square().mean())


@pytest.fixture
def amp_device(monkeypatch) -> str:
    """Where mixed precision runs: on a CPU, mmengine's wrapper is made to believe in a GPU."""
    if torch.cuda.is_available():
        return "cuda"
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("needs a GPU or torch 2.3")
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    scaler = partial(torch.amp.GradScaler, device="cpu")
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", scaler)
    return "cpu"


def amp_step(
    model: Score, device: str, **options: object
) -> tuple[dict[str, Tensor], AmpOptimWrapper]:
    """One iteration of training; returns what the hooks would get, and the optimizer."""
    wrapper = build_optim_wrapper(
        model.to(device), {**options, "optimizer": dict(type="SGD", lr=1e-6)}
    )
    images = torch.rand(2, 3, 64, 64, device=device)
    return model.train_step(dict(images=images), wrapper), wrapper


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(amp_device, tmp_path, precision):
    if precision == "fp16" and amp_device == "cpu":
        pytest.skip("mmengine's fp16 needs a GPU")
    wrapper = config_with(f"Mixed precision, {precision}", tmp_path, DETECTOR).optim_wrapper
    wrapper = {key: wrapper[key] for key in ("type", "dtype", "loss_scale") if key in wrapper}
    model, seen = Score(), []
    linear = model.model["backbone"].layers[3].blocks[1].mlp.fc1
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    before = copy_weights(model)
    outputs, _ = amp_step(model, amp_device, **wrapper)
    assert outputs["loss"].isfinite()
    assert seen == [torch.bfloat16 if precision == "bf16" else torch.float16]
    assert any(not torch.equal(w.cpu(), before[name]) for name, w in copy_weights(model).items())


def test_an_iteration_that_the_scaler_skips_does_not_stop_training(amp_device):
    model = Score()
    before = copy_weights(model)
    options = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(init_scale=2.0**127))
    outputs, wrapper = amp_step(model, amp_device, **options)
    assert wrapper.loss_scaler.get_scale() == 2.0**126
    for name, weight in copy_weights(model).items():
        assert torch.equal(weight.cpu(), before[name]), name
    LossCheckHook().after_train_iter(SimpleNamespace(iter=0), 0, None, outputs)


# Logging


def test_tensorboard(toy_data_roots, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build("TensorBoard", toy_data_roots, tmp_path).train()
    (file,) = (tmp_path / "work").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in losses] == pytest.approx(local_losses(tmp_path), rel=1e-5)


def local_losses(tmp_path: Path) -> list[float]:
    (file,) = (tmp_path / "work").rglob("vis_data/scalars.json")
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()]


def test_weights_and_biases(monkeypatch, toy_data_roots, tmp_path):
    logged, started = [], []
    wandb = ModuleType("wandb")
    wandb.init = lambda **arguments: started.append(arguments)
    wandb.log = lambda values, **arguments: logged.append(values)
    wandb.config = SimpleNamespace(update=lambda *args, **kwargs: None)
    wandb.run = SimpleNamespace(log_code=lambda **kwargs: None)
    wandb.join = lambda: None
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    build("Weights & Biases", toy_data_roots, tmp_path).train()
    assert [arguments["project"] for arguments in started] == ["crossformer"]
    losses = [values["loss"] for values in logged if "loss" in values]
    assert losses == pytest.approx(local_losses(tmp_path))


# Losses that are no numbers


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        (dict(loss=math.nan, loss_cls=1.0, loss_bbox=math.nan, acc=1.0), "loss_bbox is nan"),
        (dict(loss=math.nan, loss_cls=math.inf, loss_bbox=-math.inf), "loss_cls is inf, loss_bbox"),
        (dict(loss=math.inf, loss_cls=3e38, loss_bbox=3e38), "loss is inf"),
        (dict(loss=math.nan), "loss is nan"),
    ],
)
def test_the_iteration_and_the_loss_are_named(losses, named):
    outputs = {name: torch.tensor(value) for name, value in losses.items()}
    with pytest.raises(InvalidLossError, match=f"stopped at iteration 13: {named}"):
        LossCheckHook().after_train_iter(SimpleNamespace(iter=12), 0, None, outputs)


def test_other_values_may_be_anything():
    outputs = dict(loss=torch.tensor(1.0), decode_acc=torch.tensor(math.nan))
    LossCheckHook().after_train_iter(SimpleNamespace(iter=12), 0, None, outputs)
    LossCheckHook().after_train_iter(SimpleNamespace(iter=12), 0, None, None)


INFINITE = {
    "model.head.loss.loss_weight": math.inf,
    "default_hooks.checkpoint.by_epoch": False,
    "default_hooks.checkpoint.interval": 1,
}


def test_the_tool_stops_with_one_line(monkeypatch, toy_data_roots, tmp_path):
    options = {**INFINITE, "data_root": toy_data_roots["classification"]}
    with pytest.raises(SystemExit) as exit_info:
        tool_main(
            *(monkeypatch, TRAIN, CLASSIFIER, "--work-dir", tmp_path),
            *("--cfg-options", *(f"{key}={value}" for key, value in options.items())),
        )
    message = exit_info.value.code
    assert message.startswith("error: training stopped at iteration 1: loss is inf")
    assert "\n" not in message and not list(tmp_path.glob("*.pth"))


def test_training_goes_on_when_told_so(toy_data_roots, tmp_path):
    options = {**INFINITE, "default_hooks.checkpoint.interval": 4}
    runner = build("Loss check", toy_data_roots, tmp_path, **options)
    runner.train()
    assert runner.iter == 4 and (tmp_path / "work/iter_4.pth").is_file()


# One process and two

ITERATIONS = 20
RECORDER = """
import json
from pathlib import Path
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class LossRecorder(Hook):
    priority = 'HIGHEST'

    def __init__(self, out, spoil_at):
        self.out, self.spoil_at, self.losses = Path(out), spoil_at, []

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.spoil_at and get_rank() == 1:
            runner.model.module.head.fc.weight.data.fill_(float('nan'))

    def after_train_iter(self, runner, *args, outputs=None, **kwargs):
        self.losses.append(float(outputs['loss']))
        (self.out / f'{get_rank()}.json').write_text(json.dumps(self.losses))
"""
SAME_IMAGES = """
custom_imports = dict(imports=['crossformer_mm', 'loss_recorder'], allow_failed_imports=False)
model = dict(backbone=dict(drop_path_rate=0.0))
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=_base_.test_pipeline))
val_cfg = val_dataloader = val_evaluator = None
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=21), logger=dict(interval=1))
"""


def write_recording_config(folder: Path, data_root: Path, batch_size: int, epochs: int) -> Path:
    """Write a config that records the losses, and spoils process 1 at iteration 21."""
    path = folder / "config.py"
    path.write_text(
        f"_base_ = {str(CLASSIFIER)!r}\n{SAME_IMAGES}\n"
        f"train_dataloader.update(batch_size={batch_size})\n"
        f"train_cfg = dict(max_epochs={epochs})\n"
        f"custom_hooks = [dict(type='LossRecorder', out={str(folder)!r}, spoil_at=21)]\n"
        f"data_root = {str(data_root)!r}\n"
        "train_dataloader['dataset'].update(data_root=data_root)\n"
    )
    (folder / "loss_recorder.py").write_text(RECORDER)
    return path


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, toy_data_roots, run_tool):
    """Two processes with 4 images each: 20 iterations, and one that process 1 spoils."""
    folder = tmp_path_factory.mktemp("two")
    config = write_recording_config(folder, toy_data_roots["classification"], 4, 11)
    search_path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = run_tool(
        *("bash", ROOT / "tools/dist_train.sh", config, 2, "--work-dir", folder / "work"),
        check=False,
        PYTHONPATH=search_path,
    )
    return folder, result


def test_one_and_two_processes_give_the_same_losses(
    monkeypatch, two_processes, toy_data_roots, tmp_path
):
    """The mean of two processes' losses over 4 images is one process's loss over 8.

    The sampler shuffles with the same seed in both cases and gives process r of 2 the images at
    r, r + 2, r + 4, ...: iteration by iteration, the two together have the images that one process
    has. There is nothing else that is random, and nothing that depends on the other images of a
    process, as BN does.
    """
    folder, _ = two_processes
    shares = [json.loads((folder / f"{rank}.json").read_text())[:ITERATIONS] for rank in (0, 1)]
    monkeypatch.syspath_prepend(str(folder))
    config = write_recording_config(tmp_path, toy_data_roots["classification"], 8, 10)
    cfg = launch.load_config(str(config), work_dir=str(tmp_path / "work"))
    launch.build_runner(cfg, "none", all_weights_needed=False).train()
    alone = json.loads((tmp_path / "0.json").read_text())
    together = [(one + other) / 2 for one, other in zip(*shares, strict=True)]
    assert len(alone) == ITERATIONS and alone[-1] < alone[0] - 0.1
    assert max(abs(one - other) for one, other in zip(*shares, strict=True)) > 0.01
    assert together == pytest.approx(alone, rel=0, abs=1e-4)


def test_an_invalid_loss_in_one_process_stops_all(two_processes):
    folder, result = two_processes
    assert result.returncode != 0
    # The first process that ends may end the other one before it can say the same.
    expected = "error: training stopped at iteration 21: loss is nan in process 1; "
    assert expected in result.stdout and "InvalidLossError" not in result.stdout
    assert [len(json.loads((folder / f"{rank}.json").read_text())) for rank in (0, 1)] == [21, 21]
    assert not list((folder / "work").glob("*.pth"))
