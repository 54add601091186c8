"""Find the checkpoint from which an interrupted training goes on."""

import logging
import re
from pathlib import Path

from mmengine.logging import print_log

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.utils.errors import CheckpointError, UnsafeCheckpointError


def find_checkpoint_to_resume(work_dir: str | Path) -> Path | None:
    """Return the last complete ``epoch_N.pth`` or ``iter_N.pth`` of a work directory.

    A machine that fails, or mmengine itself if it is killed while it writes, leaves an incomplete
    file, or an empty ``last_checkpoint`` note; so the files themselves are read, newest first,
    with a warning on each that is cut off or damaged.
    """
    numbered = {
        int(found[1]): path
        for path in Path(work_dir).glob("*.pth")
        if (found := re.fullmatch(r"(?:epoch|iter)_(\d+)\.pth", path.name))
    }
    for _, path in sorted(numbered.items(), reverse=True):
        try:
            load_file(path, "meta")
        except UnsafeCheckpointError:
            pass  # refused, with the reason, when it is loaded
        except CheckpointError as error:
            print_log(f"{error}: it is passed over", logger="current", level=logging.WARNING)
            continue
        return path
    return None
