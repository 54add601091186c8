"""Attention in pieces: the same values and gradients as the formula, in linear memory."""

import pytest
import torch
from torch import Tensor

from crossformer_mm.models import chunked_attention
from crossformer_mm.models.attention import GroupedAttention, plain_attention
from crossformer_mm.models.grouping import GroupPlan, order_tokens
from crossformer_mm.models.position_bias import expand_rows, expand_table, sum_rows

PLANS = {
    "whole": GroupPlan(14, 21, 7, 7, 1),
    "padded": GroupPlan(13, 17, 5, 5, 1),
    "interval": GroupPlan(12, 16, 3, 4, 4),
    "ragged interval": GroupPlan(11, 10, 4, 3, 3),
    "one group": GroupPlan(9, 6, 9, 6, 1),
    "one token": GroupPlan(3, 2, 1, 1, 2),
}


def small_pieces(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    limits = [name for name in vars(chunked_attention) if name.endswith(("_ENTRIES", "_SCORES"))]
    assert len(limits) == 4
    for name in limits:
        monkeypatch.setattr(chunked_attention, name, entries)


def outputs_and_gradients(layer: GroupedAttention, x: Tensor, plan: GroupPlan) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x, plan)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.double).view_as(y)
    gradients = torch.autograd.grad((y.double() * weights).sum(), [x, *layer.parameters()])
    return [y.detach(), *gradients]


@pytest.mark.parametrize("small", [0, 64], ids=["as large groups", "as small groups"])
@pytest.mark.parametrize("entries", [1, 200, 2**22], ids=["rows", "some", "all"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_pieces_give_the_values_and_gradients_of_the_formula(monkeypatch, plan, entries, small):
    torch.manual_seed(0)
    small_pieces(monkeypatch, entries)
    monkeypatch.setattr(chunked_attention, "SMALL_GROUP", small)
    layer = GroupedAttention(32, 2, "sdpa").double()
    x = torch.randn(3, plan.height, plan.width, 32, dtype=torch.double)
    found = outputs_and_gradients(layer, x, plan)
    layer.attention_path = "plain"
    for actual, expected in zip(found, outputs_and_gradients(layer, x, plan), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        layer.attention_path = "sdpa"
        torch.testing.assert_close(layer(x, plan), found[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("plan", ["ragged interval", "whole"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_it_can_be(dtype, plan):
    if dtype is torch.float16 and torch.__version__ < "2.2":
        pytest.skip("torch 2.1 multiplies no float16 matrices on a CPU")
    torch.manual_seed(0)
    plan = PLANS[plan]
    qkv = torch.randn(2, plan.height, plan.width, 3 * 32).to(dtype)
    table = torch.randn(2 * plan.group_height - 1, 2 * plan.group_width - 1, 2)
    weights = torch.randn(2, plan.height, plan.width, 32).to(dtype)

    def run(attention, qkv: Tensor, table: Tensor) -> list[Tensor]:
        qkv, table = qkv.requires_grad_(), table.requires_grad_()
        output = attention(qkv, table, plan, 2)
        loss = (output.double() * weights).sum()
        return [output, *torch.autograd.grad(loss, (qkv, table))]

    found = run(attend, qkv.clone(), table.clone())
    expected = run(plain_attention, qkv.double(), table.double())
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32]
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() < 1e-2 * other.norm()


def attend(qkv: Tensor, table: Tensor, plan: GroupPlan, num_heads: int) -> Tensor:
    """Either function of the module, whichever takes such a map."""
    if plan.padded_size == (plan.height, plan.width):
        return chunked_attention.attend_in_map(qkv, table, plan, num_heads)
    order, inverse, runs = order_tokens(plan)
    output = chunked_attention.attend(qkv.flatten(1, 2)[:, order], table, runs, num_heads)
    return output[:, inverse].view(*qkv.shape[:3], -1)


def test_two_backward_passes_are_bitwise_the_same():
    torch.manual_seed(0)
    layer, plan = GroupedAttention(32, 2, "sdpa"), PLANS["ragged interval"]
    x = torch.randn(2, plan.height, plan.width, 32)
    runs = [outputs_and_gradients(layer, x, plan) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 4), (7, 7)])
def test_summing_rows_is_the_adjoint_of_looking_them_up(size):
    height, width = size
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(
        2 * height - 1, 2 * width - 1, 3, generator=generator, dtype=torch.double
    ).requires_grad_()
    bias = expand_table(table)
    grad = torch.randn(bias.shape, generator=generator, dtype=torch.double)
    (expected,) = torch.autograd.grad(bias, table, grad)
    total = torch.zeros_like(expected)
    for first in range(0, height, 2):
        rows = range(first, min(first + 2, height))
        part = slice(rows.start * width, rows.stop * width)
        assert torch.equal(expand_rows(table, rows), bias[:, part])
        sum_rows(grad[:, part].contiguous(), rows, into=total)
    torch.testing.assert_close(total, expected)


def test_no_tensor_is_as_large_as_the_scores():
    # One group of 1600 tokens and two heads: 5 million scores; nothing may come near that.
    plan = GroupPlan(40, 40, 40, 40, 1)
    layer, x = GroupedAttention(32, 2, "sdpa"), torch.randn(1, 40, 40, 32, requires_grad=True)
    largest = LargestTensor()
    with largest:
        layer(x, plan).sum().backward()
    assert largest.entries <= max(
        chunked_attention.FORWARD_BIAS_ENTRIES, 2 * chunked_attention.BACKWARD_SCORES
    )
    assert largest.entries < 2 * 1600**2


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Watches every operation for the largest tensor that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_flatten(result)[0]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.untyped_storage().nbytes() // 4)
        return result
