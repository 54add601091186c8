"""Timing several functions in turn, so that what disturbs the machine disturbs all alike."""

from collections.abc import Callable, Hashable, MutableMapping
from time import perf_counter
from typing import NamedTuple

import torch

REASON_LENGTH = 300


class Timings(NamedTuple):
    """Seconds of every repetition for what ran to the end, and why the rest did not."""

    seconds: dict[Hashable, list[float]]
    failures: dict[Hashable, str]


def time_in_turn(
    steps: MutableMapping[Hashable, Callable[[], object]],
    repeat: int,
    warmup: int,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> Timings:
    """Run every step once before any runs again; a step that fails is removed from ``steps``.

    Args:
        steps: What to run.
        repeat: Timed rounds.
        warmup: Rounds before them that do not count.
        synchronize: Waits until the device has done all its work; called around each step.
        clock: Tells the time in seconds.
    """
    seconds: dict = {key: [] for key in steps}
    failures = {}
    for index in range(-warmup, repeat):
        for key in list(steps):
            try:
                synchronize()
                start = clock()
                steps[key]()
                synchronize()
                duration = clock() - start
            except Exception as error:
                failures[key] = reason_of(error)
                del steps[key], seconds[key]
                continue
            if index >= 0:
                seconds[key].append(duration)
    return Timings(seconds, failures)


def synchronizer(device: str) -> Callable[[], object]:
    """What waits for a device: a CPU's work is done when a function returns."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def reason_of(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:REASON_LENGTH] if lines else type(error).__name__
