"""Checkpoints of a training: whole or not there, and none is removed before the next is whole.

mmengine alone, if it is killed or the disk is full, would leave a part of one, or none; its note
``last_checkpoint`` may be empty. So what to resume from is found by reading the files.
"""

import logging
import re
from contextlib import suppress
from pathlib import Path

from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.utils.errors import CheckpointError, UnsafeCheckpointError
from crossformer_mm.utils.io import atomic_write

BACKEND = "crossformer_mm_whole_files"
STOPPED = "stopped.pth"  # of a training that was told to end


@register_backend(BACKEND, force=True)
class WholeFileBackend(LocalBackend):
    """Writes files whole or not at all; removes outdated ones once the next is written."""

    # By folder, since mmengine makes an object for each file, and trainings have their own folders.
    _outdated: dict[Path, set[Path]] = {}

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, then remove those whose removal was asked for.

        Raises:
            CheckpointError: If it cannot be written, as on a full disk. What was there stays.
        """
        path = Path(filepath)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("xb") as file:
                file.write(obj)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
        for outdated in self._outdated.pop(path.parent, set()) - {path}:
            outdated.unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        """Note that a file is outdated: it goes when the next one is in its folder."""
        path = Path(filepath)
        self._outdated.setdefault(path.parent, set()).add(path)


class WholeCheckpointsHook(Hook):
    """Have the checkpoint hooks write whole files, and clear away what a killed training left."""

    def before_run(self, runner: Runner) -> None:
        """Choose the backend, unless the config does or the folder is not a local one."""
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                is_local = "://" not in str(hook.out_dir or runner.work_dir)
                if is_local and hook.backend_args is None and hook.file_client_args is None:
                    hook.backend_args = dict(backend=BACKEND)

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Clear away unfinished files."""
        for path in Path(runner.work_dir).glob(".*.pth.*.tmp"):
            path.unlink(missing_ok=True)


def find_checkpoint_to_resume(work_dir: str | Path) -> Path | None:
    """Return the last complete checkpoint of the training that wrote to a work directory last.

    That is the one that the note ``last_checkpoint`` names, unless one was written after the note,
    by a training that was killed then. A warning names each that is cut off or damaged.
    """
    for path in _by_time(Path(work_dir)):
        try:
            load_file(path, "meta")
        except UnsafeCheckpointError:
            pass  # refused, with the reason, when it is loaded
        except CheckpointError as error:
            print_log(f"{error}: it is passed over", logger="current", level=logging.WARNING)
            continue
        return path
    return None


def _by_time(work_dir: Path) -> list[Path]:
    """The checkpoints from the last to the first; the noted one is as new as the note."""
    ages = {}
    for path in work_dir.glob("*.pth"):
        if path.name == STOPPED or re.fullmatch(r"(epoch|iter)_\d+\.pth", path.name):
            with suppress(FileNotFoundError):
                ages[path] = path.stat().st_mtime_ns, int("0" + re.sub(r"\D", "", path.name))
    with suppress(OSError, UnicodeDecodeError):
        note = work_dir / "last_checkpoint"
        noted = work_dir / Path(note.read_text().strip()).name  # the folder may have been moved
        if noted in ages:
            ages[noted] = max(note.stat().st_mtime_ns, ages[noted][0]), 0
    return sorted(ages, key=ages.__getitem__, reverse=True)
