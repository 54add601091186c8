"""Note for the launcher of several processes why this one fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing.errors import get_error_handler


@contextmanager
def reason_for_launcher() -> Iterator[None]:
    """Write the reason where torchrun reads it, if torchrun has started this process."""
    try:
        yield
    except Exception as error:
        get_error_handler().record_exception(error)
        raise
    except SystemExit as error:
        if isinstance(error.code, str):
            get_error_handler().record_exception(error)
        raise
