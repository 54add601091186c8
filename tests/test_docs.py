"""The pages agree with the code: what they name exists, their configs build, and the commands of
two of them run, in their order, in a folder as their reader has it, with small data.

A command of these two that is not run here has its output listed below it.
"""

import os
import re
import runpy
import shlex
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import old_checkpoints as old
import pytest
import torch
from conftest import CONFIGS, ROOT, tool_main
from mmengine.config import Config
from test_configs import shrink, take_two_images
from test_scripts import make_command

from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_model, build_on_meta

TRIED = [ROOT / "README.md", ROOT / "docs/look_inside.md"]
PAGES = [
    *(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"),
    *sorted(path for glob in ("*", "*/*") for path in (ROOT / "configs").glob(f"{glob}/README.md")),
]
# The language of a block, its code, and whether output is listed below it, or a table
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n(?=(\n```text|\n\|)?)", re.MULTILINE | re.DOTALL)
NANO = "detection/mask-rcnn_crossformer-nano_fpn_toy-coco"
TRAINED = (
    "detection/retinanet_crossformer-s_fpn_1x_coco",
    "detection/mask-rcnn_crossformer-s_fpn_1x_coco",
    "classification/crossformer-small_8xb128_in1k",
)
# What two cores can do in a test instead
SMALLER = {
    " 8 --auto-scale-lr": " 1 --auto-scale-lr",
    "10.0.0.1": "127.0.0.1",
    "ade data/toy_ade": "ade data/toy_ade --train 2 --val 2",
    "imagenet data/toy_imagenet": "imagenet data/toy_imagenet --train 8 --val 8",
}
# Begun, not finished: test_tools.py trains and tests on two processes of one machine.
BEGUN = re.compile("^bash tools/dist_|slurm_test")
# Starts one of the processes that Slurm would.
SRUN = """
while [ "$1" != "$PYTHON" ]; do shift; done
export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODELIST=localhost
exec "$@"
"""

ENGINE = ROOT / "crossformer_mm/engine"


def commands_to_run() -> list[str]:
    """The commands whose output is not listed, made smaller; those of several machines are one."""
    variables, commands = {}, []
    blocks = [block for page in TRIED for block in BLOCK.findall(page.read_text())]
    for kind, code, output in blocks:
        code = re.sub(r" *#.*", "", code.replace("\\\n", " ")) if kind == "bash" else ""
        variables.update(re.findall(r"^([A-Z]+)=(\S+)$", code, re.MULTILINE))
        lines = [] if output else re.findall(r"^(?![A-Z]+=\S+$).+$", code, re.MULTILINE)
        for line in (" ".join(line.split()) for line in lines):
            line = re.sub(r"\$([A-Z]+)", lambda name: variables[name[1]], line)
            for large, small in SMALLER.items():
                line = line.replace(large, small)
            commands.append(f"{commands.pop()} & {line} && wait $!" if "RANK=1" in line else line)
    return list(dict.fromkeys(commands))


def write_config(path: Path, name: str) -> None:
    """Write a config with small images, and with one iteration instead of twelve epochs."""
    cfg = load_config(str(CONFIGS / f"{name}.py"))
    if name != NANO:
        cfg = Config(shrink(cfg.to_dict()), filename=cfg.filename)
        take_two_images(cfg)
        cfg.train_cfg.max_epochs = 1
        cfg.default_hooks.checkpoint.update(filename_tmpl="epoch_12.pth", save_optimizer=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(path)


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory, toy_data_roots) -> Path:
    """The project with data, the authors' file, pictures, and what the quickstart leaves."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "tools").symlink_to(ROOT / "tools")
    for name in (*TRAINED, NANO):
        write_config(folder / f"configs/{name}.py", name)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    toy_image = "data/toy_coco/val2017/000000500014.jpg"
    for name in ("cat.jpg", "photo.jpg", "folder/a.jpg", "more/b.png", toy_image):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), pixels)
    (folder / "data/coco").symlink_to(toy_data_roots["detection"])
    (folder / "data/imagenet").symlink_to(toy_data_roots["classification"])
    old.save_classifier(folder / "crossformer-s.pth", old.classifier_weights("small"))
    trained = folder / f"work_dirs/{Path(NANO).name}/epoch_4.pth"
    trained.parent.mkdir(parents=True)
    model = build_model(load_config(str(CONFIGS / f"{NANO}.py")))
    torch.save({"meta": {}, "state_dict": model.state_dict()}, trained)
    make_command(folder, "srun", SRUN)
    return folder


def results_of(command: str) -> list[Path]:
    """The files and folders that a command is to write."""
    named = r"--out(?:-dir)? (\S+)|(?:convert_checkpoint|make_toy_dataset)\.py \S+ (\S+)"
    results = ["".join(names) for names in re.findall(named, command)]
    if re.search("train.(py|sh)", command) and not BEGUN.search(command):
        name = "slurm" if "slurm" in command else re.search(r"configs/\w+/(\S+)\.py", command)[1]
        results.append(f"work_dirs/{name}/epoch_12.pth")
    return [Path(result) for result in results]


@pytest.mark.parametrize("command", commands_to_run())
def test_a_command_of_a_page_runs(command, readers_folder, monkeypatch, run_tool):
    monkeypatch.chdir(readers_folder)
    for result in results_of(command):
        result.unlink(missing_ok=True)
    words = shlex.split(command)
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
    elif words[:2] == ["python", "-m"]:
        monkeypatch.setattr(sys, "argv", words[2:])
        with pytest.raises(SystemExit, match="^0$"):
            runpy.run_module(words[2], run_name="__main__")
    elif words[0] == "python":
        tool_main(ROOT / words[1], *words[2:])
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command = command.replace("PORT=29500", f"PORT={free.getsockname()[1]}")
        path = f"{readers_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        python = "echo" if BEGUN.search(command) else "python"
        run_tool("bash", "-c", command, PATH=path, PYTHON=python)
    for result in results_of(command):
        assert any(result.iterdir()) if result.is_dir() else result.is_file(), result


@pytest.mark.parametrize("page", TRIED, ids=lambda page: page.stem)
def test_every_command_that_is_tried_is_in_a_block(page):
    # Within a sentence it would neither be run nor have its output listed.
    text = BLOCK.sub("", page.read_text())
    assert not re.findall(r"`[^`\n]*(?:python|bash) [^`\n]*`", text)


CONFIG_BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, (_, code, _) in enumerate(BLOCK.findall(page.read_text()))
    if '_base_ = "' in code
]


@pytest.mark.parametrize("code", CONFIG_BLOCKS)
def test_a_config_on_a_page_builds(code, tmp_path):
    base = re.search(r'_base_ = "([^"]+)"', code)[1]
    found = list(CONFIGS.rglob(Path(base).name))
    if base.startswith("mmseg::"):  # mmengine looks for the original distribution
        folder = Path(find_spec("mmseg").origin).parent / ".mim/configs"
        found = [folder / base.removeprefix("mmseg::")]
    config = tmp_path / "config.py"
    config.write_text(code.replace(base, str(found[0])) if found else code)
    modules = build_on_meta(Config.fromfile(config)).modules()
    assert "CrossFormer" in {type(module).__name__ for module in modules}


def check_what_is_named(text: str, folder: Path) -> None:
    """The tools, options, configs and linked files that a text in a folder names exist."""
    text = text.replace("\\\n", " ")
    for command, tool in re.findall(r"((?:python|bash) (tools/\S+|\.ci/run)[^#`\n]*)", text):
        source = "".join(
            file.read_text()
            for file in (
                ROOT / tool,
                *(ENGINE / f"{name}.py" for name in ("config", "cfg_options")),
            )
        )
        if re.search("dist_|slurm_", tool):  # what follows goes to the Python tool
            source += (ROOT / "tools" / f"{Path(tool).stem.split('_')[1]}.py").read_text()
        for option in re.findall(r"(?<=[ \[])--[a-z][a-z-]*", command):
            assert f'"{option}"' in source, f"{option} in {command}"
    for config in re.findall(r"configs/\w+/[\w+-]+\.py", text):
        assert (ROOT / config).is_file(), config
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (folder / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page):
    check_what_is_named(page.read_text(), page.parent)
