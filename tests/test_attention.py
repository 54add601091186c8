"""Every backend has the formula's values and gradients, whatever users do to models."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from crossformer_mm.models import CrossFormer, GroupedAttention, choose_backend
from crossformer_mm.models.attention import chunked, eager, sdpa, triton
from crossformer_mm.models.grouping import GroupPlan, plan_groups

PLANS = {
    "whole": GroupPlan(14, 21, 7, 7, 1),
    "padded": GroupPlan(13, 17, 5, 5, 1),
    "interval": GroupPlan(12, 16, 3, 4, 4),
    "ragged interval": GroupPlan(11, 10, 4, 3, 3),
    "one group": GroupPlan(9, 6, 9, 6, 1),
    "one token": GroupPlan(3, 2, 1, 1, 2),
}


def outputs_and_gradients(layer: GroupedAttention, x: Tensor, plan: GroupPlan) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x, plan)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.double).view_as(y)
    gradients = torch.autograd.grad((y.double() * weights).sum(), [x, *layer.parameters()])
    return [y.detach(), *gradients]


@pytest.mark.parametrize("entries", [1, 200, 2**22], ids=["rows", "some", "all"])
@pytest.mark.parametrize("plan", PLANS)
def test_values_and_gradients_of_the_formula(monkeypatch, plan, entries):
    torch.manual_seed(0)
    for module in (sdpa, chunked):
        monkeypatch.setattr(module, "SCORES_AT_ONCE", entries)
        monkeypatch.setattr(module, "BIAS_AT_ONCE", entries)
    plan, layer = PLANS[plan], GroupedAttention(32, 2, "eager").double()
    x = torch.randn(3, plan.height, plan.width, 32, dtype=torch.double)
    expected = outputs_and_gradients(layer, x, plan)
    for small in (0, 64):  # as groups that are too large to be multiplied at once, and as small
        monkeypatch.setattr(sdpa, "SMALL_GROUP", small)
        for layer.attn_backend in ("sdpa", "chunked"):
            found = outputs_and_gradients(layer, x, plan)
            with torch.no_grad():
                found.append(layer(x, plan))
            torch.testing.assert_close(found, [*expected, expected[0]], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_it_can_be(dtype):
    if dtype is torch.float16 and torch.__version__ < "2.2":
        pytest.skip("torch 2.1 multiplies no float16 matrices on a CPU")
    torch.manual_seed(0)
    plan = PLANS["ragged interval"]
    qkv = torch.randn(2, plan.height, plan.width, 3 * 32).to(dtype)
    table = torch.randn(2 * plan.group_height - 1, 2 * plan.group_width - 1, 2)
    weights = torch.randn(2, plan.height, plan.width, 32).to(dtype)

    def run(attend, *inputs: Tensor) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in inputs]
        output = attend(*inputs, plan, 2)
        return [output, *torch.autograd.grad((output.double() * weights).sum(), inputs)]

    expected = run(eager.attend, qkv.double(), table.double())
    for attend in (sdpa.attend, chunked.attend):
        found = run(attend, qkv, table)
        assert [x.dtype for x in found] == [dtype, dtype, torch.float32]
        for one, other in zip(found, expected, strict=True):
            assert (one.double() - other).norm() < 1e-2 * other.norm()


class Operations(TorchDispatchMode):
    """Watches for the names of operations and the largest tensor that one makes."""

    def __init__(self) -> None:
        super().__init__()
        self.entries, self.names = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(str(func))
        tensors = [value for value in tree_flatten(result)[0] if torch.is_tensor(value)]
        sizes = [value.untyped_storage().nbytes() // 4 for value in tensors]
        self.entries = max(self.entries, *sizes, 0)
        return result


def test_no_tensor_is_as_large_as_the_scores():
    # One group of 1600 tokens and two heads: 5 million scores; nothing may come near that.
    plan = GroupPlan(40, 40, 40, 40, 1)
    layer, x = GroupedAttention(32, 2, "chunked"), torch.randn(1, 40, 40, 32, requires_grad=True)
    with Operations() as seen:
        layer(x, plan).sum().backward()
    assert seen.entries <= max(sdpa.BIAS_AT_ONCE, 2 * chunked.SCORES_AT_ONCE) < 2 * 1600**2


# --- Which backend runs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "long_distance", "without_grad", "with_grad"),
    [
        ((56, 56), False, "eager", "eager"),
        ((57, 56), False, "sdpa", "sdpa"),
        ((200, 320), True, "sdpa", "chunked"),  # groups of 1000 tokens
    ],
)
def test_auto_takes_the_fastest_that_fits(size, long_distance, without_grad, with_grad):
    plan = plan_groups(*size, 7, 8, "fixed_interval", long_distance)
    x = torch.empty(1, *size, 96)
    for enabled, expected in ((False, without_grad), (True, with_grad)):
        with torch.set_grad_enabled(enabled):
            assert choose_backend("auto", x, plan, 3)[0] == expected
            assert choose_backend("auto", x.to("meta"), plan, 3)[0] == "eager"


def test_auto_never_takes_triton(monkeypatch):
    """No GPU has run its kernels yet."""
    for answer in (None, "a reason"):  # whether the other backends can run or not
        for backend in (sdpa, chunked):
            monkeypatch.setattr(backend, "can_run", lambda *args, answer=answer: answer)
        monkeypatch.setattr(triton, "can_run", lambda *args: pytest.fail("auto asks triton"))
        for device, tokens in product(("cpu", "cuda"), (4, 4096)):
            x = SimpleNamespace(device=torch.device(device), shape=torch.Size((1, tokens, 8, 96)))
            plan = GroupPlan(tokens, 8, tokens, 8, 1)
            for with_grad in (True, False):
                with torch.set_grad_enabled(with_grad):
                    assert choose_backend("auto", x, plan, 3)[0] in ("eager", "sdpa", "chunked")


def test_a_backend_that_cannot_run_says_why():
    plan, x = PLANS["whole"], torch.empty(1, 14, 21, 32)
    with pytest.raises(RuntimeError, match="'triton' cannot run: .*; use 'auto'"):
        choose_backend("triton", x.double(), plan, 2)
    with pytest.raises(RuntimeError, match="'sdpa' cannot run: .* on meta"):
        choose_backend("sdpa", x.to("meta"), plan, 2)


# --- What users do to models --------------------------------------------------------------------

# Groups of 4, padding, and groups of more than 64 tokens under fixed_interval.
ARCH = dict(embed_dims=16, depths=[2] * 4, num_heads=(1, 2, 2, 2), group_size=4)
ARCH["interval"] = (2, 2, 1, 1)


@pytest.fixture
def model() -> CrossFormer:
    torch.manual_seed(0)
    return CrossFormer(ARCH).double().eval()


@pytest.fixture
def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 104, 130, dtype=torch.double)


def use(model: CrossFormer, backend: str) -> CrossFormer:
    for module in model.modules():
        if isinstance(module, GroupedAttention):
            module.attn_backend = backend
    return model


assert_close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-9)


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
        return torch.autograd.grad(along, parameters)

    assert_close(product(backend), product("eager"))


def test_transforms_of_torch_func(model, image):
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(parameters: dict, one: Tensor) -> Tensor:
        return loss_of(partial(torch.func.functional_call, model, parameters), one[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, image)
    for index in range(len(image)):
        expected = torch.autograd.grad(loss_of(model, image[index : index + 1]), model.parameters())
        assert_close([found[name][index] for name in parameters], expected)
    _, tangent = torch.func.jvp(lambda x: model(x)[3], (image,), (torch.ones_like(image),))
    step = 1e-6
    expected = (model(image + step)[3] - model(image - step)[3]) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cast", [False, True], ids=["autocast", "to"])
def test_values_and_gradients_in_bfloat16(image, cast):
    torch.manual_seed(0)
    model = CrossFormer(ARCH)

    def run(backend: str, half: bool) -> tuple[Tensor, Tensor]:
        dtype = torch.bfloat16 if half and cast else torch.float
        used = use(copy.deepcopy(model), backend).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=half and not cast):
            maps = used(image.to(dtype))
            sum(m.float().square().mean() for m in maps).backward()
        grads = [p.grad for p in used.parameters()]
        return tuple(torch.cat([x.flatten().float() for x in some]) for some in (maps, grads))

    exact = run("eager", half=False)
    runs = [run(backend, half=True) for backend in ("eager", "auto", "sdpa", "chunked")]
    for expected, *found in zip(exact, *runs, strict=True):
        errors = [(one - expected).norm() for one in found]
        assert 0 < max(errors) < 1.2 * errors[0] < 0.2 * expected.norm()


def test_tracing_gives_the_same(model, image):
    traced = torch.jit.trace(model, image, check_trace=False, strict=False)
    assert_close(traced(image), model(image))


@torch.no_grad()
def test_dynamic_quantisation(image):
    model, image = CrossFormer(ARCH).eval(), image.float()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    for found, expected in zip(quantised(image), model(image), strict=True):
        assert 0 < (found - expected).norm() < 0.2 * expected.norm()


def replace_forward(layer: nn.Module, seen) -> None:
    own = layer.forward
    layer.forward = lambda *inputs: (seen(), own(*inputs))[1]


WATCHERS = {
    "forward hooks": nn.Module.register_forward_hook,
    "forward pre-hooks": nn.Module.register_forward_pre_hook,
    "backward hooks": nn.Module.register_full_backward_hook,
    "an own forward": replace_forward,
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_whoever_watches_a_layer_sees_it(model, image, watcher):
    # Stem, position bias and activations as well, even where a layer has run before.
    leaves = {name: module for name, module in model.named_modules() if not [*module.children()]}
    model(image)
    seen = []
    for name, module in leaves.items():
        WATCHERS[watcher](module, lambda *_, name=name: seen.append(name))
    for training in (False, True):
        seen.clear()
        with torch.set_grad_enabled(training or watcher == "backward hooks"):
            maps = model.train(training)(image.requires_grad_())
        if watcher == "backward hooks":
            sum(m.sum() for m in maps).backward()
        assert set(seen) == set(leaves)


@torch.no_grad()
@pytest.mark.parametrize("change", ["pruning", "weight norm"])
def test_changed_weights_are_used_at_once(model, image, change):
    plain, before = copy.deepcopy(model), model(image)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            other = plain.get_submodule(name)
            if change == "pruning":
                prune.l1_unstructured(layer, "weight", 0.5)
                other.weight.copy_(layer.weight)
            else:
                parametrizations.weight_norm(layer)
                layer.parametrizations.weight.original0.mul_(2)
                other.weight.mul_(2)
    found = model(image)
    assert_close(found, plain(image))
    assert not torch.equal(found[0], before[0])


@torch.no_grad()
def test_onednn_is_left_alone_where_it_is_switched_off(image):
    model = CrossFormer(ARCH).eval()
    with torch.backends.mkldnn.flags(enabled=False), Operations() as seen:
        model(image.float())
    assert any("addmm" in name for name in seen.names)
    assert not any("mkldnn" in name for name in seen.names)


def test_four_threads_give_what_one_gives(model):
    images = [torch.rand(1, 3, 32 + 8 * i, 80 - 8 * i, dtype=torch.double) for i in range(6)] * 4

    @torch.no_grad()
    def run(image: Tensor) -> Tensor:
        return torch.cat([m.flatten() for m in model(image)])

    expected, usual = [run(image) for image in images], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert_close(list(threads.map(run, images)), expected)
    finally:
        sys.setswitchinterval(usual)
