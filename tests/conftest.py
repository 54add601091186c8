"""What several tests share: the repository's folders, a tiny data set, and running the tools."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
CPU_BACKENDS = ("sdpa", "chunked", "eager")  # "triton" is compared in test_triton.py
SMALL_ARCH = dict(
    embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), group_size=4, interval=(8, 4, 2, 1)
)
NANO_CONFIG = CONFIGS / "detection/retinanet_crossformer-nano_fpn_toy-coco.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-cases", type=int, default=500, help="random cases of test_fuzz.py")


def metrics_of(work_dir: Path) -> dict:
    """The metrics that the last test run wrote."""
    newest = max(work_dir.glob("*/*.json"), key=lambda file: file.stat().st_mtime_ns)
    return json.loads(newest.read_text())


def tool_main(monkeypatch, tool: Path, *arguments: object) -> None:
    """Run a tool's ``main`` in this process."""
    monkeypatch.setattr(sys, "argv", [tool.name, *map(str, arguments)])
    names: dict = {"__name__": tool.stem}
    exec(compile(tool.read_text(), tool, "exec"), names)
    names["main"]()


@pytest.fixture(autouse=True)
def forget_mmengines_instances():
    """Let no test see the loggers, visualizers and scopes that an earlier one left behind."""
    yield
    from mmengine.utils import ManagerMixin

    kinds = [ManagerMixin]
    for kind in kinds:
        kinds += kind.__subclasses__()
        kind._instance_dict.clear()


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
    from crossformer_mm.engine.launch import load_config
    from crossformer_mm.models.build import build_on_meta

    cfg = load_config(str(config))
    return measure(build_on_meta(cfg), DEFAULT_SHAPES[cfg.default_scope])
