"""End a program in one line when the disk is full."""

import errno
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_in_one_line(folder: str) -> Iterator[None]:
    """End the program with one line when a file cannot be written because the disk is full.

    Until something else fails, lines of log files and TensorBoard's curves, which a thread writes,
    are lost without a traceback on each.

    Args:
        folder: What the line names if the error names no file.
    """
    previous = logging.raiseExceptions, threading.excepthook

    def report(thread_error: threading.ExceptHookArgs) -> None:
        if not _is_full(thread_error.exc_value):
            previous[1](thread_error)

    logging.raiseExceptions, threading.excepthook = False, report
    is_full = False
    try:
        yield
    except OSError as error:
        is_full = _is_full(error)
        if is_full:
            what = f"{error.filename or folder} cannot be written: {error.strerror}"
            raise SystemExit(f"error: {what}") from None
        raise
    finally:
        if not is_full:  # else a thread may write once more while the program ends
            logging.raiseExceptions, threading.excepthook = previous


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in FULL
