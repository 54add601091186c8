"""End a program that is interrupted with Ctrl-C in one line."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = 128 + signal.SIGINT


@contextmanager
def interruption_in_one_line(advice: str = "") -> Iterator[None]:
    """End the program with exit status 130 and one line if it is interrupted meanwhile.

    Of several processes the first one writes the line.

    Args:
        advice: What the line says after ``interrupted``.
    """
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        # A launcher passes on the signal that the terminal has sent already.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        with _workers_that_end_quietly():
            yield
    except BaseException as error:
        # Another process of the training that ended first makes other errors.
        if not (interrupted or isinstance(error, KeyboardInterrupt)):
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"interrupted{advice and ': ' + advice}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STATUS) from None
    finally:
        if not interrupted:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def _workers_that_end_quietly() -> Iterator[None]:
    """Have data workers, forked meanwhile, not complain that the process they serve has ended."""
    previous = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: object) -> None:
        is_worker = multiprocessing.parent_process() is not None
        if not (is_worker and isinstance(error, (ConnectionError, EOFError))):
            previous(kind, error, trace)

    sys.excepthook = report
    try:
        yield
    finally:
        if sys.excepthook is report:  # torch puts its own around it, with the number of the process
            sys.excepthook = previous
