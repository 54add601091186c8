"""The fused operator against the plain formula: on a GPU, and without one by Triton's interpreter.

The interpreter has to be chosen before Triton is imported, and would then replace the GPU for every
later test. So it runs in a process of its own: this file as a script, which prints a line of JSON
for each check. The interpreter of Triton 3.6 cannot multiply bfloat16 matrices; that is left to the
tests with a GPU.
"""

import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from crossformer_mm.models.attention import eager, triton
from crossformer_mm.models.grouping import GroupPlan

has_operator = hasattr(torch.library, "custom_op") and find_spec("triton") is not None
can_interpret = pytest.mark.skipif(not has_operator, reason="needs Triton and torch 2.4 or later")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# Shared memory that a block may have on each chip, by compute capability
SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# Bytes of registers, per thread, that Triton 3.6 stores in memory, where there are any
MOST_SPILLED = {
    ("_backward_kernel", 80, 32, torch.float32): 16,
    ("_backward_kernel", 80, 64, torch.float32): 20,
}
SPILLS = re.compile(r"properties for (\w+)\s.* stack frame, (\d+) bytes spill stores")
TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma|tcgen05\.mma)\.\S+?\.(f32\.\S+)")


class Case(NamedTuple):
    batch: int
    plan: GroupPlan
    heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        sizes = "{}x{} groups {}x{} by {}".format(*self.plan)
        return f"{self.batch}x{sizes}, {self.heads}x{self.head_dim}, {self.dtype}"


CASES = [
    Case(1, GroupPlan(3, 4, 1, 1, 2), 2, 16),  # groups of one token
    Case(2, GroupPlan(8, 9, 4, 4, 2), 2, 32),
    Case(2, GroupPlan(9, 10, 7, 7, 1), 3, 32),
    Case(1, GroupPlan(8, 8, 8, 8, 1), 1, 64),  # exactly two blocks
    Case(1, GroupPlan(13, 5, 13, 5, 1), 1, 32),  # one token more
    Case(1, GroupPlan(12, 13, 9, 9, 1), 1, 16),  # a long group, and ragged ones beside it
    Case(1, GroupPlan(5, 12, 12, 12, 1), 2, 64),  # mostly padding
    Case(1, GroupPlan(1, 9, 2, 3, 9), 1, 16),  # groups wider than the map, and one token each
]
SHORT, LONG = (CASES[i]._replace(dtype=torch.float16) for i in (2, 5))
LARGE_CASES = [
    Case(2, GroupPlan(200, 320, 25, 40, 8), 3, 32),  # 1000 tokens: a detector's first stage
    Case(1, GroupPlan(64, 64, 64, 64, 1), 2, 32),  # 4096 tokens
    Case(1, GroupPlan(64, 63, 64, 64, 1), 8, 16),  # more pairs than the workspace holds
    Case(4, GroupPlan(56, 56, 7, 7, 8), 3, 32),
    Case(3, GroupPlan(50, 77, 14, 14, 3), 6, 64),
]


def surrounded_by_nan(x: Tensor) -> Tensor:
    """A contiguous copy of ``x`` in the middle of a buffer that is NaN elsewhere."""
    margin = 4096
    buffer = x.new_full((x.numel() + 2 * margin,), float("nan"))
    return buffer[margin:-margin].view_as(x).copy_(x)


def relative_error(value: Tensor, expected: Tensor) -> float:
    error = (value.double() - expected).norm()
    # The softmax of one token has no gradient: what is rounding there, is not relative to it.
    return float(error / expected.norm()) if expected.norm() > 1e-9 else float(error)


