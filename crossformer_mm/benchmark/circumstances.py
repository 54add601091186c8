"""Where and with what the benchmark ran: machine, versions, revision, command and date."""

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import crossformer_mm

ROOT = Path(crossformer_mm.__file__).resolve().parents[1]
MM_PACKAGES = ("mmengine", "mmcv", "mmdet", "mmsegmentation", "mmpretrain")
ONEDL_PACKAGES = ("mmengine", "mmcv", "mmdetection", "mmsegmentation", "mmpretrain")
PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "timm"),
    *MM_PACKAGES,
    *(f"onedl-{name}" for name in ONEDL_PACKAGES),
)


def describe_circumstances(device: str) -> dict:
    """Everything but the results, for JSON."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "machine": _describe_machine(device),
        "versions": _installed_versions(),
        "git": _git_state(),
    }


def _describe_machine(device: str) -> dict:
    machine = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "gpu": None,
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
        machine["cuda"] = torch.version.cuda
        machine["tf32"] = {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.allow_tf32,
        }
    return machine


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = info.is_file() and re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _installed_versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "crossformer_mm": crossformer_mm.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _git_state() -> dict | None:
    """Revision of the checkout that this package lies in, and whether files differ from it."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    return {"revision": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
