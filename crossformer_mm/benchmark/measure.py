"""Measuring a case: all contenders in turn for time, then one by one for memory."""

import gc
from collections.abc import Callable, MutableMapping

import torch

from crossformer_mm.benchmark.case import Case, Contender
from crossformer_mm.benchmark.peak_memory import peak_in_child, peak_on_gpu
from crossformer_mm.benchmark.results import Result, add_ratios
from crossformer_mm.benchmark.timing import reason_of, synchronizer, time_in_turn
from crossformer_mm.benchmark.workload import prepare_step, prepare_warm_step

Step = Callable[[], object]


def measure(
    case: Case,
    with_memory: bool = True,
    prepare: Callable[[Case, Contender], Step] = prepare_step,
    prepare_in_child: Callable[[Case, Contender], Step] = prepare_warm_step,
    **timing_options: object,
) -> list[Result]:
    """Time the contenders of a case, measure their memory, and compare with the plain path.

    A contender that fails does not stop the others; its result says why.

    Args:
        case: What to measure.
        with_memory: Whether to measure memory too; on a CPU it takes a process per contender.
        prepare: Builds a contender and returns what runs it once.
        prepare_in_child: The same, called in the process that measures memory on a CPU.
        timing_options: More for :func:`time_in_turn`.
    """
    results = {contender: Result(case, contender) for contender in case.contenders}
    steps = _prepare_all(case, results, prepare)
    synchronize = synchronizer(case.device)
    timings = time_in_turn(steps, case.repeat, case.warmup, synchronize, **timing_options)
    for contender, reason in timings.failures.items():
        results[contender].problem = reason
    for contender, seconds in timings.seconds.items():
        results[contender].seconds = seconds
    if with_memory:
        _measure_memory(case, steps, results, prepare_in_child)
    steps.clear()
    _release(case)
    add_ratios(list(results.values()))
    return list(results.values())


def _release(case: Case) -> None:
    """Leave nothing behind that could disturb the next case."""
    gc.collect()
    if case.device == "cuda":
        torch.cuda.empty_cache()
    if any(contender.run == "compile" for contender in case.contenders):
        torch._dynamo.reset()


def _prepare_all(case: Case, results: dict[Contender, Result], prepare: Callable) -> dict:
    steps = {}
    for contender, result in results.items():
        try:
            steps[contender] = prepare(case, contender)
        except Exception as error:
            result.problem = reason_of(error)
    return steps


def _measure_memory(
    case: Case,
    steps: MutableMapping[Contender, Step],
    results: dict[Contender, Result],
    prepare_in_child: Callable,
) -> None:
    for contender in list(steps):
        step = steps.pop(contender)
        try:
            if hasattr(step, "peak_mb"):
                results[contender].peak_mb = step.peak_mb
            elif case.device == "cuda":
                results[contender].peak_mb = peak_on_gpu(step)
            else:
                del step  # the child needs the memory
                results[contender].peak_mb = peak_in_child(prepare_in_child, case, contender)
        except Exception as error:
            results[contender].problem = f"memory unknown: {reason_of(error)}"