def inputs_of(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    plan, channels = case.plan, case.heads * case.head_dim
    shape = (case.batch, plan.height, plan.width)
    table = torch.randn(2 * plan.group_height - 1, 2 * plan.group_width - 1, case.heads)
    qkv, grad = torch.randn(*shape, 3 * channels), torch.randn(*shape, channels)
    tensors = (qkv.to(case.dtype), table, grad.to(case.dtype))
    return tuple(surrounded_by_nan(tensor.to(device)) for tensor in tensors)


def differentiate(attend, case: Case, qkv: Tensor, table: Tensor, grad: Tensor) -> list[Tensor]:
    """The output and the gradients of qkv and table."""
    qkv, table = qkv.detach().requires_grad_(), table.detach().requires_grad_()
    output = attend(qkv, table, case.plan, case.heads)
    return [output.detach(), *torch.autograd.grad(output, (qkv, table), grad)]


def check_case(case: Case, device: str = "cpu") -> None:
    """The fused operator gives what the formula does, and the same in every run."""
    qkv, table, grad = inputs_of(case, device)
    # Fills what torch.empty returns with NaN, so that what the kernels leave out shows.
    torch.use_deterministic_algorithms(True)
    first, second = (differentiate(triton.attend, case, qkv, table, grad) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    expected = differentiate(eager.attend, case, qkv.double(), table.double(), grad.double())
    assert [x.dtype for x in first] == [case.dtype, case.dtype, torch.float32]
    for name, a, b, c in zip(("output", "d qkv", "d table"), first, second, expected, strict=True):
        assert a.shape == c.shape, name
        assert relative_error(a, c) < TOLERANCE[case.dtype], name
        assert torch.equal(a, b), f"{name} differs between two runs"


def check_registration() -> None:
    """Schemas, fake implementations and autograd, as PyTorch's own checks see them."""
    qkv, table, grad = inputs_of(CASES[3], "cpu")
    settings = (*CASES[3].plan[2:5], CASES[3].heads)
    output, logsumexp = triton.grouped_attention(qkv, table, *settings)
    saved = (grad, qkv.detach(), table.detach(), output, logsumexp, *settings)
    inputs = (qkv.requires_grad_(), table.requires_grad_(), *settings)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.grouped_attention, inputs, test_utils=checks)
    torch.library.opcheck(triton.grouped_attention_backward, saved, test_utils=checks)


def check_compilation(device: str = "cpu", backend: str = "aot_eager") -> None:
    """Compile once, without a graph break, for maps of several sizes."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend(backend)

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def attend(qkv: Tensor, table: Tensor) -> Tensor:
        plan = GroupPlan(*qkv.shape[1:3], 4, 4, 2)
        return triton.attend(qkv, table, plan, 2).square().sum()

    for height, width in ((9, 12), (10, 7)):
        case = Case(2, GroupPlan(height, width, 4, 4, 2), 2, 16)
        qkv, table, _ = inputs_of(case, device)
        loss = attend(qkv.requires_grad_(), table.requires_grad_())
        (grad,) = torch.autograd.grad(loss, qkv)
        output = eager.attend(qkv, table, case.plan, case.heads)
        (expected,) = torch.autograd.grad(output.square().sum(), qkv)
        assert relative_error(grad, expected.double()) < 1e-5
    assert counter.frame_count == 1


def check_small_workspace() -> None:
    """Take the queries of long groups, and slices of short ones, a few at a time."""
    from crossformer_mm.models.attention import triton_kernels

    with patch.object(triton_kernels, "WORKSPACE_BYTES", 10_000):
        check_case(SHORT)
        check_case(LONG)


def check_second_derivatives() -> None:
    """They are those of the formula."""
    qkv, table, grad = inputs_of(CASES[1], "cpu")

    def second(attend) -> tuple[Tensor, ...]:
        inputs = [qkv.detach().requires_grad_(), table.detach().requires_grad_()]
        output = attend(*inputs, CASES[1].plan, CASES[1].heads)
        first = torch.autograd.grad(output, inputs, grad, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    for found, expected in zip(second(triton.attend), second(eager.attend), strict=True):
        assert relative_error(found, expected.double()) < 1e-4


CHECKS = {
    "second derivatives": check_second_derivatives,
    "small workspace": check_small_workspace,
    "registration": check_registration,
    "compilation": check_compilation,
    **{str(case): partial(check_case, case) for case in [*CASES, SHORT, LONG]},
}


@pytest.fixture(scope="module")
def interpreted(run_tool) -> dict[str, str]:
    """What failed of every check, computed by Triton's interpreter on the CPU."""
    result = run_tool(sys.executable, __file__, TRITON_INTERPRET="1", PYTHONPATH=str(ROOT))
    lines = [line for line in result.stdout.splitlines() if line.startswith('{"check"')]
    return {entry["check"]: entry["failure"] for entry in map(json.loads, lines)}


@can_interpret
@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(interpreted, check):
    assert interpreted[check] == ""


@pytest.fixture
def compile_for(monkeypatch, tmp_path, capsys) -> Callable:
    """Compile for a chip what the launchers would run on it, from tensors on the CPU.

    So types, alignment and options of the compiler are those of a launch, not another list of them.
    """
    pytest.importorskip("triton", "3.6", reason="needs the compiler of Triton 3.6 or later")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, jit

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")  # the one place that tells of spills
    launch, kernels = jit.JITFunction.run, {}

    def compile_only(kernel, *args, warmup, **kwargs):
        compiled = launch(kernel, *args, warmup=True, **kwargs)
        kernels.setdefault(compiled.name, set()).add(compiled)

    def compile_for(chip: int, cases: Sequence[Case]) -> tuple[dict[str, set], dict[str, int]]:
        gpu = SimpleNamespace(
            get_current_device=lambda: tmp_path,  # a new one: nothing is compiled for it yet
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", chip, 32),
        )
        monkeypatch.setattr(driver, "_active", gpu)
        monkeypatch.setattr(jit.JITFunction, "run", compile_only)
        for case in cases:
            differentiate(triton.attend, case, *inputs_of(case, "cpu"))
        return kernels, {name: int(n) for name, n in SPILLS.findall(capsys.readouterr().out)}

    return compile_for


@can_interpret
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("chip", "head_dim"), [*((c, 32) for c in SHARED_KB), (80, 16), (80, 64)])
def test_kernels_compile_without_a_gpu(compile_for, chip, head_dim, dtype):
    """They take the tensor cores in half precision, and fit into a chip's registers and memory."""
    # Of the sizes on which Triton may specialise, some are 1 and some are multiples of 16.
    even = Case(1, GroupPlan(8, 8, 4, 4, 2), 16, head_dim, dtype)
    odd = Case(1, GroupPlan(3, 3, 3, 3, 1), 1, head_dim, dtype)
    kernels, spills = compile_for(chip, [even, odd])
    assert sorted(kernels) == ["_backward_kernel", "_forward_kernel", "_grad_bias_kernel"]
    for name, compiled in kernels.items():
        (kernel,) = compiled  # one for all sizes
        assert kernel.metadata.shared <= SHARED_KB[chip] * 1024
        assert spills[name] <= MOST_SPILLED.get((name, chip, head_dim, dtype), 0), name
        products = re.findall(r" = tt\.dot .* -> tensor<\w+, (#\w+)>", kernel.asm["ttgir"])
        found = set(TENSOR_CORES.findall(kernel.asm["ptx"]))
        if dtype == torch.float32:
            assert products and not found, name  # not rounded to TF32
        else:
            short = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
            assert set(products) == {"#mma"} and found == {f"f32.{short}.{short}.f32"}, name


