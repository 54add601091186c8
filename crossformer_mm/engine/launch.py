"""What the training and testing tools share: configs, data checks, processes."""

import os
import re
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner

from crossformer_mm.datasets.paths import find_missing_data, move_paths
from crossformer_mm.engine.hooks.checkpoint_match import CheckpointMatchHook
from crossformer_mm.engine.hooks.loss_check import LossCheckHook
from crossformer_mm.engine.hooks.whole_checkpoints import WholeCheckpointsHook
from crossformer_mm.engine.runner import DataCheckingRunner
from crossformer_mm.engine.seeding import SeedEachIterationHook
from crossformer_mm.utils.errors import CheckpointError
from crossformer_mm.utils.requirements import HOW_TO_INSTALL

SCOPES = ("mmpretrain", "mmdet", "mmseg")


def fail(message: str) -> NoReturn:
    """End the program with exit status 1 and one line on the error stream."""
    raise SystemExit(f"error: {message}")


def add_config_arguments(parser: ArgumentParser) -> None:
    """Add what every tool takes that reads a config."""
    parser.add_argument("config", help="config file")
    add_cfg_options(parser)


class _CfgOptions(DictAction):
    """mmengine's action, whose errors end the program with one line."""

    def __call__(self, parser: ArgumentParser, *args: object, **kwargs: object) -> None:
        try:
            super().__call__(parser, *args, **kwargs)
        except (AssertionError, ValueError) as error:
            fail(f"--cfg-options takes KEY=VALUE: {error}")


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add the option that overrides config entries, to a parser or a group of one."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_CfgOptions,
        metavar="KEY=VALUE",
        help="override config entries; data_root=DIR moves all data paths",
    )


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add what training and testing both take."""
    add_config_arguments(parser)
    parser.add_argument("--work-dir", help="folder for logs, metrics and checkpoints")
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
    if Path(cfg.work_dir).exists() and not Path(cfg.work_dir).is_dir():
        fail(f"the work directory {cfg.work_dir} is not a folder: give another --work-dir")
    scope = cfg.get("default_scope")
    if scope in SCOPES and find_spec(scope) is None:
        fail(f"config {path} needs {scope}, which is not installed: {HOW_TO_INSTALL}")
    return cfg


def check_data(cfg: Config, *loaders: str) -> None:
    """Fail before anything is built if files or folders of the data are missing."""
    missing = find_missing_data(cfg, loaders)
    if missing:
        fail(f"{missing}: put the data there or set --cfg-options data_root=DIR")


def check_file(path: str | None, argument: str) -> None:
    """Fail if a local file named on the command line does not exist."""
    if path is None or "://" in path:
        return
    file = Path(os.path.expanduser(path))  # leaves names of unknown users as they are
    if not file.is_file():
        fail(f"{argument} {path} {'is not a file' if file.exists() else 'does not exist'}")


def check_device(name: str) -> torch.device:
    """Return the device of a name such as ``'cpu'`` or ``'cuda:1'``; fail if there is none."""
    if name == "meta":
        fail("--device meta computes nothing: give cpu, cuda, cuda:1, ...")
    try:
        return torch.empty(0, device=name).device
    except Exception as error:
        fail(f"--device {name} cannot be used: {str(error).splitlines()[0]}")


def shape_for_task(cfg: Config, shapes: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Choose the image size of the config's task, for which the command line gave none."""
    if cfg.get("default_scope") not in shapes:
        fail(f"the config's default_scope is none of {', '.join(shapes)}: give --shape")
    return shapes[cfg.default_scope]


