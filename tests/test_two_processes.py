"""Two processes: the same losses as one; when one fails, dies or is interrupted, all end."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.dist import init_dist
from crossformer_mm.engine.runner import build_runner

CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"

ITERATIONS = 20


@HOOKS.register_module()
class LossRecorder(Hook):
    """Writes the losses of each process, and spoils process 1 after ``ITERATIONS``."""

    priority = "HIGHEST"

    def __init__(self, out: str) -> None:
        self.file, self.losses = Path(out) / f"{get_rank()}.json", []

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == ITERATIONS and get_rank() == 1:
            runner.model.module.head.fc.weight.data.fill_(float("nan"))

    def after_train_iter(self, runner, *args, outputs=None, **kwargs):
        self.losses.append(float(outputs["loss"]))
        self.file.write_text(json.dumps(self.losses))


def write_recording_config(folder: Path, data_root: Path, batch_size: int, epochs: int) -> Path:
    """Write a config that records the losses, of images that are always the same."""
    folder.mkdir()
    path = folder / "config.py"
    path.write_text(
        f"_base_ = {str(CLASSIFIER)!r}\n"
        "custom_imports = dict(imports=['crossformer_mm', 'test_two_processes'])\n"
        f"custom_hooks = [dict(type='LossRecorder', out={str(folder)!r})]\n"
        "model = dict(backbone=dict(drop_path_rate=0.0))\n"
        "train_dataloader = dict(\n"
        f"    batch_size={batch_size}, num_workers=0, persistent_workers=False,\n"
        f"    dataset=dict(pipeline=_base_.test_pipeline, data_root={str(data_root)!r}))\n"
        f"train_cfg = dict(max_epochs={epochs})\n"
        "optim_wrapper = dict(type='OptimWrapper')\n"  # in bfloat16 sums of halves are not exact
        "val_cfg = val_dataloader = val_evaluator = None\n"
        f"default_hooks = dict(checkpoint=dict(by_epoch=False, interval={ITERATIONS + 1}))\n"
    )
    return path


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_two_processes_have_the_losses_of_one_until_one_fails(toy_data_roots, run_tool, tmp_path):
    """The mean of two processes' losses over 4 images is one process's loss over 8.

    The sampler shuffles with the same seed in both cases and gives process r of 2 the images at
    r, r + 2, r + 4, ...: iteration by iteration, the two together have the images that one process
    has. Nothing else is random, and nothing depends on the other images of a process, as BN does.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    config = write_recording_config(two, toy_data_roots["classification"], 4, 11)
    result = run_tool(
        *("bash", ROOT / "tools/dist_train.sh", config, 2, "--work-dir", two / "work"),
        check=False,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    )
    shares = [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)]
    config = write_recording_config(one, toy_data_roots["classification"], 8, 10)
    cfg = load_config(str(config), work_dir=str(one / "work"))
    build_runner(cfg, "none", all_weights_needed=False).train()
    alone = json.loads((one / "0.json").read_text())
    pairs = list(zip(*shares, strict=True))[:ITERATIONS]
    assert len(alone) == ITERATIONS and alone[-1] < alone[0] - 0.1
    assert max(abs(first - second) for first, second in pairs) > 0.01
    together = [(first + second) / 2 for first, second in pairs]
    assert together == pytest.approx(alone, rel=0, abs=1e-4)

    assert result.returncode != 0
    # The first process that ends may end the other one before it can say the same.
    expected = "training stopped at iteration 21: loss is nan in process 1; "
    assert f"error: {expected}" in result.stdout and "InvalidLossError" not in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("error: process ") and f" failed first: {expected}" in last
    assert [len(share) for share in shares] == [21, 21]
    assert not list((two / "work").glob("*.pth"))


