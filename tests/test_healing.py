"""Jobs of two processes that are killed, hang or are told to stop end with the same weights."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from test_faults import assert_same_state
from test_two_processes import CLASSIFIER, living_processes

KILLS = 30
EPOCHS, MORE_EPOCHS = 4, 40
ITERATIONS = 4  # in an epoch; a step is made after each twelfth, and at the end


class Job(NamedTuple):
    """The processes of a job, and what they write on the screen."""

    launcher: subprocess.Popen
    work_dir: Path
    log: Path
    mark: str

    @property
    def said(self) -> str:
        return self.log.read_text()

    def processes(self) -> dict[int, int]:
        """The processes that train, by rank."""
        found = living_processes(self.mark).items()
        ranks = {process: re.search("\0RANK=(\\d)", env) for process, env in found}
        return {int(rank[1]): process for process, rank in ranks.items() if rank}

    def wait_for(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while not happened():
            assert self.launcher.poll() is None and time.monotonic() < deadline, self.said[-5000:]
            time.sleep(0.001)

    def wait_for_new(self, text: str) -> None:
        """Wait until it is on the screen once more."""
        count = self.said.count(text)
        self.wait_for(lambda: self.said.count(text) > count)

    def signal_one(self, rank: int, number: int) -> None:
        """Send a signal to a process, and wait until both are new ones."""
        old = self.processes()
        os.kill(old[rank], number)

        def are_new() -> bool:
            new = self.processes()
            return len(new) == 2 and not {*new.values()} & {*old.values()}

        self.wait_for(are_new)

    def finish(self, status: int = 0) -> None:
        assert self.launcher.wait(timeout=900) == status, self.said[-5000:]


@pytest.fixture
def start_job(toy_data_roots, tmp_path):
    """Start a job of two processes, or one of two machines with a process each."""
    jobs = []

    def start(work_dir: Path, epochs: int, *options: str, processes: int = 2, **env: str) -> Job:
        config = tmp_path / f"heal{epochs}.py"
        config.write_text(
            f"_base_ = {str(CLASSIFIER)!r}\n"
            "model = dict(backbone=dict(drop_path_rate=0.3))\n"
            "train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)\n"
            "val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)\n"
            f"train_cfg = dict(max_epochs={epochs}, val_interval=1)\n"
            "optim_wrapper = dict(accumulative_counts=12)\n"
            "default_hooks = dict(logger=dict(interval=1),\n"
            "    checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=2))\n"
            "randomness = dict(seed=0, deterministic=True)\n"
            "custom_hooks = [dict(type='EMAHook')]\n"
        )
        log = tmp_path / f"log{len(jobs)}.txt"
        command = ["bash", ROOT / "tools/dist_train.sh", config, str(processes), "--resume"]
        command += ["--work-dir", work_dir, "--cfg-options", *options]
        command += [f"data_root={toy_data_roots['classification']}/"]
        env = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "FAULT_TEST": str(log), **env}
        with log.open("x") as file:
            streams = dict(stdout=file, stderr=subprocess.STDOUT)
            launcher = subprocess.Popen(command, env={**os.environ, **env}, **streams)
        jobs.append(Job(launcher, work_dir, log, str(log)))
        return jobs[-1]

    yield start
    for job in jobs:
        for process in living_processes(job.mark):
            os.kill(process, signal.SIGKILL)
        job.launcher.wait()


def last(work_dir: Path, epochs: int) -> Path:
    return work_dir / f"iter_{epochs * ITERATIONS}.pth"


@pytest.fixture
def undisturbed(start_job, tmp_path):
    """Train without a disturbance; return the last checkpoint."""

    def train(epochs: int) -> Path:
        start_job(tmp_path / "undisturbed", epochs).finish()
        return last(tmp_path / "undisturbed", epochs)

    return train


@pytest.mark.fault("disk, permissions, kills, two at once")
@pytest.mark.slow
def test_a_killed_process_and_a_stopped_job_leave_no_trace_in_the_weights(
    start_job, undisturbed, tmp_path
):
    job = start_job(tmp_path / "work", EPOCHS, MAX_RESTARTS="1")
    job.wait_for_new("Epoch(train) [2][1/4]")
    job.signal_one(1, signal.SIGKILL)
    job.wait_for_new("Epoch(train) [2][4/4]")
    job.launcher.terminate()
    job.finish(os.EX_TEMPFAIL)
    stopped = tmp_path / "work/stopped.pth"
    said = f"stopped by SIGTERM: {stopped} is written, and --resume goes on from it\n"
    assert job.said.count(said) == 1
    job = start_job(tmp_path / "work", EPOCHS)
    job.finish()
    assert f"Resuming from {stopped}" in job.said and "No gradient is lost" in job.said
    assert_same_state(last(tmp_path / "work", EPOCHS), undisturbed(EPOCHS))


def kill_at_random(job: Job, kill: int, rng: random.Random) -> None:
    """Kill one of two processes: while they start, while one writes, validates, or in between."""
    if kill % 4 == 0:
        moment = time.monotonic() + rng.uniform(0, 15)
        job.wait_for(lambda: time.monotonic() > moment)
    elif kill % 4 == 1:
        for _ in range(rng.randrange(1, 4)):
            job.wait_for_new("Saving checkpoint at")
        job.wait_for(lambda: any(job.work_dir.glob(".*.tmp")))
    elif kill % 4 == 2:
        job.wait_for_new("Epoch(val)")
    else:
        job.wait_for_new("[4/4]")
    job.signal_one(rng.randrange(2), signal.SIGKILL)


@pytest.mark.endurance
def test_thirty_kills_leave_no_trace_in_the_weights(start_job, undisturbed, tmp_path):
    rng, started = random.Random(0), time.monotonic()
    job = start_job(tmp_path / "work", MORE_EPOCHS, MAX_RESTARTS=str(KILLS))
    job.wait_for(lambda: len(job.processes()) == 2)
    for kill in range(KILLS):
        kill_at_random(job, kill, rng)
    job.finish()
    resumed = job.said.count("Resuming from") // 2
    assert_same_state(last(tmp_path / "work", MORE_EPOCHS), undisturbed(MORE_EPOCHS))
    seconds = time.monotonic() - started
    print(f"\n{KILLS} kills, {KILLS} restarts, {resumed} of them from a checkpoint, bits equal,")
    print(f"{seconds:.0f} s")


@pytest.mark.endurance
def test_a_process_that_hangs_is_restarted_after_the_timeout(start_job, undisturbed, tmp_path):
    job = start_job(tmp_path / "work", EPOCHS, "env_cfg.dist_cfg.timeout=10", MAX_RESTARTS="1")
    job.wait_for_new("Epoch(train) [2][2/4]")
    job.signal_one(1, signal.SIGSTOP)
    job.finish()
    assert_same_state(last(tmp_path / "work", EPOCHS), undisturbed(EPOCHS))


@pytest.mark.endurance
def test_a_machine_may_leave_and_come_back(start_job, undisturbed, tmp_path):
    def start_machine(rank: int) -> Job:
        env = dict(NNODES="2", NODE_RANK=str(rank), PORT="29577", MAX_RESTARTS="2")
        return start_job(tmp_path / "work", EPOCHS, processes=1, **env)

    first, second = start_machine(0), start_machine(1)
    first.wait_for(lambda: "Epoch(train) [2][2/4]" in first.said + second.said)
    for process in living_processes(second.mark):
        os.kill(process, signal.SIGKILL)
    second = start_machine(1)
    second.finish()
    first.finish()
    assert_same_state(last(tmp_path / "work", EPOCHS), undisturbed(EPOCHS))