@contextmanager
def errors_in_one_line(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with one line at an error of one of these kinds."""
    try:
        yield
    except kinds as error:
        fail(str(error))


def checkpoint_errors_in_one_line() -> AbstractContextManager:
    """End the program with one line when a checkpoint cannot be used."""
    return errors_in_one_line(CheckpointError)


def build_runner(cfg: Config, launcher: str, all_weights_needed: bool) -> Runner:
    """Start the process group and build the runner that the config describes.

    Checkpoints are read without running code in them, and the runner says what matched. Training
    stops at a loss that is NaN or infinite, unless the config says ``check_loss=False``.

    Args:
        cfg: The config.
        launcher: ``'none'``, ``'pytorch'`` (torchrun), ``'slurm'`` or ``'mpi'``.
        all_weights_needed: Whether a checkpoint must have every weight of the model, as for
            testing.
    """
    cfg.launcher = _start_processes(cfg, launcher)
    replaced = [] if torch.cuda.is_available() else replace_gpu_only_parts(cfg)
    runner = DataCheckingRunner.from_cfg(cfg)
    runner.register_hook(CheckpointMatchHook(all_weights_needed, cfg.get("resume", False)))
    runner.register_hook(WholeCheckpointsHook())
    register_training_hooks(runner, cfg)
    log_devices(launcher, replaced)
    return runner


def log_devices(launcher: str, replaced: list[str]) -> None:
    """Log what trains or tests, and the lines of :func:`replace_gpu_only_parts`."""
    for line in (f"Running on {_describe_devices(launcher)}", *replaced):
        print_log(line, logger="current")


def register_training_hooks(runner: Runner | FlexibleRunner, cfg: Config) -> None:
    """Add what every training has: repeatable random numbers and, unless switched off, a check."""
    runner.register_hook(SeedEachIterationHook())
    if cfg.get("check_loss", True):
        runner.register_hook(LossCheckHook())


def replace_gpu_only_parts(cfg: Config) -> list[str]:
    """Change what cannot run without a GPU, and return a line on each change.

    Mixed precision gives way to float32. So does SyncBN to BN where there are several processes;
    where there is one, mmengine does that.
    """
    lines = []
    wrapper = cfg.get("optim_wrapper") or {}
    if wrapper.get("type") == "AmpOptimWrapper":
        wrapper["type"] = "OptimWrapper"
        for option in ("loss_scale", "dtype"):
            wrapper.pop(option, None)
        lines.append("Training in float32: the config's mixed precision needs a GPU")
    if cfg.get("launcher", "none") != "none" and _replace_types(cfg.model, "SyncBN", "BN"):
        lines.append("BN replaces SyncBN, which needs a GPU: each process has its own statistics")
    return lines


def _replace_types(value: object, old: str, new: str) -> bool:
    """Replace ``type=old`` by ``type=new`` in nested dicts and lists; say whether any was there."""
    if isinstance(value, dict):
        found = value.get("type") == old
        if found:
            value["type"] = new
        return any([found, *(_replace_types(entry, old, new) for entry in value.values())])
    if isinstance(value, (list, tuple)):
        return any([_replace_types(entry, old, new) for entry in value])
    return False


def _start_processes(cfg: Config, launcher: str) -> str:
    """Prepare what mmengine does not: processes on machines without a GPU, which speak gloo."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if launcher == "none":
        return launcher
    _check_launched(launcher)
    if torch.cuda.is_available():
        _check_own_gpu(launcher)
        return launcher
    if launcher == "slurm":
        _adopt_slurm_environment()
    elif launcher != "pytorch":
        fail(f"--launcher {launcher} needs GPUs; without one use pytorch or slurm")
    torch.distributed.init_process_group("gloo")
    wrapper = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **cfg.get("model_wrapper_cfg", {}), "device_ids": None}
    return "pytorch"


def _check_launched(launcher: str) -> None:
    starters = {
        "pytorch": ("RANK", "dist_train.sh and dist_test.sh start it with torchrun"),
        "slurm": ("SLURM_PROCID", "slurm_train.sh and slurm_test.sh start it with srun"),
    }
    if launcher not in starters:
        return
    variable, scripts = starters[launcher]
    if variable not in os.environ:
        fail(f"--launcher {launcher} needs the variable {variable}: {scripts}")


def _check_own_gpu(launcher: str) -> None:
    local_rank = os.environ.get(
        {"pytorch": "LOCAL_RANK", "slurm": "SLURM_LOCALID"}.get(launcher, "")
    )
    count = torch.cuda.device_count()
    if launcher == "slurm" and count == 1:
        return  # each task sees its own, as with --gpus-per-task=1
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
