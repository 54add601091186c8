"""Thousands of iterations and inferences, on images of changing size, leave no memory behind.

Each kind runs in a process of its own. Exported models take images of one size.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, SMALL_ARCH

from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_model

CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
TRAIN_ITERATIONS, INFERENCES, WARM_UP = 2000, 5000, 500

TRAIN = """
import sys
from mmengine.hooks import Hook
from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.runner import build_runner
from test_soak import Memory

config, work_dir, data_root = sys.argv[1:]

class MemoryHook(Hook):
    def __init__(self):
        self.memory = Memory()

    def after_train_iter(self, runner, *args, **kwargs):
        self.memory.look(runner.iter + 1)

cfg = load_config(config, {"data_root": data_root}, work_dir)
cfg.custom_hooks = [dict(type=MemoryHook)]
build_runner(cfg, "none", all_weights_needed=False).train()
"""

INFER = """
import random, sys
import torch
from crossformer_mm.deploy.runtimes import ExportedModel
from crossformer_mm.models import CrossFormer
from test_soak import INFERENCES, Memory

kind, file, arch = sys.argv[1], sys.argv[2], eval(sys.argv[3])
rng, memory = random.Random(0), Memory()
torch.set_num_threads(1)
if kind == "exported":
    model = ExportedModel(file, threads=1)
    run = lambda: model(torch.randint(256, model.shape).numpy())
else:
    model = CrossFormer(arch=arch, **({"attn_backend": "eager"} if kind == "eager" else {})).eval()
    side = lambda: rng.randrange(64, 128, 16)
    run = lambda: model(torch.rand(1, 3, side(), side()))
with torch.no_grad():
    for number in range(INFERENCES):
        run()
        memory.look(number + 1)
"""


class Memory:
    """Prints the resident memory (MiB) after the warm-up and every 500 times after it."""

    def look(self, number: int) -> None:
        if number % WARM_UP == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"memory {number} {pages * os.sysconf('SC_PAGESIZE') / 2**20:.1f}", flush=True)


def growth(code: str, *arguments: object) -> float:
    """Run a program, print what it measured, and return the growth after the warm-up."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    job = subprocess.run(command, capture_output=True, text=True, env=env)
    assert job.returncode == 0, job.stderr[-3000:]
    lines = [line.split() for line in job.stdout.splitlines() if line.startswith("memory ")]
    memory = [float(line[2]) for line in lines]
    print("\n" + ", ".join(f"{line[1]}: {line[2]} MiB" for line in lines))
    return memory[-1] / memory[0] - 1


@pytest.mark.endurance
def test_training_on_changing_sizes_keeps_its_memory(toy_coco, tmp_path):
    config = tmp_path / "soak.py"
    config.write_text(
        f"_base_ = {str(NANO_CONFIG)!r}\n"
        "pipeline = _base_.train_pipeline\n"
        "pipeline[2] = dict(type='RandomChoiceResize', keep_ratio=False,\n"
        "    scales=[(w, h) for w in range(80, 145, 16) for h in range(80, 145, 16)])\n"
        "train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False,\n"
        "    sampler=dict(type='InfiniteSampler', _delete_=True), batch_sampler=None,\n"
        "    dataset=dict(pipeline=pipeline))\n"
        "val_dataloader = val_evaluator = val_cfg = None\n"
        f"train_cfg = dict(type='IterBasedTrainLoop', max_iters={TRAIN_ITERATIONS},\n"
        "    _delete_=True)\n"
        "default_hooks = dict(logger=dict(interval=100),\n"
        "    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1))\n"
        "param_scheduler = None\n"
    )
    assert growth(TRAIN, config, tmp_path / "work", f"{toy_coco}/") < 0.02


@pytest.mark.endurance
@pytest.mark.parametrize("kind", ["eager", "default", "exported"])
def test_inference_keeps_its_memory(run_tool, tmp_path, kind):
    file = tmp_path / "model.onnx"
    if kind == "exported":
        model = build_model(load_config(str(CLASSIFIER)))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / "random.pth")
        files = (CLASSIFIER, tmp_path / "random.pth", file)
        run_tool(sys.executable, ROOT / "tools/export.py", *files, "--shape", "96", "96")
    assert growth(INFER, kind, file, SMALL_ARCH) < 0.02
