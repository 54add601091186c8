"""How every tool starts and ends: arguments, errors in one line, Ctrl-C, a full disk."""

import atexit
import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from crossformer_mm.utils.errors import mask_secrets, printable, reason_of


class OneLineParser(ArgumentParser):
    """A parser that leaves the usage out of its error messages."""

    def error(self, message: str) -> NoReturn:
        """End the program with exit status 2 and one line."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def fail(message: str) -> NoReturn:
    """End the program with exit status 1 and one line on the error stream."""
    raise SystemExit(f"error: {printable(mask_secrets(message))}")


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines that may hold names of files; what a terminal would act on is escaped."""
    for line in lines:
        print(printable(mask_secrets(line)), file=file, flush=True)


def warn(message: str) -> None:
    """Print one line on the error stream, of one process of several."""
    if os.environ.get("RANK", "0") == "0":
        say(f"warning: {message}", file=sys.stderr)


@contextmanager
def errors_in_one_line(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with one line at an error of one of these kinds."""
    try:
        yield
    except kinds as error:
        # One from a process that loads data has that process's traceback before it.
        fail(reason_of(error).rpartition(f"{type(error).__name__}: ")[2].strip())


@contextmanager
def full_disk_in_one_line(folder: str) -> Iterator[None]:
    """End the program with one line at a full disk, which names the file, or else the folder."""
    try:
        yield
    except OSError as error:
        if not _is_full_disk(error):
            raise
        fail(f"{error.filename or folder} cannot be written: {error.strerror}")


def _is_full_disk(error: BaseException | None) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(main: Callable[[], None], advice: str = "") -> NoReturn:
    """Run a program to its end: exit status 0, or one line and another status.

    Ctrl-C gives ``interrupted: ADVICE`` and status 130; errors that no block above turns into a
    line get their traceback. torchrun learns why its process failed.
    """

    def interrupt(*_: object) -> None:
        # A launcher passes on the signal that the terminal has sent already.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    _mute_what_follows_a_failure()
    status = 0
    try:
        main()
    except BaseException as error:
        # After an interruption, a process that misses another one makes any error.
        is_interrupted = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        if is_interrupted or isinstance(error, KeyboardInterrupt):
            status = 128 + signal.SIGINT
            if os.environ.get("RANK", "0") == "0":
                print(f"interrupted{advice and ': ' + advice}", file=sys.stderr, flush=True)
        else:
            status = _report(error)
    _end(status)


def _report(error: BaseException) -> int:
    """Print an error as Python does, note it for torchrun, and return the exit status."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return error.code or 0
    get_error_handler().record_exception(error)
    if isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        sys.excepthook(type(error), error, error.__traceback__)
    return 1


def _mute_what_follows_a_failure() -> None:
    """Keep quiet about what a full disk or the end of the main process makes elsewhere fail."""
    logging.raiseExceptions = False  # each line of a log file that cannot be written
    thread_hook, main_hook = threading.excepthook, sys.excepthook

    def report_thread(failure: threading.ExceptHookArgs) -> None:
        if not _is_full_disk(failure.exc_value):  # TensorBoard's curves are written by a thread
            thread_hook(failure)

    def report_main(kind: type[BaseException], error: BaseException, trace: object) -> None:
        is_worker = multiprocessing.parent_process() is not None
        if not (is_worker and isinstance(error, (ConnectionError, EOFError))):
            main_hook(kind, error, trace)

    threading.excepthook, sys.excepthook = report_thread, report_main


def _end(status: int) -> NoReturn:
    """End the program; without Python's finalization if it has joined a process group.

    The group's threads let go of tensors a moment after an exchange has returned. A thread that
    does so while Python finalizes is stopped by force, and the C++ around it aborts the process.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        sys.exit(status)
    if status == 0:
        distributed.destroy_process_group()
    # What Python does before it finalizes, in its order.
    for step in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        step()
    os._exit(status)
