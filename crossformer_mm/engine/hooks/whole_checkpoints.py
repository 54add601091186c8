"""Checkpoints of a training: whole or not there, and none is removed before the next is whole.

mmengine writes to the final name, and removes an outdated checkpoint before it writes the next; a
training that is killed meanwhile, or a full disk, would leave a part of one, or none.
"""

import os
from pathlib import Path

from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from crossformer_mm.utils.errors import CheckpointError
from crossformer_mm.utils.io import replace_when_complete

BACKEND = "crossformer_mm_whole_files"


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
            with replace_when_complete(path) as temporary, temporary.open("xb") as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
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
            if not isinstance(hook, CheckpointHook):
                continue
            is_local = "://" not in str(hook.out_dir or runner.work_dir)
            if is_local and hook.backend_args is None and hook.file_client_args is None:
                hook.backend_args = dict(backend=BACKEND)

    def before_train(self, runner: Runner) -> None:
        """Clear away unfinished files."""
        _remove_unfinished(Path(runner.work_dir))


@master_only
def _remove_unfinished(work_dir: Path) -> None:
    for path in work_dir.glob(".*.pth.*.tmp"):
        path.unlink(missing_ok=True)
