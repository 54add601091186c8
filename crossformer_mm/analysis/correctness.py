"""Whether attention is computed rightly on a device: compared with the formula in float64."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossformer_mm.analysis import flex
from crossformer_mm.analysis.variants import DTYPES
from crossformer_mm.models.attention import BACKENDS, eager
from crossformer_mm.models.grouping import GroupPlan
from crossformer_mm.utils.errors import one_line

TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
# Groups that fill the map, and long ones with padding
PLANS = (GroupPlan(14, 21, 7, 7, 1), GroupPlan(50, 77, 25, 39, 2))


class Check(NamedTuple):
    """``error`` is the largest of output and gradients, relative to their norm."""

    name: str
    dtype: str
    error: float
    verdict: str  # 'right', 'wrong', or why it could not run

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}: error {self.error:.1e}, {self.verdict}"


def check_attention(names: Sequence[str], device: str) -> list[Check]:
    """Run backends, or ``'flex'``, in every dtype, forwards and backwards."""
    return [_check(name, dtype, device) for dtype in DTYPES for name in names]


def _check(name: str, dtype: str, device: str) -> Check:
    try:
        errors = [_error(name, DTYPES[dtype], plan, device) for plan in PLANS]
    except Exception as problem:
        reason = one_line(f"{type(problem).__name__}: {problem}".splitlines()[0])
        return Check(name, dtype, float("nan"), reason)
    error = float(torch.tensor(errors).max())  # NaN if one is
    return Check(name, dtype, error, "right" if error <= TOLERANCE[dtype] else "wrong")


def _error(name: str, dtype: torch.dtype, plan: GroupPlan, device: str) -> float:
    torch.manual_seed(0)
    qkv, grad = (torch.randn(2, *plan[:2], c).to(device, dtype) for c in (192, 64))
    table = torch.randn(2 * plan.group_height - 1, 2 * plan.group_width - 1, 2).to(device)
    backend = flex if name == "flex" else BACKENDS[name]
    if reason := backend.can_run(grad, plan, 2):
        raise RuntimeError(reason)
    found = _differentiate(backend.attend, plan, qkv, table, grad)
    expected = _differentiate(eager.attend, plan, qkv.double(), table.double(), grad.double())
    errors = [(a - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(errors).max())


def _differentiate(attend: Callable, plan: GroupPlan, qkv, table, grad) -> list[Tensor]:
    inputs = [qkv.detach().requires_grad_(), table.detach().requires_grad_()]
    output = attend(*inputs, plan, 2)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]
