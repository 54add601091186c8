"""End a training within the time that a scheduler grants, with a checkpoint to go on from."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, get_rank
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from crossformer_mm.engine.hooks.whole_checkpoints import BACKEND, STOPPED
from crossformer_mm.utils.io import atomic_write

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # Kubernetes' and Slurm's; sbatch --signal=USR1@60


class StopSignalHook(Hook):
    """Saves ``stopped.pth`` after the iteration in which a signal came; the exit status is 75.

    One process that got the signal is enough. During validation it must be process 0, since the
    processes may have other numbers of iterations there.
    """

    priority = "LOWEST"  # after the hooks that change weights, rates and averages

    def __init__(self) -> None:
        self.received = ""

    def before_train(self, runner: Runner) -> None:
        """Note signals from here on."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def after_train(self, runner: Runner) -> None:
        """Leave the process to signals again: there is nothing to save any more."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def _note(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number).name

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Save and end, on all processes, if one of them got a signal."""
        is_told = torch.tensor(int(bool(self.received)))
        all_reduce(is_told, op="max")
        if is_told:
            self._save(runner, epoch=runner.epoch, iter=runner.iter + 1)
            barrier()  # a launcher ends all processes once one has ended
            raise SystemExit(os.EX_TEMPFAIL)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Save and end; the weights are as they were before the validation."""
        if self.received and get_rank() == 0:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # the averages leave the model
            self._save(runner, epoch=runner.epoch, iter=runner.iter)
            raise SystemExit(os.EX_TEMPFAIL)

    def _save(self, runner: Runner, **place: int) -> None:
        backend = dict(backend=BACKEND)
        runner.save_checkpoint(runner.work_dir, STOPPED, meta=place, backend_args=backend)
        if get_rank() == 0:
            path = Path(runner.work_dir, STOPPED)
            with atomic_write(path.with_name("last_checkpoint")) as note:
                note.write_text(str(path))
            by = self.received or "a signal to another process"
            said = f"stopped by {by}: {path} is written, and --resume goes on from it"
            print(said, file=sys.stderr, flush=True)


def spare_worker(initialize: Callable[[int], None] | None, worker: int) -> None:
    """Have a data worker end by a signal of its own process only, not by one to the whole job."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initialize is not None:
        initialize(worker)


def _end_with_parent() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
