"""Training that is killed, interrupted, or out of disk space goes on as if nothing had happened."""

import errno
import fcntl
import multiprocessing
import os
import platform
import random
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple
from unittest.mock import MagicMock

import mmengine.runner.runner
import numpy as np
import pytest
import torch
from conftest import NANO_CONFIG, ROOT
from mmengine.dataset import InfiniteSampler

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine.hooks.whole_checkpoints import WholeFileBackend
from crossformer_mm.engine.loops import ResumableEpochLoop
from crossformer_mm.engine.runner import CheckedRunner
from crossformer_mm.engine.work_dir import only_training_in
from crossformer_mm.utils.errors import CheckpointError

TRAIN = ROOT / "tools/train.py"
KILLS = 8
ITERATIONS = 24


def run_train(log: Path, arguments: list[str], largest_file: int | None) -> None:
    """Run the training tool in this process, which is a new one."""
    with log.open("xb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    # Compilers and drivers are asked for their versions, which takes longer than the training.
    mmengine.runner.runner.collect_env = dict
    sys.argv = [TRAIN.name, *arguments]
    sys.path.insert(0, str(TRAIN.parent))  # as for any script
    runpy.run_path(str(TRAIN), run_name="__main__")


class Training(NamedTuple):
    """A training in a new process, and what it writes on the screen."""

    process: BaseProcess
    work_dir: Path
    log: Path

    def wait_for(self, happened: Callable[[], object]) -> None:
        """Look again and again until something has happened."""
        deadline = time.monotonic() + 120
        while not happened():
            assert self.process.is_alive() and time.monotonic() < deadline, self.said[-3000:]
            time.sleep(0.0005)

    def finish(self, status: int, last_line: str | None = None) -> None:
        """Wait for the end; check the exit status and, if given, that the last line says it all."""
        self.process.join(timeout=200)
        assert self.process.exitcode == status, self.said[-3000:]
        if last_line is not None:
            assert self.said.splitlines()[-1] == last_line
            assert "Traceback" not in self.said and "Exception" not in self.said
            assert not list(self.work_dir.glob(".*"))

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is half written, or was when the process was killed."""
        return any(self.work_dir.glob(f".*.{self.process.pid}.tmp"))


@pytest.fixture(scope="module")
def start(tmp_path_factory, toy_coco) -> Iterator[Callable]:
    """Start a training of few small images that resumes if it can.

    The new process has the libraries imported: it is forked from a server, which has no threads.
    """
    folder = tmp_path_factory.mktemp("trainings")
    config = folder / "fault.py"
    config.write_text(
        f"_base_ = {str(NANO_CONFIG)!r}\n"
        "model = dict(backbone=dict(drop_path_rate=0.3))\n"
        "pipeline = _base_.train_pipeline\n"
        "pipeline[2].scale = (96, 96)\n"
        "train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,\n"
        "    sampler=dict(type='InfiniteSampler', _delete_=True), batch_sampler=None,\n"
        "    dataset=dict(pipeline=pipeline))\n"
        "val_dataloader = val_evaluator = val_cfg = None\n"
        f"train_cfg = dict(type='IterBasedTrainLoop', max_iters={ITERATIONS}, _delete_=True)\n"
        "default_hooks = dict(logger=dict(interval=1),\n"
        "    checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=2))\n"
        "randomness = dict(seed=0, deterministic=True)\n"
        "custom_hooks = [dict(type='EMAHook')]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mmdet.models", "mmdet.datasets", "test_faults"])

        def start(work_dir: Path, *options: str, largest_file: int | None = None) -> Training:
            log = folder / f"log{len(list(folder.iterdir()))}.txt"
            arguments = [str(config), "--work-dir", str(work_dir), "--resume"]
            arguments += ["--cfg-options", f"data_root={toy_coco}", *options]
            process = context.Process(target=run_train, args=(log, arguments, largest_file))
            process.start()
            return Training(process, work_dir, log)

        yield start


@pytest.fixture(scope="module")
def whole(tmp_path_factory, start) -> Path:
    """A work directory of a training that nothing interrupted.

    Its data are loaded in another process, which leaves other random numbers to the model.
    """
    training = start(tmp_path_factory.mktemp("whole"), "train_dataloader.num_workers=1")
    training.finish(0)
    return training.work_dir


def checkpoints(work_dir: Path) -> list[str]:
    """Names, from the oldest to the newest."""
    names = (path.name for path in work_dir.glob("iter_*.pth"))
    return sorted(names, key=lambda name: (len(name), name))


def assert_same_state(one: Path, other: Path) -> None:
    """Compare all weights, their averages and the state of the optimizer, to the last bit."""
    one, other = load_file(one), load_file(other)
    assert one["optimizer"]["state"]
    for kind in ("state_dict", "ema_state_dict", "optimizer"):
        torch.testing.assert_close(one[kind], other[kind], rtol=0, atol=0)


def kill_at_random(training: Training, kill: int, rng: random.Random) -> None:
    """Kill while a checkpoint is written, at any moment from the start, or after a checkpoint."""
    before = set(checkpoints(training.work_dir))

    def written() -> int:
        return len(set(checkpoints(training.work_dir)) - before)

    if kill % 2:
        training.wait_for(lambda: training.is_writing)
    else:
        least = 1 if kill % 4 == 0 else 0
        training.wait_for(lambda: written() >= least)
        moment = time.monotonic() + rng.uniform(0, 0.3 if least else 2)
        training.wait_for(lambda: time.monotonic() > moment or written() > least)
    os.kill(training.process.pid, signal.SIGKILL)
    training.finish(-signal.SIGKILL)


@pytest.mark.fault("disk, permissions, kills, two at once")
@pytest.mark.slow
def test_training_killed_again_and_again_ends_with_the_same_weights(whole, start, tmp_path):
    rng = random.Random(6)
    killed_while_writing = 0
    last = f"iter_{ITERATIONS}.pth"
    for kill in range(KILLS):
        before = checkpoints(tmp_path)
        training = start(tmp_path)
        kill_at_random(training, kill, rng)
        killed_while_writing += training.is_writing
        after = checkpoints(tmp_path)
        assert last not in after
        # What was there is there, or newer ones are; and all of it is whole.
        assert len(after) >= min(2, len(before))
        for name in after:
            load_file(tmp_path / name)
    assert killed_while_writing >= 2
    training = start(tmp_path)
    training.finish(0)
    assert f"Resuming from {tmp_path}/{after[-1]}" in training.said
    assert_same_state(tmp_path / last, whole / last)
    assert not list(tmp_path.glob(".*"))  # what the killed ones had begun to write


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_a_full_disk_leaves_the_checkpoints_that_were_there(whole, start, tmp_path):
    kept = {name: (whole / name).read_bytes() for name in checkpoints(whole)}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    training = start(tmp_path, f"train_cfg.max_iters={ITERATIONS + 1}", largest_file=2**20)
    new = tmp_path / f"iter_{ITERATIONS + 1}.pth"
    training.finish(1, f"error: {new} cannot be written: File too large")
    assert {name: (tmp_path / name).read_bytes() for name in checkpoints(tmp_path)} == kept


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_a_full_disk_ends_training_in_one_line_whatever_is_written(start, tmp_path):
    (tmp_path / "fault.py").symlink_to("/dev/full")  # where mmengine puts the config
    start(tmp_path).finish(1, f"error: {tmp_path} cannot be written: No space left on device")


ON_A_FULL_DISK = """
import logging, threading
from pathlib import Path
from crossformer_mm.utils.cli import full_disk_in_one_line, run

def main():
    logger = logging.Logger("full")
    logger.addHandler(logging.FileHandler("/dev/full"))
    logger.error("lost")
    thread = threading.Thread(target=lambda: Path("/dev/full").write_text("lost"))
    thread.start()
    thread.join()
    with full_disk_in_one_line("work"):
        Path("/dev/full").write_text("lost")

run(main)
"""


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_logs_and_threads_on_a_full_disk_give_no_tracebacks():
    job = subprocess.run([sys.executable, "-c", ON_A_FULL_DISK], capture_output=True, text=True)
    assert job.returncode == 1
    assert job.stderr == "error: work cannot be written: No space left on device\n"


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_an_interruption_ends_training_in_one_line(start, tmp_path):
    training = start(tmp_path, "train_dataloader.num_workers=1")
    training.wait_for(lambda: training.is_writing)
    os.kill(training.process.pid, signal.SIGINT)
    training.finish(130, "interrupted: --resume goes on from the last checkpoint")
    for name in checkpoints(tmp_path):
        load_file(tmp_path / name)


HOLD_LOCK = """
import sys
from crossformer_mm.engine.work_dir import only_training_in

with only_training_in(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_a_second_training_in_a_work_directory_stops_in_one_line(start, tmp_path, monkeypatch):
    command = [sys.executable, "-c", HOLD_LOCK, tmp_path]
    streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **streams) as first:
        assert first.stdout.readline() == "held\n"
        held = f"process {first.pid} on {platform.node()}"
        said = f"another training is running in {tmp_path} ({held}): give another --work-dir, or "
        said += "--cfg-options check_work_dir=False if both shall write there"
        start(tmp_path).finish(1, f"error: {said}")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["training.lock"]
        start(tmp_path, "check_work_dir=False", "train_cfg.max_iters=1").finish(0)
        first.kill()
    with only_training_in(tmp_path):  # what a killed one leaves does not stop another
        assert str(os.getpid()) in (tmp_path / "training.lock").read_text()


@pytest.mark.fault("disk, permissions, kills, two at once")
def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with only_training_in(tmp_path / "new"):
        said = capsys.readouterr()
    assert "cannot be locked (No locks available)" in said.out + said.err


@pytest.mark.fault("disk, permissions, kills, two at once")
@pytest.mark.parametrize("tool", ["train", "dist_run"])
def test_an_interruption_while_libraries_are_loaded_ends_without_a_traceback(tmp_path, tool):
    (tmp_path / "torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    (tmp_path / "mmengine.py").write_text("import torch")
    job = subprocess.run(
        [sys.executable, ROOT / f"tools/{tool}.py"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert (job.returncode, job.stderr) == (-signal.SIGINT, b"")


def test_outdated_checkpoints_go_once_the_next_is_written(tmp_path):
    old, new = tmp_path / "iter_1.pth", tmp_path / "iter_2.pth"
    backend = WholeFileBackend()
    backend.put(b"old", old)
    backend.remove(old)
    with pytest.raises(CheckpointError, match=f"{old}/new.pth cannot be written: "):
        WholeFileBackend().put(b"new", old / "new.pth")
    assert old.read_bytes() == b"old"
    (tmp_path / "other").mkdir()
    WholeFileBackend().put(b"another training's", tmp_path / "other/iter_1.pth")
    assert old.read_bytes() == b"old"
    WholeFileBackend().put(b"new", new)
    assert sorted(tmp_path.iterdir()) == [new, tmp_path / "other"]


class Dice(torch.utils.data.Dataset):
    """Throws three generators' dice for each sample."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple:
        thrown = random.getrandbits(32), int(np.random.randint(2**31)), int(torch.randint(9**9, ()))
        return int(index), *thrown


def throws(sampler: str, batches: int, workers: int = 0, skip: int = 0) -> list:
    """The samples of some batches, of two epochs if the sampler has epochs."""
    config = dict(dataset=Dice(), sampler=dict(type=sampler), num_workers=workers, batch_size=3)
    loader = CheckedRunner.build_dataloader(config, seed=5)
    if skip:
        loader.sampler.skip(skip)
    samples = []
    for epoch in range(2 if sampler == "DefaultSampler" else 1):
        loader.sampler.set_epoch(epoch)
        for _, batch in zip(range(batches), loader, strict=False):
            samples += zip(*batch, strict=True)
    return samples


@pytest.mark.parametrize("sampler", ["DefaultSampler", "InfiniteSampler"])
def test_random_numbers_of_a_sample_depend_on_its_place_only(monkeypatch, sampler):
    alone = throws(sampler, batches=4)
    assert len({sample[1] for sample in alone}) == len(alone) >= 12
    assert throws(sampler, batches=4, workers=2) == alone
    shares = []
    for rank in (0, 1):
        for module in ("crossformer_mm.engine.seeding", "mmengine.dataset.sampler"):
            monkeypatch.setattr(f"{module}.get_dist_info", lambda rank=rank: (rank, 2))
        shares.append(throws(sampler, batches=2))
    assert sorted(shares[0] + shares[1]) == sorted(alone)


@pytest.mark.skipif(
    not hasattr(InfiniteSampler, "skip"), reason="this mmengine loads all samples again"
)
def test_skipped_samples_keep_their_random_numbers():
    whole = throws("InfiniteSampler", batches=6)
    assert throws("InfiniteSampler", batches=2, skip=12) == whole[12:]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rest_of_an_epoch_has_the_samples_and_numbers_of_the_whole(workers):
    def train(iters_done: int) -> list[list]:
        config = dict(dataset=Dice(), sampler=dict(type="DefaultSampler"), batch_size=5)
        if workers:
            config.update(num_workers=workers, persistent_workers=True)
        loader = CheckedRunner.build_dataloader(config, seed=5)
        loop = ResumableEpochLoop(MagicMock(), loader, max_epochs=2)
        loop.iters_done, batches = iters_done, []
        loop.run_iter = lambda idx, batch: batches.append((idx, *batch))
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            loop.run_epoch()
        return batches

    whole = train(0)
    assert [number for number, *_ in whole] == [0, 1, 2] * 2
    for iters_done in (1, 3):
        assert train(iters_done) == whole[iters_done:]
