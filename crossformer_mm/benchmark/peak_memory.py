"""Peak memory of one repetition, above what is held between repetitions.

On a GPU PyTorch's allocator knows it. On a CPU it is the growth of the process's largest resident
size, which only a process that did nothing larger before can show: a fresh child process.
"""

import gc
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

MEGABYTE = 2**20
_PROC = Path("/proc/self")
_END_ME_FIRST = "1000"  # what oom_score_adj takes to spare the other processes
_RESET_PEAK = "5"  # what clear_refs takes to set VmHWM to VmRSS
# glibc then gives every larger block back to the system as soon as it is freed, so that the
# resident size follows the tensors.
_RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# The children are forked from a process that has done nothing but import this.
_PRELOADED = ["crossformer_mm.benchmark.workload"]


class MemoryUnknownError(RuntimeError):
    """The peak memory could not be measured; the message says why."""


def peak_on_gpu(step: Callable[[], object]) -> float:
    """Megabytes that a step allocates on the GPU at its peak."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MEGABYTE


def peak_in_child(prepare: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """Megabytes by which a step raises the resident size of a fresh process.

    Args:
        prepare: Function of a module; called in the child, it returns the step.
        arguments: What it is called with.

    Raises:
        MemoryUnknownError: If the system does not tell, or the child was killed.
    """
    _check_proc()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with _environment(_RETURN_FREED_MEMORY), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_measure_growth, prepare, arguments).result()
        except BrokenProcessPool as error:
            raise MemoryUnknownError("the process was killed, perhaps for its memory") from error


def _check_proc() -> None:
    if not (_PROC / "status").is_file():
        raise MemoryUnknownError("this system has no /proc/self/status to read it from")


def _measure_growth(prepare: Callable, arguments: tuple) -> float:
    with suppress(OSError):
        (_PROC / "oom_score_adj").write_text(_END_ME_FIRST)
    step = prepare(*arguments)
    gc.collect()
    with suppress(OSError):  # not permitted everywhere
        (_PROC / "clear_refs").write_text(_RESET_PEAK)
    before, peak_so_far = _read_megabytes("VmRSS"), _read_megabytes("VmHWM")
    step()
    peak = _read_megabytes("VmHWM")
    was_reset = peak_so_far - before < 1
    if not was_reset and peak <= peak_so_far:
        raise MemoryUnknownError("the warm-up took more, and this system does not forget its peak")
    return peak - before


def _read_megabytes(name: str) -> float:
    """Resident size of this process, now (VmRSS) or at its peak (VmHWM)."""
    found = re.search(rf"^{name}:\s+(\d+) kB", (_PROC / "status").read_text(), re.MULTILINE)
    if found is None:
        raise MemoryUnknownError(f"/proc/self/status does not say {name}")
    return int(found[1]) / 1024


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
