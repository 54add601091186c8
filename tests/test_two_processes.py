"""Two processes: the same losses as one; when one fails, dies or is interrupted, all end."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.dist import init_dist
from crossformer_mm.engine.runner import build_runner

CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"

ITERATIONS = 20
RECORDER = """
import json
from pathlib import Path
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class LossRecorder(Hook):
    priority = 'HIGHEST'

    def __init__(self, out, spoil_at):
        self.out, self.spoil_at, self.losses = Path(out), spoil_at, []

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.spoil_at and get_rank() == 1:
            runner.model.module.head.fc.weight.data.fill_(float('nan'))

    def after_train_iter(self, runner, *args, outputs=None, **kwargs):
        self.losses.append(float(outputs['loss']))
        (self.out / f'{get_rank()}.json').write_text(json.dumps(self.losses))
"""
SAME_IMAGES = """
custom_imports = dict(imports=['crossformer_mm', 'loss_recorder'], allow_failed_imports=False)
model = dict(backbone=dict(drop_path_rate=0.0))
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=_base_.test_pipeline))
val_cfg = val_dataloader = val_evaluator = None
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=21), logger=dict(interval=1))
"""


def write_recording_config(folder: Path, data_root: Path, batch_size: int, epochs: int) -> Path:
    """Write a config that records the losses, and spoils process 1 at iteration 21."""
    path = folder / "config.py"
    path.write_text(
        f"_base_ = {str(CLASSIFIER)!r}\n{SAME_IMAGES}\n"
        f"train_dataloader.update(batch_size={batch_size})\n"
        f"train_cfg = dict(max_epochs={epochs})\n"
        f"custom_hooks = [dict(type='LossRecorder', out={str(folder)!r}, spoil_at=21)]\n"
        f"data_root = {str(data_root)!r}\n"
        "train_dataloader['dataset'].update(data_root=data_root)\n"
    )
    (folder / "loss_recorder.py").write_text(RECORDER)
    return path


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, toy_data_roots, run_tool):
    """Two processes with 4 images each: 20 iterations, and one that process 1 spoils."""
    folder = tmp_path_factory.mktemp("two")
    config = write_recording_config(folder, toy_data_roots["classification"], 4, 11)
    search_path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = run_tool(
        *("bash", ROOT / "tools/dist_train.sh", config, 2, "--work-dir", folder / "work"),
        check=False,
        PYTHONPATH=search_path,
    )
    return folder, result


def test_one_and_two_processes_give_the_same_losses(
    monkeypatch, two_processes, toy_data_roots, tmp_path
):
    """The mean of two processes' losses over 4 images is one process's loss over 8.

    The sampler shuffles with the same seed in both cases and gives process r of 2 the images at
    r, r + 2, r + 4, ...: iteration by iteration, the two together have the images that one process
    has. There is nothing else that is random, and nothing that depends on the other images of a
    process, as BN does.
    """
    folder, _ = two_processes
    shares = [json.loads((folder / f"{rank}.json").read_text())[:ITERATIONS] for rank in (0, 1)]
    monkeypatch.syspath_prepend(str(folder))
    config = write_recording_config(tmp_path, toy_data_roots["classification"], 8, 10)
    cfg = load_config(str(config), work_dir=str(tmp_path / "work"))
    build_runner(cfg, "none", all_weights_needed=False).train()
    alone = json.loads((tmp_path / "0.json").read_text())
    together = [(one + other) / 2 for one, other in zip(*shares, strict=True)]
    assert len(alone) == ITERATIONS and alone[-1] < alone[0] - 0.1
    assert max(abs(one - other) for one, other in zip(*shares, strict=True)) > 0.01
    assert together == pytest.approx(alone, rel=0, abs=1e-4)


def test_an_invalid_loss_in_one_process_stops_all(two_processes):
    folder, result = two_processes
    assert result.returncode != 0
    # The first process that ends may end the other one before it can say the same.
    expected = "training stopped at iteration 21: loss is nan in process 1; "
    assert f"error: {expected}" in result.stdout and "InvalidLossError" not in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("error: process ") and f" failed first: {expected}" in last
    assert [len(json.loads((folder / f"{rank}.json").read_text())) for rank in (0, 1)] == [21, 21]
    assert not list((folder / "work").glob("*.pth"))


def living_processes(mark: str) -> dict[int, dict[str, str]]:
    """The environments of the living processes that have a mark in theirs, by process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            entries = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # ended meanwhile, or another user's
        environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
        if environment.get("FAULT_TEST") == mark:  # a zombie has no environment
            found[int(folder.name)] = environment
    return found


def wait_for_the_end_of(mark: str) -> None:
    """Data workers look every five seconds whether their process is alive."""
    deadline = time.monotonic() + 30
    while left := living_processes(mark):
        assert time.monotonic() < deadline, f"still there: {left.keys()}"
        time.sleep(0.01)


def train_on_two_processes(
    toy_coco: Path,
    work_dir: Path,
    when_it_trains: Callable[[subprocess.Popen, str], None] = lambda job, mark: None,
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
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    ) as job:
        try:
            for line in job.stdout:
                if "Epoch(train)" in line and "Epoch(train)" not in said:
                    when_it_trains(job, mark)
                said += line
            wait_for_the_end_of(mark)
        finally:
            for process in living_processes(mark):
                os.kill(process, signal.SIGKILL)
    return job.returncode, said


def test_one_dead_process_of_two_ends_the_job(toy_coco, tmp_path):
    def kill_the_second(job: subprocess.Popen, mark: str) -> None:
        processes = living_processes(mark).items()
        second, *workers = sorted(process for process, env in processes if env.get("RANK") == "1")
        assert workers
        os.kill(second, signal.SIGKILL)

    status, said = train_on_two_processes(toy_coco, tmp_path, kill_the_second)
    assert status == 1
    assert said.splitlines()[-1] == "error: process 1 failed first: killed by SIGKILL"


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


def test_unused_parameters_are_looked_for_where_the_config_says(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed, "init_process_group", lambda backend: None)
    cfg = load_config(str(NANO_CONFIG), {"find_unused_parameters": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    init_dist(cfg, "pytorch")
    assert cfg.model_wrapper_cfg.find_unused_parameters is True


def test_slurm_without_a_gpu_sets_what_torch_reads(monkeypatch):
    slurm = dict(SLURM_PROCID="3", SLURM_NTASKS="4", SLURM_LOCALID="1")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in {**slurm, "SLURM_NODELIST": "node[07-08,11],gpu3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    init_dist(load_config(str(NANO_CONFIG)), "slurm")
    found = [os.environ[n] for n in ("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK")]
    assert found == ["node07", "3", "4", "1"]


@pytest.mark.parametrize(("gpus", "refused"), [(1, False), (2, True), (4, False)])
def test_slurm_may_show_each_task_its_own_gpu(monkeypatch, gpus, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name in ("SLURM_LOCALID", "SLURM_PROCID"):
        monkeypatch.setenv(name, "3")
    cfg = load_config(str(NANO_CONFIG))
    if refused:
        with pytest.raises(SystemExit, match="no GPU"):
            init_dist(cfg, "slurm")
    else:
        init_dist(cfg, "slurm")
        assert cfg.launcher == "slurm"


@pytest.mark.parametrize(
    ("launcher", "named"), [("pytorch", "RANK: dist_train.sh"), ("slurm", "PROCID: slurm_train.sh")]
)
def test_a_launcher_that_did_not_start_the_process_is_named(monkeypatch, launcher, named):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(SystemExit, match=f"^error: --launcher {launcher} needs .*{named}"):
        init_dist(load_config(str(NANO_CONFIG)), launcher)
