"""One training at a time in a work directory: a lock on a file in it."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING
from pathlib import Path

from mmengine.logging import print_log

from crossformer_mm.utils.cli import fail


@contextmanager
def only_training_in(work_dir: str) -> Iterator[None]:
    """Hold a lock on ``training.lock`` for the time of the block, or until the process dies.

    Ends the program with one line if another process holds it. Where the file system knows no
    locks, a warning says so.
    """
    path = Path(work_dir, "training.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            # Data workers, which outlive a killed training by seconds, would keep one by flock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            fail(
                f"another training is running in {work_dir} ({file.read().strip()}): give another "
                "--work-dir, or --cfg-options check_work_dir=False if both shall write there"
            )
        except OSError as error:
            reason = f"{work_dir} cannot be locked ({error.strerror})"
            print_log(f"{reason}: nothing stops a second training there", "current", WARNING)
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield
