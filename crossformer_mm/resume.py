"""Find the checkpoint from which an interrupted training goes on."""

import re
import zipfile
from pathlib import Path

from mmengine.logging import print_log


def find_checkpoint_to_resume(work_dir: str | Path) -> Path | None:
    """Return the last complete ``epoch_N.pth`` or ``iter_N.pth`` of a work directory.

    A training that is killed while it writes leaves an incomplete file, or an empty
    ``last_checkpoint`` note; so the files themselves are looked at, newest first.
    """
    numbered = {
        int(found[1]): path
        for path in Path(work_dir).glob("*.pth")
        if (found := re.fullmatch(r"(?:epoch|iter)_(\d+)\.pth", path.name))
    }
    for number in sorted(numbered, reverse=True):
        path = numbered[number]
        # The table of contents stands at the end of the file, and is written last.
        if zipfile.is_zipfile(path):
            return path
        print_log(f"{path} is incomplete and is passed over", logger="current", level=30)
    return None
