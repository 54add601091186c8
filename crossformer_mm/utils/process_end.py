"""End one of several processes of a training before Python takes itself apart."""

import atexit
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed


@contextmanager
def end_without_finalizing() -> Iterator[None]:
    """End the program after the block, if it has joined a process group; otherwise do nothing.

    The group's threads let go of tensors a moment after an exchange has returned. A thread that
    does so while Python finalizes is stopped by force, and the C++ around it aborts the process:
    a training that has succeeded would end as failed. ``destroy_process_group`` waits for these
    threads only where nothing else, such as a model, refers to the group.

    Threads that are not daemons are waited for, functions of :mod:`atexit` run, output is flushed,
    and the exit status is as usual.
    """
    try:
        yield
    except BaseException as error:
        if not _in_a_group():
            raise
        _end(_exit_status(error))
    if _in_a_group():
        distributed.destroy_process_group()
        _end(0)


def _in_a_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _exit_status(error: BaseException) -> int:
    """Report an error as Python does at the end of a program; return the exit status."""
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _end(status: int) -> None:
    # What Python does before it finalizes, in its order.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
