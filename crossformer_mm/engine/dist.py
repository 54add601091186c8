"""Several processes, on GPUs or without any: joining them."""

import os
import re
from datetime import timedelta

import torch
from mmengine.config import Config

from crossformer_mm.utils.cli import fail

# The numbers of a process, among all and on its machine; the scripts, and what they start it with.
VARIABLES = {
    "pytorch": ("RANK", "LOCAL_RANK", "dist", "torchrun"),
    "slurm": ("SLURM_PROCID", "SLURM_LOCALID", "slurm", "srun"),
}


def init_dist(cfg: Config, launcher: str) -> None:
    """Check what a launcher (``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``) has set up.

    Without a GPU, processes join a gloo group here. ``cfg`` gets what mmengine's runner needs: the
    launcher, and a wrapper for a model on CPUs.
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    cfg.launcher = launcher
    if launcher in VARIABLES:
        _check_launched(launcher)
    if launcher == "none" or torch.cuda.is_available():
        return
    if launcher not in VARIABLES:
        fail(f"--launcher {launcher} needs GPUs; without one use pytorch or slurm")
    if launcher == "slurm":  # torch's variables; the first node of the list is the master
        env = os.environ
        first_node = re.sub(r"\[(\d+).*", r"\1", env["SLURM_NODELIST"].split(",")[0])
        env.setdefault("MASTER_ADDR", first_node)
        env.setdefault("MASTER_PORT", "29500")
        env["RANK"], env["LOCAL_RANK"] = env["SLURM_PROCID"], env["SLURM_LOCALID"]
        env["WORLD_SIZE"] = env["SLURM_NTASKS"]
    seconds = (
        cfg.get("env_cfg", {}).get("dist_cfg", {}).get("timeout")
    )  # which mmengine reads on GPUs
    options = {} if seconds is None else dict(timeout=timedelta(seconds=seconds))
    torch.distributed.init_process_group("gloo", **options)
    wrapper = dict(type="MMDistributedDataParallel", broadcast_buffers=False)
    wrapper["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
    cfg.model_wrapper_cfg = {**wrapper, **cfg.get("model_wrapper_cfg", {}), "device_ids": None}
    cfg.launcher = "pytorch"


def is_first_process(launcher: str) -> bool:
    """Whether this process is number 0 of those that a launcher has started, or alone."""
    variables = {name: names[0] for name, names in VARIABLES.items()}
    variable = {**variables, "mpi": "OMPI_COMM_WORLD_RANK"}.get(launcher, "")
    return os.environ.get(variable, "0") == "0"


def _check_launched(launcher: str) -> None:
    """Fail if the launcher did not start this process, or has no GPU for it where there are any."""
    variable, local_variable, scripts, starter = VARIABLES[launcher]
    if variable not in os.environ:
        scripts = f"{scripts}_train.sh and {scripts}_test.sh start it with {starter}"
        fail(f"--launcher {launcher} needs the variable {variable}: {scripts}")
    local_rank, count = int(os.environ.get(local_variable, 0)), torch.cuda.device_count()
    # Slurm may show each task its own only, as with --gpus-per-task=1.
    enough = launcher == "slurm" and count == 1 or local_rank < count
    if torch.cuda.is_available() and not enough:
        fail(f"process {local_rank} of this machine has no GPU of its own: {count} were found")
