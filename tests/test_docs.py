"""The pages agree with the code: configs build, commands and links lead somewhere."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT
from mmengine.config import Config

from crossformer_mm.models.build import build_on_meta

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:python|bash) (tools/\S+|\.ci/run)")


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    """Lines and inline code that run a tool, comments left out."""
    text = page.read_text()
    code = "\n".join(body for _, body in FENCE.findall(text)).replace("\\\n", " ").splitlines()
    code += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [line.split(" # ")[0] for line in code if COMMAND.search(line)]


CONFIG_BLOCKS = [
    (page.stem, number, text)
    for page in PAGES
    for number, text in enumerate(blocks(page, "python"))
    if "_base_ =" in text
]


@pytest.mark.parametrize(
    "text", [b[2] for b in CONFIG_BLOCKS], ids=[f"{b[0]}-{b[1]}" for b in CONFIG_BLOCKS]
)
def test_configs_build(text: str, tmp_path: Path) -> None:
    base = re.search(r'_base_ = "([^"]+)"', text)[1]
    if "::" not in base:
        (path,) = CONFIGS.rglob(Path(base).name)
        text = text.replace(base, str(path))
    if base.startswith("mmseg::"):  # mmengine looks for the original distribution
        folder = Path(find_spec("mmseg").origin).parent / ".mim/configs"
        text = text.replace(base, str(folder / base.removeprefix("mmseg::")))
    config = tmp_path / "config.py"
    config.write_text(text)
    model = build_on_meta(Config.fromfile(config))
    assert type(model.backbone).__name__ == "CrossFormer"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tools_and_options_exist(page: Path) -> None:
    shared = (ROOT / "crossformer_mm/engine/launch.py").read_text()
    for command in commands(page):
        tool = ROOT / COMMAND.search(command)[1]
        assert tool.is_file(), command
        source = tool.read_text() + shared
        if tool.name.startswith(("dist_", "slurm_")):  # what follows goes to the Python tool
            source += (ROOT / "tools" / f"{tool.stem.split('_')[1]}.py").read_text()
        for option in re.findall(r"(?<=[ \[])--[a-z][a-z-]*", command):
            assert f'"{option}"' in source, f"{option} in {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configs_and_links_exist(page: Path) -> None:
    text = page.read_text()
    for config in re.findall(
        r"configs/(?:classification|detection|segmentation)/[\w+-]+\.py", text
    ):
        assert (ROOT / config).is_file(), config
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_commands_can_be_split() -> None:
    for page in PAGES:
        for command in commands(page):
            shlex.split(command)
