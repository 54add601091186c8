"""The end of one of several processes, whose group's threads Python's finalization would kill."""

import subprocess
import sys

import pytest

from crossformer_mm.utils.process_end import end_without_finalizing

# A thread of the group waits until Python finalizes, and goes on then. Without the block around it,
# this crashes.
JOINED = """
import atexit, sys, threading
import torch
from torch import distributed
from crossformer_mm.utils.process_end import end_without_finalizing

class ReleasesWhenFinalized:
    def __init__(self, lock):
        self.release, self.wait = lock.release, threading.Event().wait

    def __del__(self):
        self.release()
        self.wait(5)

def outlast_the_exchange(_):
    # Called in the main thread if the exchange is over already.
    if threading.get_ident() != threading.main_thread().ident:
        in_thread.set()
        until_finalized.acquire()

in_thread, until_finalized = threading.Event(), threading.Lock()
until_finalized.acquire()
sys.taken_apart_last = ReleasesWhenFinalized(until_finalized)
with end_without_finalizing():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    group = distributed.group.WORLD
    while not in_thread.is_set():
        exchange = distributed.all_reduce(torch.ones(1), async_op=True)
        exchange.get_future().then(outlast_the_exchange)
    atexit.register(sys.stdout.write, "functions of atexit")
    threading.Thread(target=sys.stdout.write, args=["threads, "]).start()
    {last}
"""


@pytest.mark.parametrize(
    ("last", "status", "last_error"),
    [
        ("pass", 0, ""),
        ("sys.exit(130)", 130, ""),
        ("sys.exit('error: no data')", 1, "error: no data"),
        ("raise ValueError('no data')", 1, "ValueError: no data"),
    ],
)
def test_a_process_of_a_group_ends_as_usual(last, status, last_error):
    command = [sys.executable, "-c", JOINED.replace("{last}", last)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == "threads, functions of atexit"
    assert ended.stderr.strip().endswith(last_error)
    assert ("Traceback" in ended.stderr) == ("raise" in last)


def test_without_a_group_nothing_ends():
    with end_without_finalizing():
        pass
    with pytest.raises(SystemExit, match="error: no data"), end_without_finalizing():
        sys.exit("error: no data")
