"""The least time of a backbone: its products at the speed of products, its bytes at that of copies.

What is counted is in docs/performance.md.
"""

from functools import lru_cache

import torch
from torch import nn
from torch.utils.benchmark import Timer

from crossformer_mm.analysis import flops
from crossformer_mm.analysis.variants import DTYPES, Case
from crossformer_mm.engine.amp import has_bf16
from crossformer_mm.models import CrossFormer

VALUES_PER_CHANNEL = 22  # read and written per token and block
SIDE = 2048  # of the matrices that are multiplied
COPIED = 2**28  # bytes, more than a cache holds


@lru_cache
def measure_rates(threads: int) -> tuple[dict[str, float], float]:
    """Operations per second in float32, and in bf16 if the processor has it; bytes per second."""
    operations = {}
    for dtype in ("fp32", "bf16")[: 1 + has_bf16()]:
        left, right = torch.rand(2, SIDE, SIDE).to(DTYPES[dtype])
        seconds = _best("torch.mm(left, right)", threads, left=left, right=right)
        operations[dtype] = 2 * SIDE**3 / seconds
    source = torch.ones(COPIED // 4)
    seconds = _best("out.copy_(source)", threads, source=source, out=source.clone())
    return operations, 2 * COPIED / seconds


def _best(statement: str, threads: int, **names: torch.Tensor) -> float:
    timer = Timer(statement, globals=names, num_threads=threads)
    return min(timer.timeit(1).median for _ in range(5))


def count(case: Case) -> tuple[int, int]:
    """Multiply-adds of a case's backbone, and values that it reads and writes at least."""
    with torch.device("meta"):
        model = CrossFormer(**case.backbone).eval()
    found = flops.measure(nn.ModuleDict({"backbone": model}), case.shape)
    values = 0
    for stage, depth in enumerate(model.arch.depths):
        height, width = (-(-side // (4 * 2**stage)) for side in case.shape)
        values += VALUES_PER_CHANNEL * height * width * model.arch.channels(stage) * depth
    return case.batch * (found.flops - found.padding), case.batch * values


def describe(case: Case) -> list[str]:
    """A line on the floor of CrossFormer's inference on a CPU; of other cases, none."""
    if case.cfg is not None or (case.mode, case.device) != ("inference", "cpu"):
        return []
    products, values = count(case)
    (operations, bandwidth), texts = measure_rates(case.threads), []
    for dtype, rate in operations.items():
        size = values * DTYPES[dtype].itemsize
        texts.append(
            f"{dtype} {2e3 * products / rate:.1f} ms at {rate / 1e9:.0f} GFLOP/s, "
            f"{1e3 * size / bandwidth:.1f} ms for {size / 1e6:.0f} MB at "
            f"{bandwidth / 1e9:.1f} GB/s"
        )
    return [f"floor of CrossFormer, {2e-9 * products:.1f} GFLOP: {'; '.join(texts)}"]
