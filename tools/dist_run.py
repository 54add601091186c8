"""Start the processes of a training, as torchrun does, and end with one line on what went wrong."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the libraries load

import logging
import os

from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run


def describe_first_failure(error: ChildFailedError) -> str:
    """Say which process failed first, and why; the others fail because they miss it."""
    rank, failure = min(error.failures.items(), key=lambda item: _order(item[1]))
    return f"process {rank} failed first: {_reason(failure)}"


def _order(failure: ProcessFailure) -> float:
    """Killed ones come first, for they cannot note it; then by the time of the note."""
    if isinstance(failure.message, dict):
        return os.path.getmtime(failure.error_file)
    return float("inf") if failure.signal_name() in ("SIGTERM", "<N/A>") else 0.0


def _reason(failure: ProcessFailure) -> str:
    if isinstance(failure.message, dict):
        lines = failure.message["message"].removeprefix("SystemExit: error: ").splitlines()
        # The traceback of a data loader's worker has the reason at its end.
        return lines[-1 if any("Traceback" in line for line in lines) else 0]
    if failure.exitcode < 0:
        return f"killed by {failure.signal_name()}"
    return f"exit status {failure.exitcode}, for what it says above"


def note_statuses() -> set[int]:
    """Return a set that gets the exit statuses of the processes that the launcher ends."""
    statuses: set[int] = set()
    close = SubprocessContext._close

    def close_and_note(self: SubprocessContext, *args: object, **kwargs: object) -> None:
        close(self, *args, **kwargs)
        statuses.update(handler.proc.returncode for handler in self.subprocess_handlers.values())

    SubprocessContext._close = close_and_note
    return statuses


if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    statuses = note_statuses()
    try:
        run(parse_args(None))
    except ChildFailedError as error:
        if all(failure.exitcode == os.EX_TEMPFAIL for failure in error.failures.values()):
            raise SystemExit(os.EX_TEMPFAIL) from None  # of a training that was told to stop
        raise SystemExit(f"error: {describe_first_failure(error)}") from None
    except SignalException as error:
        # Killed by Ctrl-C, or by a terminal or scheduler; its processes have ended.
        may_go_on = os.EX_TEMPFAIL in statuses
        raise SystemExit(os.EX_TEMPFAIL if may_go_on else 128 + error.sigval) from None