@can_interpret
def test_what_it_cannot_take_is_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, table, plan = torch.zeros(1, 4, 4, 96), torch.zeros(7, 7, 1), GroupPlan(4, 4, 4, 4, 1)
    assert "NVIDIA GPU" in triton.can_run(x, plan, 3)
    assert "48 channels" in triton.can_run(x, plan, 2)
    assert "float64" in triton.can_run(x.double(), plan, 3)
    with pytest.raises(ValueError, match="bias table"):
        triton.attend(x, table[:5], plan, 1)
    with pytest.raises(ValueError, match="96 channels"):
        triton.attend(x, table, plan, 3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
class TestOnGpu:
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("case", CASES + LARGE_CASES, ids=str)
    def test_same_as_plain(self, case, dtype):
        check_case(case._replace(dtype=dtype), "cuda")

    def test_compiles_once(self):
        check_compilation("cuda", "inductor")

    def test_kernels_do_not_specialise_on_sizes(self):
        from crossformer_mm.models.attention import triton_kernels

        kernel, device = triton_kernels._forward_kernel, torch.cuda.current_device()
        compiled = set()
        for side in (7, 14, 16, 33, 64):
            case = Case(1, GroupPlan(side, side, 7, 7, 1), 2, 32)
            differentiate(triton.attend, case, *inputs_of(case, "cuda"))
            compiled.add(len(kernel.device_caches[device][0]))
        assert len(compiled) == 1

    def test_memory_is_linear_in_the_area(self):
        def peak(side: int) -> int:
            case = Case(1, GroupPlan(side, side, 14, 14, 1), 3, 32, torch.float16)
            inputs = inputs_of(case, "cuda")
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            differentiate(triton.attend, case, *inputs)
            return torch.cuda.max_memory_allocated() - before

        assert peak(896) < 4.1 * peak(448)


if __name__ == "__main__":
    for name, check in CHECKS.items():
        failure = ""
        try:
            check()
        except Exception:
            failure = traceback.format_exc()
        print(json.dumps(dict(check=name, failure=failure)), flush=True)
