"""What is installed and whether it works: ``python -m crossformer_mm.utils.collect_env``."""

import platform
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mmengine.utils.dl_utils import collect_env as collect_mmengine_env

from crossformer_mm.utils.requirements import HOW_TO_INSTALL
from crossformer_mm.version import __version__

MODULES = ("mmengine", "mmcv", "mmpretrain", "mmdet", "mmseg")
RUNTIMES = ("onnxruntime", "openvino", "nncf")
# Instructions that matrix products use
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# The distributions that provide the modules, in either family
FAMILIES = {
    "onedl": [f"onedl-{name}" for name in (*MODULES[:3], "mmdetection", "mmsegmentation")],
    "openmmlab": [*MODULES[:4], "mmsegmentation"],
}


def collect_env() -> dict[str, str]:
    """mmengine's report (system, compilers, PyTorch, GPUs) and the versions of the libraries."""
    env = {name: str(value) for name, value in collect_mmengine_env().items()}
    env["crossformer_mm"] = __version__
    env["Processor"] = describe_processor()
    env |= {name: version_of(name) for name in RUNTIMES if version_of(name)}
    env["Triton"] = version_of("triton") or "not installed"
    for family, names in FAMILIES.items():
        env |= {f"{name} ({family})": version_of(name) for name in names if version_of(name)}
    return env


def describe_processor() -> str:
    """The processor's name, and which of ``FEATURES`` it has; Linux lists both."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    name = re.search(r"^model name\s*: (.+)", text, re.MULTILINE)
    found = [feature for feature in FEATURES if feature in text.split()]
    return f"{name[1] if name else platform.processor()} ({' '.join(found)})"


def find_problems() -> list[str]:
    """What stops training, a line each with what to do about it.

    Without mmpretrain, mmdet or mmseg the configs of the other two run, so one is enough.
    """
    anew = f"in a new environment, {HOW_TO_INSTALL}"
    families = [names for names in FAMILIES.values() if any(map(version_of, names))]
    if len(families) > 1:
        return [f"packages of both families spoil each other: {anew}"]
    (names,) = families or [FAMILIES["onedl"]]
    installed = [module for module, name in zip(MODULES, names, strict=True) if version_of(name)]
    libraries = [f"{module}.models" for module in installed if module in MODULES[2:]]
    modules = dict.fromkeys(("mmengine.runner", "mmcv"), HOW_TO_INSTALL)
    modules |= dict.fromkeys(libraries, f"it does not fit the others: {anew}")
    problems = [
        f"{module} cannot be imported ({error}): {advice}"
        for module, advice in modules.items()
        if (error := _error_of(import_module, module))
    ]
    if not libraries:
        problems.append(f"none of mmpretrain, mmdet and mmseg is installed: {HOW_TO_INSTALL}")
    if not problems and (error := _error_of(_run_operator)):
        problems.append(
            f"mmcv's operators cannot run ({error}): they do not fit this torch or GPU; compile "
            "them here: pip install --no-build-isolation --no-binary :all: --force-reinstall "
            f"--no-deps {names[1]}=={version_of(names[1])}"
        )
    return problems


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _error_of(action: Callable, *arguments: object) -> str | None:
    """The first line of the error that an action raises; what is broken raises anything."""
    try:
        action(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _run_operator() -> None:
    from mmcv.ops import nms

    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), torch.ones(1, device=device), 0.5)


def main() -> None:
    """Print the report; exit status 1 if training would not start."""
    problems = find_problems()
    lines = [f"{name}: {value}" for name, value in collect_env().items()]
    print(*lines, *(f"Problem: {problem}" for problem in problems), sep="\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
