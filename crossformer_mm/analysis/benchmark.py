"""Time and peak memory of several variants of a model, side by side."""

import ctypes
import gc
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.benchmark import Measurement, Timer

from crossformer_mm.analysis.deployed import DeployedStep
from crossformer_mm.analysis.variants import DEPLOYED, Case, Step, Variant
from crossformer_mm.engine.amp import has_bf16
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE
from crossformer_mm.utils.errors import one_line

ROUND_SECONDS = 0.05  # a faster step runs several times in a round
MEGABYTE = 2**20
COLUMNS = (
    *("variant", "run", "median ms", "quartiles"),
    *("images/s", "vs eager", "quartiles", "peak MB"),
)


@dataclass
class Result:
    """What was measured of one variant in a case.

    Args:
        rounds: One measurement per round; fewer if it failed.
        ratios: For every round, the time of the case's baseline divided by this variant's: 2 is
            twice as fast.
        peak_mb: Peak memory of a step above what is held between steps, in MB (2^20 bytes).
        boxes: How many a detector finds, which its time depends on.
        problem: Why something is missing.
    """

    case: Case
    variant: Variant
    rounds: list[Measurement] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    boxes: int | None = None
    problem: str | None = None

    def as_dict(self) -> dict:
        """All of it for JSON; of ``ms`` and ``ratio_to_eager`` quartiles, the median second."""
        times = [1e3 * t for merged in Measurement.merge(self.rounds) for t in merged.times]
        return {
            "case": str(self.case),
            "variant": self.variant.name,
            "run": self.variant.run,
            "ms": _quartiles(times),
            "images_per_s": self.case.batch / float(np.median(times)) * 1e3 if times else None,
            "ratio_to_eager": _quartiles(self.ratios),
            "peak_mb": self.peak_mb,
            "boxes": self.boxes,
            "problem": self.problem,
            "rounds_ms": [1e3 * measurement.median for measurement in self.rounds],
        }


def measure(case: Case, with_memory: bool = True) -> list[Result]:
    """Measure the memory of every variant, then time all of them in rounds.

    In a round every variant is timed once: what disturbs the machine for a while disturbs all
    alike. PyTorch's ``Timer`` runs a step untimed before each measurement, and waits for the GPU.
    A variant that fails does not stop the others; its result says why.

    Args:
        case: What to measure.
        with_memory: Whether to measure memory too; on a CPU it takes a process per variant, and
            what is compiled or exported is left out.
    """
    gc.collect()  # what an earlier case has left
    torch.cuda.empty_cache()
    torch.compiler.reset()
    torch.set_num_threads(case.threads)
    results = [Result(case, variant) for variant in case.variants]
    timers: dict[Variant, Timer] = {}
    for result in results:
        with _noting_problem(result):
            run = result.variant.run
            if run.endswith("bf16") and not has_bf16():
                raise RuntimeError("this processor has no instructions for bfloat16")
            if with_memory and case.device == "cpu" and run in ("eager", "bf16"):
                result.peak_mb = peak_in_child(case, result.variant)
            step = (DeployedStep if run in DEPLOYED else Step)(case, result.variant)
            result.boxes = count_boxes(step())  # what happens once, such as compiling, is not timed
            if with_memory and case.device == "cuda":
                result.peak_mb = peak_on_gpu(step)
            timers[result.variant] = Timer(
                "step()", globals=dict(step=step), num_threads=case.threads
            )
    for result in results * case.repeat:
        if result.problem is None:
            with _noting_problem(result):
                measurement = timers[result.variant].blocked_autorange(min_run_time=ROUND_SECONDS)
                result.rounds.append(measurement)
    baseline = next((r.rounds for r in results if r.variant == case.baseline), ())
    for result in results:
        pairs = zip(baseline, result.rounds, strict=False)
        result.ratios = [eager.median / own.median for eager, own in pairs]
    return results


