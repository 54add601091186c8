"""Every backend has the formula's values and gradients, whatever users do to models."""

import pytest
import torch
from torch import Tensor

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.attention import GroupedAttention, choose_backend, chunked, eager, sdpa
from crossformer_mm.models.grouping import GroupPlan, plan_groups
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
    for module in (sdpa, chunked):
        monkeypatch.setattr(module, "SCORES_AT_ONCE", entries)
        monkeypatch.setattr(module, "BIAS_AT_ONCE", entries)


def outputs_and_gradients(layer: GroupedAttention, x: Tensor, plan: GroupPlan) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x, plan)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.double).view_as(y)
    gradients = torch.autograd.grad((y.double() * weights).sum(), [x, *layer.parameters()])
    return [y.detach(), *gradients]


@pytest.mark.parametrize("backend", ["sdpa", "chunked"])
@pytest.mark.parametrize("small", [0, 64], ids=["as large groups", "as small groups"])
@pytest.mark.parametrize("entries", [1, 200, 2**22], ids=["rows", "some", "all"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_values_and_gradients_of_the_formula(monkeypatch, plan, entries, small, backend):
    torch.manual_seed(0)
    small_pieces(monkeypatch, entries)
    monkeypatch.setattr(sdpa, "SMALL_GROUP", small)
    layer = GroupedAttention(32, 2, backend).double()
    x = torch.randn(3, plan.height, plan.width, 32, dtype=torch.double)
    found = outputs_and_gradients(layer, x, plan)
    layer.attn_backend = "eager"
    for actual, expected in zip(found, outputs_and_gradients(layer, x, plan), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        layer.attn_backend = backend
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

    found = run(chunked.attend, qkv.clone(), table.clone())
    expected = run(eager.attend, qkv.double(), table.double())
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32]
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() < 1e-2 * other.norm()


def test_two_backward_passes_are_bitwise_the_same():
    torch.manual_seed(0)
    layer, plan = GroupedAttention(32, 2, "chunked"), PLANS["ragged interval"]
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
    layer, x = GroupedAttention(32, 2, "chunked"), torch.randn(1, 40, 40, 32, requires_grad=True)
    largest = LargestTensor()
    with largest:
        layer(x, plan).sum().backward()
    assert largest.entries <= max(sdpa.BIAS_AT_ONCE, 2 * chunked.SCORES_AT_ONCE)
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


# --- Which backend runs -------------------------------------------------------------------------


def chosen(plan: GroupPlan, grad: bool = False, **options: object) -> str:
    x = torch.empty(1, plan.height, plan.width, 96, **options)
    with torch.set_grad_enabled(grad):
        return choose_backend("auto", x, plan, 3)[0]


def test_auto_takes_the_formula_where_nothing_is_gained():
    small = plan_groups(56, 56, 7, 8, "fixed_interval", long_distance=False)
    assert chosen(small) == chosen(small, grad=True) == "eager"
    padded = plan_groups(57, 56, 7, 8, "fixed_interval", long_distance=False)
    assert chosen(padded) == chosen(padded, grad=True) == "sdpa"


def test_auto_takes_memory_linear_in_the_tokens_in_training():
    large = plan_groups(200, 320, 7, 8, "fixed_interval", long_distance=True)
    assert chosen(large) == "sdpa" and chosen(large, grad=True) == "chunked"
    assert chosen(large, device="meta") == "eager"


def test_a_backend_that_cannot_run_says_why():
    plan, x = PLANS["whole"], torch.empty(1, 14, 21, 32)
    with pytest.raises(RuntimeError, match="'triton' cannot run: .*; use 'auto'"):
        choose_backend("triton", x.double(), plan, 2)
    with pytest.raises(RuntimeError, match="'sdpa' cannot run: .* on meta"):
        choose_backend("sdpa", x.to("meta"), plan, 2)


# --- What users do to models --------------------------------------------------------------------

# Groups of 4, padding, and groups of more than 64 tokens under fixed_interval.
ARCH = dict(
    embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 2), group_size=4, interval=(2, 2, 1, 1)
)


@pytest.fixture
def model() -> CrossFormer:
    torch.manual_seed(0)
    return CrossFormer(ARCH, drop_path_rate=0.0).double()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(
        2, 3, 104, 130, dtype=torch.double, generator=torch.Generator().manual_seed(1)
    )


def use(model: CrossFormer, backend: str) -> CrossFormer:
    for module in model.modules():
        if isinstance(module, GroupedAttention):
            module.attn_backend = backend
    return model


def loss_of(model: CrossFormer, image: Tensor) -> Tensor:
    return sum(feature.square().mean() for feature in model(image))


@pytest.mark.parametrize("backend", ["auto", "sdpa", "chunked"])
def test_second_derivatives(model, image, backend):
    parameters = list(model.parameters())
    vectors = [torch.randn_like(p) for p in parameters]

    def product(backend: str) -> list[Tensor]:
        loss = loss_of(use(model, backend), image)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(gradients, vectors, strict=True))
        return torch.autograd.grad(along, parameters, allow_unused=True)

    for found, expected in zip(product(backend), product("eager"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_transforms_of_torch_func(model, image):
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(parameters: dict, one: Tensor) -> Tensor:
        maps = torch.func.functional_call(model, parameters, (one[None],))
        return sum(feature.square().mean() for feature in maps)

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, image)
    for index in range(len(image)):
        expected = torch.autograd.grad(loss_of(model, image[index : index + 1]), model.parameters())
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][index], gradient, rtol=1e-6, atol=1e-9)
    _, tangent = torch.func.jvp(lambda x: model(x)[3], (image,), (torch.ones_like(image),))
    step = 1e-6
    expected = (model(image + step)[3] - model(image - step)[3]) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-7)


def test_backward_inside_autocast(image):
    torch.manual_seed(0)
    model, image = CrossFormer(ARCH), image.float()

    def gradient(backend: str, half: bool) -> Tensor:
        use(model, backend).zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss_of(model, image).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact = gradient("eager", half=False)
    errors = {b: (gradient(b, half=True) - exact).norm() for b in ("eager", "auto", "chunked")}
    assert 0 < max(errors.values()) < 1.2 * errors["eager"] < 0.2 * exact.norm()


def test_tracing_gives_the_same(model, image):
    traced = torch.jit.trace(model.eval(), image, check_trace=False, strict=False)
    for found, expected in zip(traced(image), model(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_dynamic_quantisation(image):
    model, image = CrossFormer(ARCH).eval(), image.float()
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    with torch.no_grad():
        for found, expected in zip(quantised(image), model(image), strict=True):
            assert 0 < (found - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("training", [False, True])
def test_hooks_of_every_layer_run(model, image, training):
    """What watches or replaces a layer's computation gets it: hooks, pruning, weight norm."""
    called = set()
    for name, module in model.named_modules():
        if not list(module.children()) and name:
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.set_grad_enabled(training):
        model.train(training)(image)
    leaves = {n for n, m in model.named_modules() if n and not list(m.children())}
    assert called == leaves - {n for n in leaves if "downsample" in n and n.startswith("layers.3")}


def test_a_changed_bias_network_is_used_at_once(model, image):
    model.eval()
    with torch.no_grad():
        before = model(image)
        model.layers[0].blocks[0].attn.pos.register_forward_hook(lambda *_: _[2] + torch.rand(()))
        assert not torch.equal(model(image)[0], before[0])
