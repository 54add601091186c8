"""Say what is installed, what will run, and what is wrong: ``python -m crossformer_mm.doctor``.

The exit status is 0 only when training would start: with a config, of that config; without one,
of the configs of at least one library.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from crossformer_mm.requirements import HOW_TO_INSTALL, check_installed

# The distributions that provide the modules, in either family
FAMILIES = {
    "onedl": {
        "mmengine": "onedl-mmengine",
        "mmcv": "onedl-mmcv",
        "mmpretrain": "onedl-mmpretrain",
        "mmdet": "onedl-mmdetection",
        "mmseg": "onedl-mmsegmentation",
    },
    "openmmlab": {
        "mmengine": "mmengine",
        "mmcv": "mmcv",
        "mmpretrain": "mmpretrain",
        "mmdet": "mmdet",
        "mmseg": "mmsegmentation",
    },
}
# Where the configs of each library expect their data.
DATA = {
    "mmpretrain": "data/imagenet",
    "mmdet": "data/coco",
    "mmseg": "data/ade/ADEChallengeData2016",
}
DATA_ADVICE = (
    "put the data there (docs/data.md) or set --cfg-options data_root=DIR; "
    "tools/make_toy_dataset.py draws a small set to try with"
)
MMCV_ADVICE = (
    "build it against this torch: pip install --no-build-isolation --no-binary :all: "
    "--force-reinstall --no-deps, and the version above of onedl-mmcv or mmcv"
)


class Finding(NamedTuple):
    """One line of the report; with advice it is a problem, or else a fact."""

    topic: str
    text: str
    advice: str = ""
    stops_training: bool = False


def examine(
    config: str | None = None, data_root: str | None = None, folder: Path = Path()
) -> list[Finding]:
    """Look at everything.

    Args:
        config: A config to train with; None: the shipped ones.
        data_root: Where the data of ``config`` is, if not where it says.
        folder: Where training would be started, for the shipped configs.
    """
    findings = [Finding("python", platform.python_version()), *_torch(), *_family()]
    if any(finding.stops_training for finding in findings):
        return findings
    findings += [*_mmcv(), *_gpu(), *_attention()]
    return findings + (_config(config, data_root) if config else _tasks(folder))


def _torch() -> list[Finding]:
    if find_spec("torch") is None:
        return [Finding("torch", "not installed", "pip install 'torch>=2.1'", True)]
    import torch

    return [Finding("torch", torch.__version__)]


def _family() -> list[Finding]:
    try:
        check_installed()
    except ImportError as error:
        return [Finding("family", "incomplete", str(error), True)]
    installed = {
        family: {module: _version(name) for module, name in names.items() if _version(name)}
        for family, names in FAMILIES.items()
    }
    found = [
        f"{family}: {', '.join(f'{module} {number}' for module, number in versions.items())}"
        for family, versions in installed.items()
        if versions
    ]
    if len(found) > 1:
        advice = f"remove all libraries of both families, then {HOW_TO_INSTALL}"
        return [Finding("family", " and ".join(found), advice, True)]
    return [Finding("family", found[0] if found else "unknown")]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _mmcv() -> list[Finding]:
    if find_spec("mmcv") is None:
        return [Finding("mmcv", "not installed", f"every task needs it: {HOW_TO_INSTALL}", True)]
    return [_attempt("mmcv ops", _run_mmcv_operator, "load and run", MMCV_ADVICE)]


def _run_mmcv_operator() -> None:
    import torch
    from mmcv.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def _attempt(topic: str, function: Callable[[], object], success: str, advice: str) -> Finding:
    try:
        function()
    except Exception as error:
        reason = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {reason[0] if reason else ''}"
        return Finding(topic, what, advice, stops_training=True)
    return Finding(topic, success)


def _gpu() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        text = f"none (torch is built for CUDA {built}): training runs on the CPU in float32"
        return [Finding("GPU", text)]
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        capability = f"{properties.major}.{properties.minor}"
        names.append(f"{properties.name} ({memory:.0f} GiB, compute capability {capability})")
    return [Finding("GPU", ", ".join(names))]


def _attention() -> list[Finding]:
    import torch

    from crossformer_mm.models import GroupedAttention

    triton = _version("triton") or "not installed"
    layer = GroupedAttention(96, 3)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = {layer.path_for(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    advice = ""
    if device.type == "cuda" and paths != {"fused"}:
        advice = "the fused kernel needs Triton, torch 2.4 and compute capability 8.0 (A100)"
    return [
        Finding("Triton", triton),
        Finding("attention", f"{' or '.join(sorted(paths))} on {device.type}", advice),
    ]


def _tasks(start: Path) -> list[Finding]:
    findings = []
    for library, folder in DATA.items():
        if find_spec(library) is None:
            findings.append(Finding(library, "not installed", HOW_TO_INSTALL, True))
        elif not (start / folder).is_dir():
            findings.append(Finding(library, f"expects {folder}: missing", DATA_ADVICE, True))
        else:
            findings.append(
                _attempt(library, lambda name=library: __import__(name), f"data in {folder}", "")
            )
    return findings


def _config(path: str, data_root: str | None) -> list[Finding]:
    import crossformer_mm.models  # noqa: F401 registers the backbone
    from crossformer_mm.data_paths import find_missing_data
    from crossformer_mm.flops import build_on_meta
    from crossformer_mm.launch import load_config

    try:
        cfg = load_config(path, {"data_root": data_root} if data_root else None)
    except SystemExit as error:
        return [Finding("config", str(error).removeprefix("error: "), "correct it", True)]
    missing = find_missing_data(cfg, ("train_dataloader", "val_dataloader"))
    data = Finding("data", missing, DATA_ADVICE, True) if missing else Finding("data", "all there")
    model = _attempt("model", lambda: build_on_meta(cfg), "can be built", "correct the config")
    return [model, data]


def would_train(findings: list[Finding]) -> bool:
    """Tell whether training would start: nothing stops it for the config, or for one library."""
    tasks = [finding for finding in findings if finding.topic in DATA]
    others = [finding for finding in findings if finding.topic not in DATA]
    if any(finding.stops_training for finding in others):
        return False
    return not tasks or any(not finding.stops_training for finding in tasks)


def report(findings: list[Finding]) -> str:
    """The findings as text, a line each, and advice below the problems."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.topic:<12}{finding.text}")
        if finding.advice:
            lines.append(f"{'':<12}-> {finding.advice}")
    ready = "Training would start." if would_train(findings) else "Training would not start."
    return "\n".join([*lines, ready])


def main() -> None:
    """Print the report and exit."""
    parser = argparse.ArgumentParser(prog="python -m crossformer_mm.doctor", description=__doc__)
    parser.add_argument("config", nargs="?", help="a config to train with")
    parser.add_argument("--data-root", metavar="DIR", help="where the config's data is")
    args = parser.parse_args()
    findings = examine(args.config, args.data_root)
    print(report(findings))
    sys.exit(0 if would_train(findings) else 1)


if __name__ == "__main__":
    main()
