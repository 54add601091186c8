"""What was measured, its medians, and its ratios to the plain path."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from crossformer_mm.benchmark.case import BASELINE, Case, Contender

# Less is lost in what a process needs besides tensors.
SMALLEST_COMPARED_MB = 5


@dataclass
class Result:
    """One contender in one case.

    Args:
        case: What was measured.
        contender: The model, and how it was run.
        seconds: One number per repetition; none if it failed, or if only memory was measured.
        peak_mb: Peak memory of a repetition above what is held between them, in MB (2^20 bytes).
        problem: Why something is missing.
        title: A name of the case, if it is not its own.
        speed_ratios: For every round, the plain path's time divided by this one's.
        memory_vs_plain: Its peak divided by the plain path's.
    """

    case: Case
    contender: Contender
    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    problem: str | None = None
    title: str | None = None
    speed_ratios: list[float] = field(default_factory=list)
    memory_vs_plain: float | None = None

    @property
    def median(self) -> float | None:
        """Median time of a repetition in seconds."""
        return _quartile(self.seconds, 2)

    @property
    def speed_vs_plain(self) -> float | None:
        """How many times as fast as the plain path: the median over the rounds."""
        return _quartile(self.speed_ratios, 2)

    def as_row(self) -> dict:
        """Flat, for a table: times in milliseconds, what is unknown is None."""
        seconds = self.seconds
        times = {
            "median_ms": self.median,
            "q1_ms": _quartile(seconds, 1),
            "q3_ms": _quartile(seconds, 3),
            "min_ms": min(seconds, default=None),
            "max_ms": max(seconds, default=None),
        }
        case = self.case
        return {
            "case": self.title or case.name,
            "contender": self.contender.model,
            "run": self.contender.run,
            "mode": case.mode,
            "dtype": case.dtype,
            "device": case.device,
            "height": case.shape[0],
            "width": case.shape[1],
            "batch": case.batch,
            **{name: None if value is None else value * 1e3 for name, value in times.items()},
            "images_per_s": case.batch / self.median if seconds else None,
            "peak_mb": self.peak_mb,
            "speed_vs_plain": self.speed_vs_plain,
            "speed_q1": _quartile(self.speed_ratios, 1),
            "speed_q3": _quartile(self.speed_ratios, 3),
            "memory_vs_plain": self.memory_vs_plain,
            "repetitions": len(seconds),
            "problem": self.problem,
        }


def _quartile(values: Sequence[float], which: int) -> float | None:
    """First, second (the median) or third quartile; None if there are no values."""
    return float(np.percentile(values, 25 * which)) if values else None


def add_ratios(results: Sequence[Result]) -> None:
    """Compare the results of one case with the plain path run in the same way.

    Times are compared round by round: what slows the machine down for a while slows down both.
    Peaks of a few megabytes are not compared.
    """
    plain = {r.contender.run: r for r in results if r.contender.model == BASELINE}
    for result in results:
        baseline = plain.get(result.contender.run)
        if baseline is None:
            continue
        if baseline.seconds and result.seconds:
            pairs = zip(baseline.seconds, result.seconds, strict=True)
            result.speed_ratios = [of_plain / own for of_plain, own in pairs]
        peaks = (baseline.peak_mb, result.peak_mb)
        if all(peak is not None and peak >= SMALLEST_COMPARED_MB for peak in peaks):
            result.memory_vs_plain = result.peak_mb / baseline.peak_mb
