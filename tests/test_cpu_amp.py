"""Mixed precision on a CPU: every head trains and is tested in bfloat16, beside float32."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, apply_options
from mmengine.config import Config
from mmengine.runner import Runner
from test_configs import METRICS, shrink, take_two_images
from torch import nn

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine import amp, config
from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.runner import build_runner

pytestmark = [
    pytest.mark.families,
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is mmengine's"),
]
TRAIN, TEST = ROOT / "tools/train.py", ROOT / "tools/test.py"
TOYS = sorted(CONFIGS.glob("*/*_toy-*.py"))
SEGMENTOR = CONFIGS / "segmentation/fpn_crossformer-nano_toy-ade.py"


@pytest.fixture(autouse=True)
def has_bf16(monkeypatch):
    """Every processor computes in bfloat16, if slowly."""
    for module in (amp, config):
        monkeypatch.setattr(module, "has_bf16", lambda: True)


def compare_losses(runner: Runner) -> list[tuple[float, float]]:
    """Have each iteration compute the loss in float32 first; the list gets both."""
    model, losses = runner.model, []
    train_step = model.train_step

    def step(data: dict, optim_wrapper: object) -> dict:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        with torch.no_grad():
            exact = model._run_forward(model.data_preprocessor(data, True), mode="loss")
        for restore, state in zip(
            (random.setstate, np.random.set_state, torch.set_rng_state), states, strict=True
        ):
            restore(state)
        found = train_step(data, optim_wrapper)
        losses.append((found["loss"].item(), model.parse_losses(exact)[0].item()))
        return found

    model.train_step = step
    return losses


def amp_config(path: Path, data_roots: dict, work_dir: Path) -> Config:
    """A toy config with ``--amp``, for three iterations with small images."""
    roots = {"data_root": str(data_roots[path.parent.name])}
    cfg = load_config(str(path), roots, str(work_dir))
    cfg = Config(shrink(cfg.to_dict()), filename=cfg.filename)
    take_two_images(cfg)
    cfg.train_dataloader.batch_size, cfg.train_dataloader.dataset.indices = 2, 6
    apply_options(TRAIN, cfg, amp=True)
    apply_options(TEST, cfg, amp=True, checkpoint=str(path)).load_from = None
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=3)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    return cfg


@pytest.mark.parametrize("path", TOYS, ids=lambda path: path.stem)
def test_a_head_trains_and_is_tested(path, toy_data_roots, tmp_path):
    cfg = amp_config(path, toy_data_roots, tmp_path)
    runner = build_runner(cfg, "none", all_weights_needed=False)
    losses = compare_losses(runner)
    runner.train()
    assert len(losses) == 3
    tolerance = 0.05 if "dino" in path.stem else 0.01  # untrained scores choose DINO's queries
    for found, exact in losses:
        assert found == pytest.approx(exact, rel=tolerance) and found != exact
    assert METRICS[path.parent.name] in runner.test()


def test_it_resumes_to_the_same_weights(toy_data_roots, tmp_path):
    cfg = amp_config(SEGMENTOR, toy_data_roots, tmp_path / "once")
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=1)
    build_runner(cfg, "none", all_weights_needed=False).train()
    # On a machine with a GPU the same config takes mmengine's wrapper.
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    again = amp_config(SEGMENTOR, toy_data_roots, tmp_path / "again")
    again.default_hooks.checkpoint = cfg.default_hooks.checkpoint
    again.load_from, again.resume = str(tmp_path / "once/iter_2.pth"), True
    build_runner(again, "none", all_weights_needed=True).train()
    first, second = (load_file(tmp_path / name / "iter_3.pth") for name in ("once", "again"))
    torch.testing.assert_close(first["state_dict"], second["state_dict"], rtol=0, atol=0)
    assert {value.dtype for value in first["state_dict"].values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("has", [True, False])
def test_where_the_processor_lacks_it_training_is_in_float32(has, monkeypatch, capsys):
    monkeypatch.setattr(amp, "has_bf16", lambda: has)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = amp.CPUAmpOptimWrapper("dynamic", "float16", optimizer=optimizer)
    assert f"Training in {'bfloat16' if has else 'float32'}" in "".join(capsys.readouterr())
    with wrapper.optim_context(model):
        assert model(torch.ones(1, 2)).dtype == (torch.bfloat16 if has else torch.float32)
    # A checkpoint from a GPU holds the scale of its losses.
    wrapper.load_state_dict({**wrapper.state_dict(), "loss_scaler": dict(scale=2.0)})


def test_the_processor_is_asked(monkeypatch):
    monkeypatch.undo()
    for flags in ("flags : sse avx512f", "flags : avx512_bf16 amx_bf16", "Features : fp bf16"):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: flags)
        assert amp.has_bf16() == ("bf16" in flags)
