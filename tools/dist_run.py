"""Start the processes of a training, as torchrun does, and end without a traceback."""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    except SignalException as error:
        # Killed by Ctrl-C, or by a terminal or scheduler; its processes have ended.
        raise SystemExit(128 + error.sigval) from None
