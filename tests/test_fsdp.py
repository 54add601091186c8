"""FSDP, as docs/training.md says, on two CPU processes: against training without it."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, metrics_of, tool_main
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import digit_version
from test_training_options import CLASSIFIER, DETECTOR, documented
from torch import Tensor

from crossformer_mm import launch
from crossformer_mm.safe_load import load_file

# Runs the page's script on a config, then the same again from its first checkpoint, then the
# training without FSDP.
FSDP_AND_DDP = """
import contextlib, runpy, sys
from pathlib import Path
import torch
from crossformer_mm import launch, process_end

script, *folders = sys.argv[1:]
with process_end.end_without_finalizing():
    torch.distributed.init_process_group('gloo')
    torch.distributed.init_process_group = lambda *args: None  # once is enough
    process_end.end_without_finalizing = contextlib.nullcontext  # more is to follow
    for folder in map(Path, folders):
        for name in ('fsdp', 'resumed'):
            sys.argv = [script, str(folder / f'{name}.py')]
            runpy.run_path(script)
        cfg = launch.load_config(str(folder / 'ddp.py'))
        launch.build_runner(cfg, 'pytorch', all_weights_needed=False).train()
    torch.distributed.barrier()
"""
# 2 epochs of 1 iteration with 2 images in each process. With this eps the optimizer's step is
# proportional to the gradient, so that rounding does not grow, and clipping shows.
FSDP_OPTIONS = {
    "train_dataloader.batch_size": 2,
    "train_dataloader.dataset.indices": 4,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "val_dataloader.num_workers": 0,
    "val_dataloader.persistent_workers": False,
    "val_dataloader.dataset.indices": 2,
    "train_cfg.max_epochs": 2,
    "train_cfg.val_interval": 1,
    "default_hooks.checkpoint.interval": 1,
    "param_scheduler": [],
    "model.backbone.frozen_stages": 1,
    "optim_wrapper.optimizer.eps": 0.1,
    "optim_wrapper.optimizer.lr": 0.01,
    "optim_wrapper.optimizer.weight_decay": 1.0,
    "optim_wrapper.clip_grad.max_norm": 0.5,
}
FSDP_BASES = {"classification": CLASSIFIER, "detection": DETECTOR}


@pytest.fixture(scope="module")
def fsdp_runs(tmp_path_factory, toy_data_roots, run_tool):
    """Trainings with two processes; returns the folder and the output."""
    if torch.cuda.is_available():
        pytest.skip("two processes need two GPUs")
    if digit_version(torch.__version__) < digit_version("2.4"):
        pytest.skip("torch 2.1 fails on a CPU")
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "fsdp.py").write_text(documented("FSDP", "python"))
    (folder / "all.py").write_text(FSDP_AND_DDP)
    for task, base in FSDP_BASES.items():
        (folder / task).mkdir()
        options = {**FSDP_OPTIONS, "data_root": str(toy_data_roots[task])}
        for name in ("fsdp", "resumed", "ddp"):
            cfg = launch.load_config(str(base), options, str(folder / task / name))
            if name == "resumed":
                cfg.update(load_from=str(folder / task / "fsdp/epoch_1.pth"), resume=True)
            if name == "ddp":
                cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
            cfg.dump(folder / task / f"{name}.py")
    result = run_tool(
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *(folder / "all.py", folder / "fsdp.py", *(folder / task for task in FSDP_BASES)),
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    )
    return folder, result.stdout


def weights_of(folder: Path, epoch: int) -> dict[str, Tensor]:
    """The weights after an epoch."""
    return load_file(folder / f"epoch_{epoch}.pth")["state_dict"]


def test_fsdp_shares_the_parameters_out(fsdp_runs):
    folder, output = fsdp_runs
    held = [int(n) for n in re.findall(r"This process holds (\d+) parameters", output)]
    assert len(held) == 2 * 2 * len(FSDP_BASES)
    for index, task in enumerate(FSDP_BASES):
        cfg = launch.load_config(str(folder / task / "fsdp.py"))
        launch.replace_gpu_only_parts(cfg)
        init_default_scope(cfg.default_scope)
        total = sum(parameter.numel() for parameter in MODELS.build(cfg.model).parameters())
        for shares in (held[4 * index : 4 * index + 2], held[4 * index + 2 : 4 * index + 4]):
            assert sum(shares) == total and max(shares) < 0.51 * total


@pytest.mark.parametrize("task", FSDP_BASES)
def test_fsdp_trains_as_without(fsdp_runs, task):
    folder = fsdp_runs[0] / task
    alone, sharded = (weights_of(folder / name, epoch=1) for name in ("ddp", "fsdp"))
    assert list(sharded) == list(alone)
    for name, weight in sharded.items():
        torch.testing.assert_close(weight, alone[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("task", FSDP_BASES)
def test_fsdp_trains_all_but_frozen_stages(fsdp_runs, task):
    first, second = (weights_of(fsdp_runs[0] / task / "fsdp", epoch) for epoch in (1, 2))
    still = {name for name in first if torch.equal(first[name], second[name])}
    frozen = ("backbone.patch_embed.", "backbone.layers.0.")
    assert {name for name in first if name.startswith(frozen)} <= still
    assert len(still) < len(first) / 2


@pytest.mark.parametrize("task", FSDP_BASES)
def test_fsdp_resumes(fsdp_runs, task):
    folder, _ = fsdp_runs
    assert not (folder / task / "resumed/epoch_1.pth").exists()
    torch.testing.assert_close(
        weights_of(folder / task / "resumed", 2),
        weights_of(folder / task / "fsdp", 2),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("task", FSDP_BASES)
def test_a_checkpoint_of_fsdp_is_complete(monkeypatch, fsdp_runs, task):
    folder = fsdp_runs[0] / task
    config, checkpoint = folder / "fsdp.py", folder / "fsdp/epoch_2.pth"
    options = ("test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False")
    tool_main(
        *(monkeypatch, ROOT / "tools/test.py", config, checkpoint, "--work-dir", folder / "test"),
        *("--cfg-options", *options),
    )
    assert metrics_of(folder / "test")