def count_boxes(outputs: Sequence | Mapping | None) -> int | None:
    """Boxes in what a library's detector or an exported one returns; None of other models."""
    if isinstance(outputs, Mapping):
        counts = outputs.get("counts", [len(outputs.get("boxes", ()))])
        return int(sum(counts)) if "boxes" in outputs else None
    found = [getattr(sample, "pred_instances", None) for sample in outputs or ()]
    return sum(map(len, found)) if found and None not in found else None


def describe_boxes(results: Sequence[Result]) -> list[str]:
    """A line on the boxes that each variant of a case has found, if it is a detector."""
    found = [f"{' '.join(r.variant)} {r.boxes}" for r in results if r.boxes is not None]
    return [f"boxes found: {', '.join(found)}"] if found else []


@contextmanager
def _noting_problem(result: Result) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        result.problem = one_line(f"{type(error).__name__}: {error}".splitlines()[0])


def peak_on_gpu(step: Step) -> float:
    """Megabytes that a step allocates on the GPU at its peak."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / MEGABYTE


def peak_in_child(case: Case, variant: Variant) -> float:
    """Megabytes by which a step raises the largest resident size of a fresh process.

    Raises:
        RuntimeError: If the process was killed.
    """
    # A child of this process would begin with its peak; one of the small fork server does not.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_growth, case, variant).result()
        except BrokenProcessPool as error:
            reason = "the process that measures memory was killed, perhaps for its memory"
            raise RuntimeError(f"{reason}; --no-memory does without it") from error


def _growth(case: Case, variant: Variant) -> float:
    import resource  # not on Windows

    logging.disable(logging.INFO)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc: give blocks of 64 KB and more back once they are freed
        libc.mallopt(-3, 2**16)
    torch.set_num_threads(case.threads)
    step = Step(case, variant)
    step(step.make_inputs((MIN_IMAGE_SIZE, MIN_IMAGE_SIZE), 1))  # loads code, which counts too
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return growth * (1 if sys.platform == "darwin" else 1024) / MEGABYTE


def _quartiles(values: Sequence[float]) -> list[float] | None:
    return np.percentile(values, (25, 50, 75)).tolist() if values else None


def format_table(results: Sequence[Result]) -> str:
    """The results of one case as aligned columns below its name, then what failed."""
    width = max(len("variant"), *(len(result.variant.name) for result in results))
    row = f"{{:<{width}}} {{:<13}} {{:>10}} {{:>19}} {{:>9}} {{:>9}} {{:>13}} {{:>8}}".format
    lines = [str(results[0].case), row(*COLUMNS)]
    lines += [row(*_row(result)) for result in results]
    return "\n".join(lines + [_problem(result) for result in results if result.problem])


def format_markdown(results: Sequence[Result], notes: Sequence[object] = ()) -> str:
    """The results of all cases as a table for the documentation; then notes, and what failed."""
    rows = [["case", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    rows += [[str(result.case), *_row(result)] for result in results]
    notes = [*notes, *[f"{r.case}, {_problem(r)}" for r in results if r.problem]]
    lines = [f"| {' | '.join(row)} |" for row in rows] + ["", *[f"- {note}" for note in notes]]
    return "\n".join(lines).rstrip() + "\n"


def _row(result: Result) -> list[str]:
    found = result.as_dict()
    speed, peak = _cells(found["images_per_s"], found["peak_mb"])
    times, ratios = (_cells(*(found[key] or [None] * 3)) for key in ("ms", "ratio_to_eager"))
    spreads = [f"{low} - {high}" if low != "-" else "-" for low, _, high in (times, ratios)]
    return [*result.variant, times[1], spreads[0], speed, ratios[1], spreads[1], peak]


def _problem(result: Result) -> str:
    return f"{result.variant.name} ({result.variant.run}): {result.problem}"


def _cells(*values: float | None) -> list[str]:
    return ["-" if value is None else f"{value:.2f}" for value in values]
