"""Two processes of which one fails, dies or is interrupted: the job ends, says why, leaves none."""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import NANO_CONFIG, ROOT
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from crossformer_mm.utils.process_failure import reason_for_launcher


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
    config: Path = NANO_CONFIG,
) -> tuple[int, str]:
    """Call a function with the job and its mark once two processes with workers train.

    Return the exit status and what was on the screen; no process is left then.
    """
    mark, said = str(work_dir), ""
    command = ["bash", ROOT / "tools/dist_train.sh", config, "2", "--work-dir", work_dir]
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


FAULTY = """
import os

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS


@DATASETS.register_module()
class FaultyDataset(CocoDataset):
    taken = 0

    def __getitem__(self, index):
        self.taken += 1
        if os.environ["RANK"] == "1" and self.taken > 6:
            raise RuntimeError("no more data")
        return super().__getitem__(index)
"""
FAULTY_CONFIG = f"""
_base_ = {str(NANO_CONFIG)!r}
custom_imports = dict(imports=["crossformer_mm", "faulty"])
train_dataloader = dict(dataset=dict(type="FaultyDataset"))
"""


def test_one_dead_process_of_two_ends_the_job(toy_coco, tmp_path):
    def kill_the_second(job: subprocess.Popen, mark: str) -> None:
        processes = living_processes(mark).items()
        second, *workers = sorted(process for process, env in processes if env.get("RANK") == "1")
        assert workers
        os.kill(second, signal.SIGKILL)

    status, said = train_on_two_processes(toy_coco, tmp_path, kill_the_second)
    assert status == 1
    assert said.splitlines()[-1] == "error: process 1 failed first: killed by SIGKILL"


def test_an_error_in_one_process_of_two_ends_the_job_with_the_reason(
    toy_coco, tmp_path, monkeypatch
):
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    config = tmp_path / "config.py"
    config.write_text(FAULTY_CONFIG)
    status, said = train_on_two_processes(toy_coco, tmp_path / "work", config=config)
    assert status == 1
    assert "Epoch(train)" in said
    # The other process says why it fails too: it misses the first.
    assert said.splitlines()[-1] == "error: process 1 failed first: RuntimeError: no more data"


def note(folder: Path, reason: Exception | SystemExit, seconds: int) -> str:
    """What a process leaves for its launcher."""
    file = folder / f"{seconds}.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        with pytest.raises(type(reason)), reason_for_launcher():
            raise reason
    os.utime(file, (seconds, seconds))
    return str(file)


def test_the_launcher_says_what_happened_first(tmp_path):
    describe = runpy.run_path(str(ROOT / "tools/dist_run.py"))["describe_first_failure"]
    memory = ProcessFailure(0, 10, 1, note(tmp_path, RuntimeError("no memory\nHint: buy"), 5))
    config = ProcessFailure(1, 11, 1, note(tmp_path, SystemExit("error: no config"), 7))
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


def test_an_interruption_of_two_processes_leaves_none(toy_coco, tmp_path):
    status, said = train_on_two_processes(
        toy_coco, tmp_path, lambda job, mark: job.send_signal(signal.SIGINT)
    )
    assert status == 130
    assert "Traceback" not in said
    assert said.count("interrupted: ") == 1