def living_processes(mark: str) -> dict[int, str]:
    """The environments of the living processes that have a mark in theirs, by process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            environment = "\0" + (folder / "environ").read_text(errors="replace")
            if f"\0FAULT_TEST={mark}\0" in environment:  # a zombie has no environment
                found[int(folder.name)] = environment
    return found


def train_on_two_processes(
    toy_coco: Path, work_dir: Path, when_it_trains: Callable[[subprocess.Popen, str], None]
) -> tuple[int, str]:
    """Call a function with the job and its mark once two processes with workers train.

    Return the exit status and what was on the screen; no process is left then.
    """
    mark, said = str(work_dir), ""
    command = ["bash", ROOT / "tools/dist_train.sh", NANO_CONFIG, "2", "--work-dir", work_dir]
    command += ["--cfg-options", f"data_root={toy_coco}/", "train_cfg.max_epochs=1000"]
    command += ["default_hooks.logger.interval=1", "default_hooks.checkpoint.interval=1000"]
    command += ["train_cfg.val_interval=1000", "train_dataloader.batch_size=4"]
    environment = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "FAULT_TEST": mark}
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env={**os.environ, **environment}, **streams) as job:
        try:
            for line in job.stdout:
                if "Epoch(train)" in line and "Epoch(train)" not in said:
                    when_it_trains(job, mark)
                said += line
            # Data workers look every five seconds whether their process is alive.
            deadline = time.monotonic() + 30
            while left := living_processes(mark):
                assert time.monotonic() < deadline, f"still there: {left.keys()}"
                time.sleep(0.01)
        finally:
            for process in living_processes(mark):
                os.kill(process, signal.SIGKILL)
    return job.returncode, said


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_one_dead_process_of_two_ends_the_job(toy_coco, tmp_path):
    def kill_the_second(job: subprocess.Popen, mark: str) -> None:
        processes = {p for p, env in living_processes(mark).items() if "\0RANK=1\0" in env}
        stats = [Path(f"/proc/{process}/stat").read_text() for process in processes]
        parents = {int(stat.rpartition(")")[2].split()[1]) for stat in stats}
        [second] = processes & parents  # the others are its data workers
        os.kill(second, signal.SIGKILL)

    status, said = train_on_two_processes(toy_coco, tmp_path, kill_the_second)
    assert status == 1
    assert said.splitlines()[-1] == "error: process 1 failed first: killed by SIGKILL"


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_an_interruption_of_two_processes_leaves_none(toy_coco, tmp_path):
    status, said = train_on_two_processes(
        toy_coco, tmp_path, lambda job, mark: job.send_signal(signal.SIGINT)
    )
    assert status == 130
    assert "Traceback" not in said
    assert said.count("interrupted: ") == 1


def note(folder: Path, message: str, seconds: int) -> str:
    """What a process leaves for its launcher."""
    file = folder / f"{seconds}.json"
    said = dict(message=message, extraInfo=dict(timestamp=seconds))
    file.write_text(json.dumps(dict(message=said)))
    os.utime(file, (seconds, seconds))
    return str(file)


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_the_launcher_says_what_happened_first(tmp_path):
    describe = runpy.run_path(str(ROOT / "tools/dist_run.py"))["describe_first_failure"]
    memory = ProcessFailure(0, 10, 1, note(tmp_path, "RuntimeError: no memory\nHint: buy", 5))
    config = ProcessFailure(1, 11, 1, note(tmp_path, "SystemExit: error: no config", 7))
    killed = ProcessFailure(2, 12, -signal.SIGKILL, "none")
    ended = ProcessFailure(3, 13, -signal.SIGTERM, "none")  # by the launcher, as a rule
    usage = ProcessFailure(4, 14, 2, "none")
    for failures, described in [
        ([ended, config, memory], "process 0 failed first: RuntimeError: no memory"),
        ([ended, config], "process 1 failed first: no config"),
        ([memory, killed], "process 2 failed first: killed by SIGKILL"),
        ([ended], "process 3 failed first: killed by SIGTERM"),
        ([usage], "process 4 failed first: exit status 2, for what it says above"),
    ]:
        error = ChildFailedError("train.py", {f.local_rank: f for f in failures})
        assert describe(error) == described


# A thread of the group waits until Python finalizes, and goes on then: without care, this crashes.
JOINED = """
import atexit, sys, threading
import torch
from torch import distributed
from crossformer_mm.utils.cli import run

class ReleasesWhenFinalized:
    def __init__(self, lock):
        self.release, self.wait = lock.release, threading.Event().wait

    def __del__(self):
        self.release()
        self.wait(5)

def outlast_the_exchange(_):
    # Called in the main thread if the exchange is over already.
    if threading.get_ident() != threading.main_thread().ident:
        in_thread.set()
        until_finalized.acquire()

in_thread, until_finalized = threading.Event(), threading.Lock()
until_finalized.acquire()
sys.taken_apart_last = ReleasesWhenFinalized(until_finalized)

def main():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    sys.group = distributed.group.WORLD  # as a model holds it
    while not in_thread.is_set():
        exchange = distributed.all_reduce(torch.ones(1), async_op=True)
        exchange.get_future().then(outlast_the_exchange)
    atexit.register(sys.stdout.write, "functions of atexit")
    threading.Thread(target=sys.stdout.write, args=["threads, "]).start()
    {last}

run(main)
"""


@pytest.mark.parametrize(
    ("last", "status", "said"),
    [("pass", 0, ""), ("raise ValueError('no data')", 1, "ValueError: no data")],
)
def test_a_process_of_a_group_ends_as_usual(tmp_path, last, status, said):
    note = tmp_path / "note.json"
    ended = subprocess.run(
        [sys.executable, "-c", JOINED.replace("{last}", last)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TORCHELASTIC_ERROR_FILE": str(note)},
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == "threads, functions of atexit"
    assert ended.stderr.strip().endswith(said)
    assert note.exists() == bool(said) and (not said or said in note.read_text())


def test_slurm_without_a_gpu_sets_what_torch_and_mmengine_read(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    slurm = dict(PROCID="3", NTASKS="4", LOCALID="1", NODELIST="node[07-08,11],gpu3")
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config(str(NANO_CONFIG), {"find_unused_parameters": True})
    init_dist(cfg, "slurm")
    found = [os.environ[n] for n in ("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK")]
    assert found == ["node07", "3", "4", "1"]
    assert cfg.model_wrapper_cfg.find_unused_parameters is True


def test_slurm_may_show_each_task_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("SLURM_LOCALID", "SLURM_PROCID"):
        monkeypatch.setenv(name, "3")
    cfg = load_config(str(NANO_CONFIG))
    for gpus in (1, 4):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        init_dist(cfg, "slurm")
        assert cfg.launcher == "slurm"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit, match="no GPU"):
        init_dist(cfg, "slurm")


@pytest.mark.fault("shell scripts, Slurm")
def test_a_launcher_that_did_not_start_the_process_is_named(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    cfg = load_config(str(NANO_CONFIG))
    with pytest.raises(SystemExit, match="^error: --launcher pytorch needs .*RANK: dist_train.sh"):
        init_dist(cfg, "pytorch")
    with pytest.raises(SystemExit, match="^error: --launcher slurm needs .*ID: slurm_train.sh"):
        init_dist(cfg, "slurm")
