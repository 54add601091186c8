"""The README's commands, in its order, in a folder as its reader has it, with small data.

A command that is not run here has its output listed below it.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import old_checkpoints as old
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main
from mmengine.config import Config
from test_configs import shrink, take_two_images

from crossformer_mm.engine.launch import load_config
from crossformer_mm.models.build import build_model

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```bash\n(.*?)^```\n(?:\n```(text)\n)?", re.MULTILINE | re.DOTALL)
NANO = "detection/mask-rcnn_crossformer-nano_fpn_toy-coco"
TRAINED = (
    "detection/retinanet_crossformer-s_fpn_1x_coco",
    "detection/mask-rcnn_crossformer-s_fpn_1x_coco",
    "classification/crossformer-small_8xb128_in1k",
)

# What two cores can do in a test instead.
SMALLER = {
    " 8 --auto-scale-lr": " 1 --auto-scale-lr",
    "1x_coco.py 8 ": "1x_coco.py 2 ",
    "10.0.0.1": "127.0.0.1",
    "ade data/toy_ade": "ade data/toy_ade --train 2 --val 2",
    "imagenet data/toy_imagenet": "imagenet data/toy_imagenet --train 8 --val 8",
}
SRUN = """#!/bin/sh
# Starts one of the processes that Slurm would.
while [ "$1" != python ]; do shift; done
export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODELIST=localhost
exec "$@"
"""


def commands_without_output() -> Iterator[str]:
    """The commands whose output is not listed, with the variables set above them filled in."""
    variables: dict[str, str] = {}
    for block, listed in BLOCK.findall(README):
        for line in block.replace("\\\n", " ").splitlines():
            line = " ".join(line.split(" #")[0].split())
            assignment = re.fullmatch(r"([A-Z]+)=(\S+)", line)
            if assignment:
                variables[assignment[1]] = assignment[2]
            elif line and not line.startswith("#") and not listed:
                yield re.sub(r"\$([A-Z]+)", lambda name: variables[name[1]], line)


def commands_to_run() -> list[str]:
    """The same, made smaller; the commands of several machines are one, at the same time."""
    commands: list[str] = []
    for command in commands_without_output():
        for large, small in SMALLER.items():
            command = command.replace(large, small)
        if "NODE_RANK=1" in command:
            command = f"{commands.pop()} & {command} && wait $!"
        commands.append(command)
    return commands


def write_config(path: Path, name: str) -> None:
    """Write a config with small images, and with one iteration instead of twelve epochs."""
    cfg = load_config(str(CONFIGS / f"{name}.py"))
    if name != NANO:
        cfg = Config(shrink(cfg.to_dict()), filename=cfg.filename)
        take_two_images(cfg)
        cfg.train_cfg.max_epochs = 1
        cfg.default_hooks.checkpoint.filename_tmpl = "epoch_12.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(path)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory, toy_data_roots) -> Path:
    """The project with data, the authors' file, pictures, and what the quickstart leaves."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "tools").symlink_to(ROOT / "tools")
    for name in (*TRAINED, NANO):
        write_config(folder / f"configs/{name}.py", name)
    (folder / "data").mkdir()
    (folder / "data/coco").symlink_to(toy_data_roots["detection"])
    (folder / "data/imagenet").symlink_to(toy_data_roots["classification"])
    for name in ("cat.jpg", "photo.jpg", "folder/a.jpg", "more/b.png"):
        write_image(folder / name)
    write_image(folder / "data/toy_coco/val2017/000000500014.jpg")
    old.save_classifier(folder / "crossformer-s.pth", old.classifier_weights("small"))
    trained = folder / f"work_dirs/{Path(NANO).name}/epoch_4.pth"
    trained.parent.mkdir(parents=True)
    model = build_model(load_config(str(CONFIGS / f"{NANO}.py")))
    torch.save({"meta": {}, "state_dict": model.state_dict()}, trained)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "srun").write_text(SRUN)
    (bin_folder / "srun").chmod(0o755)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def results_of(command: str) -> list[str]:
    """The files and folders that a command is to write."""
    words = shlex.split(command)
    named = [words[i + 1] for i, word in enumerate(words) if word in ("--out", "--out-dir")]
    if "convert_checkpoint.py" in command or "make_toy_dataset.py" in command:
        named.append(words[3])
    if "train.py" in command or "_train.sh" in command:
        (config,) = {word for word in words if word.startswith("configs/")}
        work_dir = "slurm" if "slurm" in command else Path(config).stem
        named.append(f"work_dirs/{work_dir}/epoch_12.pth")
    return named


@pytest.mark.parametrize("command", commands_to_run())
def test_the_command_runs(command, readers_folder, monkeypatch):
    monkeypatch.chdir(readers_folder)
    results = [readers_folder / name for name in results_of(command)]
    for result in results:
        result.unlink(missing_ok=True)
    words = shlex.split(command)
    if words[0] == "python" and words[1].startswith("tools/"):
        tool_main(monkeypatch, ROOT / words[1], *words[2:])
    else:
        path = f"{readers_folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        run = subprocess.run(
            ["bash", "-c", command.replace("PORT=29500", f"PORT={free_port()}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            env={**os.environ, "PATH": path, "PYTHON": "python", "OMP_NUM_THREADS": "1"},
        )
        assert run.returncode == 0, run.stdout[-4000:]
    for result in results:
        assert result.exists(), result
        if result.is_dir():
            assert any(result.iterdir()), result


def test_every_command_is_in_a_block():
    """A command within a sentence would neither be run nor have its output listed."""
    assert not re.findall(r"`[^`\n]*(?:python|bash) [^`\n]*`", BLOCK.sub("", README))
