"""What several tests share: the repository's folders, a tiny data set, and running the tools."""

import json
import logging
import os
import runpy
import subprocess
import sys
from argparse import Namespace
from collections import Counter, defaultdict
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
CPU_BACKENDS = ("sdpa", "chunked", "eager")  # "triton" is compared in test_triton.py
SMALL_ARCH = dict(
    embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), group_size=4, interval=(8, 4, 2, 1)
)
NANO_CONFIG = CONFIGS / "detection/retinanet_crossformer-nano_fpn_toy-coco.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-cases", type=int, default=200, help="of each random test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if fault := item.get_closest_marker("fault"):
            item.user_properties.append(("family", fault.args[0]))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """After ``-m fault``, print how much of each family was tried, and how much held."""
    if "fault" not in config.getoption("markexpr"):
        return
    counts = defaultdict(Counter)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            case = dict(report.user_properties)
            if "family" in case:
                tried = case.get("tried", 1)
                held = tried - (outcome == "failed")
                counts[case["family"]].update(tried=tried, held=held)
    rows = [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]
    cells = [f" {family} | {count['tried']} | {count['held']} |" for family, count in rows]
    terminalreporter.write_line("| family | tried | held | family | tried | held |")
    terminalreporter.write_line("| --- | --- | --- | --- | --- | --- |")
    for left, right in zip_longest(cells[::2], cells[1::2], fillvalue=" | | |"):
        terminalreporter.write_line(f"|{left}{right}")


def metrics_of(work_dir: Path) -> dict:
    """The metrics that the last test run wrote."""
    newest = max(work_dir.glob("*/*.json"), key=lambda file: file.stat().st_mtime_ns)
    # Of two processes both write it, and mmengine does not take turns.
    return json.JSONDecoder().raw_decode(newest.read_text())[0]


def tool_main(tool: Path, *arguments: object) -> None:
    """Run a tool's ``main`` in this process."""
    runpy.run_path(str(tool))["main"]([str(argument) for argument in arguments])


def apply_options(tool: Path, cfg: Config, **options: object) -> Config:
    """The config after train.py or test.py has written its command line into it."""
    names = ("pretrained", "amp", "auto_scale_lr", "resume", "out", "show_dir", "tta", "eval")
    args = Namespace(**{**dict.fromkeys(names), **options})
    runpy.run_path(str(tool))["apply_options"](cfg, args)
    return cfg


@pytest.fixture(autouse=True)
def forget_mmengines_instances():
    """Let no test see the loggers, visualizers and scopes that an earlier one left behind."""
    yield
    logging.disable(logging.NOTSET)  # some tools keep their libraries quiet
    from mmengine.utils import ManagerMixin

    kinds = [ManagerMixin]
    for kind in kinds:
        kinds += kind.__subclasses__()
        kind._instance_dict.clear()


@pytest.fixture(autouse=True)
def leave_configs_unformatted(monkeypatch):
    """Spare every runner in this process the five times that mmengine formats its config."""
    for module in ("yapf.yapflib.yapf_api", "mmengine.config.config"):  # onedl's, openmmlab's
        name = f"{module}.FormatCode"
        monkeypatch.setattr(name, lambda text, **style: (text, True), raising=False)


@pytest.fixture(scope="session")
def toy_coco(tmp_path_factory) -> Path:
    """A COCO data set of 16 + 11 tiny images."""
    from crossformer_mm.datasets.toy.coco import write_coco

    out = tmp_path_factory.mktemp("toy") / "coco"
    write_coco(out, train=16, val=11, size=(128, 96), seed=3, report=lambda line: None)
    return out


@pytest.fixture(scope="session")
def run_tool():
    """Run a tool or script of the project in a fresh process and return what it did."""

    def run(*command: object, check: bool = True, **env: str) -> subprocess.CompletedProcess:
        result = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env},
        )
        assert not check or result.returncode == 0, result.stdout[-4000:]
        return result

    return run


@pytest.fixture(scope="session")
def toy_data_roots(tmp_path_factory, toy_coco) -> dict[str, Path]:
    """A tiny data set for each task."""
    from crossformer_mm.datasets.toy.ade import write_ade
    from crossformer_mm.datasets.toy.imagenet import write_imagenet

    root = tmp_path_factory.mktemp("toys")
    silent = dict(seed=3, report=lambda line: None)
    write_ade(root / "ade", train=8, val=5, size=(135, 103), **silent)
    write_imagenet(root / "imagenet", train=16, val=8, size=(128, 96), **silent)
    return dict(classification=root / "imagenet", detection=toy_coco, segmentation=root / "ade")


@cache
def complexity_of(config: Path):
    """Parameters and FLOPs of a config's model at the default image size of its task."""
    from crossformer_mm.analysis.flops import DEFAULT_SHAPES, measure
    from crossformer_mm.engine.config import load_config
    from crossformer_mm.models.build import build_on_meta

    cfg = load_config(str(config))
    return measure(build_on_meta(cfg), DEFAULT_SHAPES[cfg.default_scope])
