"""What the training and testing tools share: configs, data checks, processes."""

import os
import re
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.runner import Runner

from crossformer_mm import safe_load
from crossformer_mm.requirements import HOW_TO_INSTALL

SCOPES = ("mmpretrain", "mmdet", "mmseg")


def fail(message: str) -> NoReturn:
    """End the program with exit status 1 and one line on the error stream."""
    raise SystemExit(f"error: {message}")


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add what training and testing both take."""
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for logs, metrics and checkpoints")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override config entries; data_root=DIR moves all data paths",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=SUPPRESS)


def load_config(path: str, options: Mapping | None = None, work_dir: str | None = None) -> Config:
    """Read a config and apply what the command line changes.

    ``data_root`` among the options moves every path of the config that lies below the old one.
    The work directory is ``work_dir``, or the config's own, or ``work_dirs/NAME``.
    """
    if not Path(path).is_file():
        fail(f"config {path} does not exist")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        fail(f"config {path} cannot be read: {error}")
    options = dict(options or {})
    if "data_root" in options and "data_root" in cfg:
        new_root = str(options.pop("data_root")).rstrip("/") + "/"
        cfg = Config(move_paths(cfg.to_dict(), cfg.data_root, new_root), filename=cfg.filename)
    cfg.merge_from_dict(options)
    cfg.work_dir = work_dir or cfg.get("work_dir") or f"work_dirs/{Path(path).stem}"
    scope = cfg.get("default_scope")
    if scope in SCOPES and find_spec(scope) is None:
        fail(f"config {path} needs {scope}, which is not installed: {HOW_TO_INSTALL}")
    return cfg


def move_paths(value: object, old_root: str, new_root: str) -> object:
    """Replace ``old_root`` at the start of every string inside nested dicts and lists."""
    if isinstance(value, str) and value.startswith(old_root):
        return new_root + value[len(old_root) :]
    if isinstance(value, dict):
        return {key: move_paths(entry, old_root, new_root) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move_paths(entry, old_root, new_root) for entry in value)
    return value


def check_annotation_files(cfg: Config, *loaders: str) -> None:
    """Fail before anything is built if a local annotation file of a data loader is missing."""
    for loader in loaders:
        for dataset in _datasets((cfg.get(loader) or {}).get("dataset", {})):
            file = dataset.get("ann_file")
            if not file or "://" in file:
                continue
            path = Path(dataset.get("data_root") or "") / file
            if not path.exists():
                fail(
                    f"annotation file {path} of {loader} does not exist: "
                    "put the data there or set --cfg-options data_root=DIR"
                )


def _datasets(dataset: Mapping) -> Iterator[Mapping]:
    """Walk through wrappers like RepeatDataset and ConcatDataset."""
    yield dataset
    for inner in [dataset.get("dataset"), *dataset.get("datasets", [])]:
        if isinstance(inner, Mapping):
            yield from _datasets(inner)


def check_file(path: str | None, argument: str) -> None:
    """Fail if a local file named on the command line does not exist."""
    if path is not None and "://" not in path and not Path(path).is_file():
        fail(f"{argument} {path} does not exist")


def build_runner(cfg: Config, launcher: str, all_weights_needed: bool) -> Runner:
    """Start the process group and build the runner that the config describes.

    Checkpoints are read without running code in them, and the runner says what matched.

    Args:
        cfg: The config.
        launcher: ``'none'``, ``'pytorch'`` (torchrun), ``'slurm'`` or ``'mpi'``.
        all_weights_needed: Whether a checkpoint must have every weight of the model, as for
            testing.
    """
    safe_load.make_default()
    cfg.launcher = _start_processes(cfg, launcher)
    hook = dict(type="CheckpointMatchHook", all_weights_needed=all_weights_needed)
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), hook]
    runner = Runner.from_cfg(cfg)
    print_log(f"Running on {_describe_devices(launcher)}", logger="current")
    return runner


def _start_processes(cfg: Config, launcher: str) -> str:
    """Prepare what mmengine does not: processes on machines without a GPU, which speak gloo."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if launcher == "none":
        return launcher
    if torch.cuda.is_available():
        _check_own_gpu(launcher)
        return launcher
    if launcher == "slurm":
        _adopt_slurm_environment()
    elif launcher != "pytorch":
        fail(f"--launcher {launcher} needs GPUs; without one use pytorch or slurm")
    torch.distributed.init_process_group("gloo")
    wrapper = dict(type="MMDistributedDataParallel", broadcast_buffers=False)
    cfg.model_wrapper_cfg = {**wrapper, **cfg.get("model_wrapper_cfg", {}), "device_ids": None}
    return "pytorch"


def _check_own_gpu(launcher: str) -> None:
    local_rank = os.environ.get(
        {"pytorch": "LOCAL_RANK", "slurm": "SLURM_LOCALID"}.get(launcher, "")
    )
    count = torch.cuda.device_count()
    if local_rank is not None and int(local_rank) >= count:
        fail(f"process {local_rank} of this machine has no GPU of its own: {count} were found")


def _adopt_slurm_environment() -> None:
    """Set torch's variables from Slurm's; the first node of the list is the master."""
    env = os.environ
    first_node = re.sub(r"\[(\d+).*", r"\1", env["SLURM_NODELIST"].split(",")[0])
    env.setdefault("MASTER_ADDR", first_node)
    env.setdefault("MASTER_PORT", "29500")
    env.update(
        RANK=env["SLURM_PROCID"], WORLD_SIZE=env["SLURM_NTASKS"], LOCAL_RANK=env["SLURM_LOCALID"]
    )


def _describe_devices(launcher: str) -> str:
    count = torch.distributed.get_world_size() if launcher != "none" else 1
    if torch.cuda.is_available():
        return f"{count} GPU process(es), {torch.cuda.get_device_name()}"
    return f"{count} CPU process(es): no GPU was found"


def check_amp() -> None:
    """Fail if there is no GPU: mmengine's optimizer wrapper and mmcv's operators need one."""
    if not torch.cuda.is_available():
        fail("--amp needs a GPU, and none was found")


def require(cfg: ConfigDict, keys: tuple[str, ...], option: str) -> None:
    """Fail if the config lacks an entry that a command line option needs."""
    for key in keys:
        if key not in cfg:
            fail(f"{option} needs {key!r} in the config")
