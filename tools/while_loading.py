"""End a tool in one line if it is interrupted while it loads its libraries, which takes seconds.

A module of the package could do it only once they are loaded.
"""

import os
import signal
import sys


def end_if_interrupted() -> None:
    """From now on Ctrl-C ends the program with exit status 130; of several processes one says so.

    ``crossformer_mm/utils/interruption.py`` takes over once there is something to clear away.
    """
    signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
    if os.environ.get("RANK", "0") == "0":
        print("interrupted", file=sys.stderr, flush=True)
    # An exception would pass through other programs' code, which may catch it.
    os._exit(128 + signal.SIGINT)
