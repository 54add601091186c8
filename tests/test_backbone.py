"""The backbone against the slow reference, and how it behaves as a module."""

import copy
import itertools
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from conftest import CPU_BACKENDS
from reference import reference_backbone, reference_groups
from torch import Tensor, nn

from crossformer_mm import CrossFormer
from crossformer_mm.models import (
    ATTN_BACKENDS,
    LDA_MODES,
    CrossFormerBlock,
    DynamicPositionBias,
    GroupedAttention,
)
from crossformer_mm.models.architectures import ARCH_ZOO, SHORT_NAMES
from crossformer_mm.models.attention import reduced
from crossformer_mm.models.block import DropPath, Mlp
from crossformer_mm.models.grouping import plan_groups
from crossformer_mm.models.state_dict import VARIANTS, find_architecture


def family(
    dims: int, depths: tuple, heads: tuple, groups: tuple, interval: tuple, cooling: bool = False
) -> dict:
    arch = dict(embed_dims=dims, depths=depths, num_heads=heads, amplitude_cooling=cooling)
    return {**arch, "group_size": groups, "interval": interval}


# Small relatives of the published architectures: the same patterns of depths, heads, groups,
# intervals and cooling.
FAMILIES = {
    "tiny": family(32, (1, 1, 4, 2), (1, 2, 4, 8), (7, 7, 7, 7), (8, 4, 2, 1)),
    "small": family(48, (2, 2, 3, 2), (3, 6, 12, 24), (7, 7, 7, 7), (8, 4, 2, 1)),
    "small-g14": family(16, (2, 2, 3, 2), (2, 4, 8, 16), (14, 14, 7, 7), (16, 8, 2, 1)),
    # Intervals longer than small maps, and LDA in every stage.
    "small-g3": family(32, (2, 2, 3, 2), (2, 4, 8, 16), (3, 3, 2, 1), (16, 8, 4, 3)),
    "pp-small": family(32, (2, 2, 6, 2), (2, 4, 8, 16), (4, 4, 14, 7), (4, 2, 1, 1), cooling=True),
    "pp-huge": family(32, (6, 3, 4, 2), (2, 4, 8, 16), (4, 4, 14, 7), (4, 2, 1, 1), cooling=True),
    "per-block": family(
        *(32, (2, 2, 4, 2), (2, 4, 8, 16)),
        *(((3, 5), (4, 2), (3, 1, 2, 6), 2), ((9, 3), 2, (1, 4, 1, 2), (1, 2))),
    ),
}

# One rule of LDA and one size each; test_random_cases.py draws the others.
CASES = [
    ("tiny", "fixed_interval", (32, 32)),  # the smallest image
    ("small", "fixed_group", (33, 47)),  # every side is odd at some stage
    ("small-g14", "adaptive_interval", (56, 64)),  # sides equal to groups of 14, then 7
    ("small-g14", "fixed_interval", (57, 64)),  # one token more
    ("small-g3", "fixed_interval", (68, 45)),
    ("pp-small", "fixed_group", (32, 200)),  # down to 1 x 7 tokens
    ("pp-small", "fixed_interval", (101, 65)),
    ("pp-huge", "adaptive_interval", (200, 32)),
    ("per-block", "fixed_group", (64, 96)),
]
VARIANT_CASES = [
    ("small", dict(position_bias="dpb-residual"), (33, 47)),
    ("small", dict(position_bias="rpb"), (64, 96)),
    ("per-block", dict(position_bias="rpb"), (64, 96)),
    ("small", dict(position_bias="ape"), (224, 224)),  # of the embedding's own size
    ("small-g3", dict(position_bias="ape"), (60, 301)),
    ("small", dict(position_bias="none"), (33, 47)),
    ("small", dict(long_range="swin"), (64, 60)),  # sides above and at most those of groups
    ("small-g3", dict(long_range="swin", cross_scale=False), (68, 45)),
    ("pp-small", dict(long_range="swin", position_bias="rpb"), (101, 65)),
    ("small", dict(long_range="pvt"), (32, 75)),
    ("pp-small", dict(long_range="pvt", position_bias="ape"), (101, 65)),
    ("tiny", dict(cross_scale=False), (37, 64)),
]
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)
every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def random_weights(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state dict under which every part of the model matters.

    Weights are normal with variance 1 / fan in, norm weights 1 + 0.1 * normal, biases 0.1 *
    normal. What the position bias ends with is doubled, for biases as large as the other logits.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        values = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            values *= value[0].numel() ** -0.5
        else:
            values *= 0.1
            values += name.endswith("weight")
        state[name] = 2 * values if name.endswith("pos3.2.weight") else values
    return state


def random_image(height: int, width: int, batch: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator)


def build(family: str = "small-g3", lda_mode: str = "fixed_interval", **arguments) -> CrossFormer:
    """A family's backbone with random weights, in evaluation, in float32."""
    model = CrossFormer(FAMILIES[family], lda_mode=lda_mode, **arguments)
    model.load_state_dict(random_weights(model))
    return model.eval()


def double_state(model: CrossFormer) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in model.named_parameters()}


def reference_of(model: CrossFormer, state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """What the reference computes with the architecture of ``model``."""
    return reference_backbone(
        state,
        image,
        depths=model.arch.depths,
        num_heads=model.arch.num_heads,
        group_size=model.arch.group_size,
        interval=model.arch.interval,
        lda_mode=model.layers[0].blocks[0].lda_mode,
        amplitude_cooling=model.arch.amplitude_cooling,
        final_norm=model.final_norm,
        **{name: getattr(model, name) for name in VARIANTS},
    )


def worst_error(maps: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error of any value, in standard deviations of its map."""
    assert [m.shape for m in maps] == [m.shape for m in expected]
    return max(
        ((one.double() - other).abs().max() / other.std(correction=0).clamp(min=1e-3)).item()
        for one, other in zip(maps, expected, strict=True)
    )


def weigh(maps: Sequence[Tensor]) -> Tensor:
    """A scalar that depends on every value of every map."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(m.shape, generator=generator, dtype=torch.float64) for m in maps]
    return sum((m * w.to(m.dtype)).sum() for m, w in zip(maps, weights, strict=True))


def gradients(model: CrossFormer) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# --- Values and gradients against the reference -------------------------------------------------


# Tolerances of maps in standard deviations, and of gradients in theirs and in the largest of all.
PRECISIONS = {torch.float64: (1e-10, 1e-8, 1e-11), torch.float32: (1e-5, 5e-3, 2e-5)}


@pytest.mark.parametrize(("family", "lda_mode", "size"), CASES)
def test_values_and_gradients_equal_the_reference(family: str, lda_mode: str, size: tuple) -> None:
    compare_with_reference(family, size, lda_mode=lda_mode, final_norm=lda_mode == "fixed_group")


@pytest.mark.parametrize(("family", "variant", "size"), VARIANT_CASES)
def test_variants_of_the_ablations_equal_the_reference(
    family: str, variant: dict, size: tuple
) -> None:
    compare_with_reference(family, size, lda_mode="fixed_group", **variant)


def compare_with_reference(family: str, size: tuple, **arguments: object) -> None:
    model = build(family, **arguments)
    state = {name: value.requires_grad_() for name, value in double_state(model).items()}
    image = random_image(*size, batch=2).double().requires_grad_()
    expected_maps = reference_of(model, state, image)
    weigh(expected_maps).backward()
    expected = {**{name: value.grad for name, value in state.items()}, "image": image.grad}
    scale = max(grad.abs().max() for grad in expected.values())
    is_reduced = model.long_range == "pvt"
    backends = set(CPU_BACKENDS) & set(reduced.BACKENDS) if is_reduced else CPU_BACKENDS
    for backend, dtype in itertools.product(backends, PRECISIONS):
        tolerance, relative, absolute = PRECISIONS[dtype]
        model = build(family, attn_backend=backend, **arguments).to(dtype).train()
        pixels = image.detach().to(dtype).requires_grad_()
        maps = model(pixels)
        assert all(m.dtype == dtype and m.is_contiguous() for m in maps)
        assert worst_error(maps, expected_maps) <= tolerance, (backend, dtype)
        weigh(maps).backward()
        for name, grad in {**gradients(model), "image": pixels.grad}.items():
            error, allowed = (grad - expected[name]).abs().max(), expected[name].std(correction=0)
            assert error <= relative * allowed + absolute * scale, (backend, dtype, name)


# --- Architectures and maps ---------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCH_ZOO)
def test_every_architecture_has_its_maps_and_trains_every_parameter(arch: str) -> None:
    with torch.device("meta"):  # no time is spent on initial values
        model = CrossFormer(arch, final_norm=True, drop_path_rate=0.0)
    assert find_architecture(model.state_dict()) == arch
    model.load_state_dict(random_weights(model), assign=True)
    maps = model.train()(random_image(64, 93))
    width = model.arch.embed_dims
    assert model.out_channels == (width, 2 * width, 4 * width, 8 * width)
    sizes = zip(model.out_channels, ((16, 24), (8, 12), (4, 6), (2, 3)), strict=True)
    assert [m.shape for m in maps] == [(1, channels, *size) for channels, size in sizes]
    weigh(maps).backward()
    for name, grad in gradients(model).items():
        assert grad is not None and grad.isfinite().all(), name
        # A constant added to all the logits of a query changes nothing.
        if not name.endswith("pos3.2.bias"):
            assert grad.abs().max() > 1e-2, name  # rounding leaves about 1e-5


def test_short_names() -> None:
    with torch.device("meta"):
        for short, name in {"t": "tiny", "S": "small", "pp-s": "pp-small"}.items():
            assert CrossFormer(short).arch == CrossFormer(name).arch
    assert sorted(SHORT_NAMES.values()) == sorted(ARCH_ZOO)


def test_groups_as_arguments_replace_those_of_the_architecture() -> None:
    arch = {name: FAMILIES["small"][name] for name in ("embed_dims", "depths", "num_heads")}
    arguments = dict(group_size=5, interval=[3, 2, (1, 4, 2), 1], drop_path_rate=0.25)
    model = CrossFormer(arch, **arguments)
    assert model.arch.group_size == ((5, 5), (5, 5), (5, 5, 5), (5, 5))
    assert model.arch.interval == ((3, 3), (2, 2), (1, 4, 2), (1, 1))
    assert CrossFormer(FAMILIES["small"], **arguments).arch == model.arch


def test_out_indices_select_maps() -> None:
    full, image = build(), random_image(40, 56)
    for out_indices in ((0,), (3,), (1, 2), [0, 3]):
        part = build(out_indices=out_indices)
        assert part.out_channels == tuple(full.out_channels[i] for i in out_indices)
        with torch.no_grad():
            maps = full(image)
            assert_equal(part(image), [maps[i] for i in out_indices])


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_the_meta_device_gives_shapes(backend: str) -> None:
    model = build(attn_backend=backend)
    image = torch.empty(1, 3, 40, 57, device="meta")
    with torch.no_grad():
        expected = [m.shape for m in model(random_image(40, 57))]
        assert [m.shape for m in model.to("meta")(image)] == expected
        with torch.device("meta"):
            made_there = CrossFormer(FAMILIES["small-g3"], attn_backend=backend).eval()
        assert [m.shape for m in made_there(image)] == expected


# --- What does not influence what ---------------------------------------------------------------

# (height, width, group size, interval, rule, LDA): none is a multiple of its regions
ISOLATION = [
    (10, 9, 4, 1, "fixed_interval", False),
    (10, 9, 3, 4, "fixed_interval", True),
    (5, 4, 3, 8, "fixed_interval", True),
    (10, 9, 2, 3, "fixed_group", True),
    (10, 9, 3, 2, "adaptive_interval", True),
    (3, 8, 4, 2, "fixed_interval", True),
    (3, 8, 4, 2, "fixed_group", True),
]


@every_backend
@pytest.mark.parametrize("case", ISOLATION, ids=lambda case: "-".join(map(str, case)))
def test_a_group_sees_itself_and_nothing_else(case: tuple, backend: str) -> None:
    height, width = case[:2]
    layer = GroupedAttention(32, num_heads=2, attn_backend=backend).eval()
    layer.load_state_dict(random_weights(layer))
    plan = plan_groups(*case)
    assert plan.padded_size != (height, width)
    torch.manual_seed(3)
    x = torch.randn(2, height, width, 32)
    with torch.no_grad():
        clean = layer(x, plan)
        for members in reference_groups(*case):
            rows, columns = zip(*(token for token, _ in members), strict=True)
            spoilt = x.clone()
            spoilt[:, rows[-1], columns[-1]] = float("nan")
            output = layer(spoilt, plan)
            inside = torch.zeros(height, width, dtype=torch.bool)
            inside[rows, columns] = True
            assert output[:, inside].isnan().all()
            assert torch.equal(output[:, ~inside], clean[:, ~inside])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_earlier_images_leave_no_trace(training: bool) -> None:
    small, large = random_image(32, 32), random_image(101, 65)
    model = build("pp-small", "adaptive_interval")
    with torch.inference_mode():
        model(large)
    before = copy.deepcopy(model.state_dict())
    for image in (small, large, small):
        fresh = build("pp-small", "adaptive_interval")
        results = []
        for one in (model, fresh):
            one.train(training).zero_grad()
            maps = one(image)
            weigh(maps).backward()
            results.append((maps, gradients(one)))
        assert_equal(*results)
    assert_equal(model.state_dict(), before)


@every_backend
def test_an_empty_batch_gives_empty_maps(backend: str) -> None:
    model = CrossFormer(FAMILIES["small"], attn_backend=backend)
    shapes = [tuple(m.shape[1:]) for m in model(torch.zeros(1, 3, 64, 70))]
    assert [tuple(m.shape) for m in model(torch.zeros(0, 3, 64, 70))] == [(0, *s) for s in shapes]


# --- Training and evaluation --------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_initial_weights(device: str) -> None:
    torch.manual_seed(0)
    with torch.device(device):
        model = CrossFormer(FAMILIES["pp-small"], final_norm=True)
    if device == "meta":
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            nn.init.constant_(parameter, float("nan"))
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    if device == "cpu":
        assert_equal(model.state_dict(), before)
    linear = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            linear.append(module.weight.detach().flatten())
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()
        elif isinstance(module, nn.Conv2d):  # PyTorch's default: uniform, of this bound
            bound = module.weight[0].numel() ** -0.5
            assert 0.7 * bound < module.weight.abs().max() <= bound
            assert 0 < module.bias.abs().max() <= bound
    weights = torch.cat(linear)
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert weights.mean().abs() < 1e-3 and weights.abs().max() < 0.12


def test_drop_path_rates_rise_linearly_to_that_of_the_architecture() -> None:
    arch = {**FAMILIES["small"], "drop_path_rate": 0.4}
    for model, last in ((CrossFormer(arch), 0.4), (CrossFormer(arch, drop_path_rate=0.0), 0)):
        rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
        assert rates == pytest.approx([last * i / 8 for i in range(9)], abs=1e-6)


def test_drop_path_drops_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    x = torch.rand(20000, 2, 3) + 1
    factors = layer(torch.zeros_like(x), x) / x
    assert torch.allclose(factors, factors[:, :1, :1])
    dropped = factors[:, 0, 0] == 0
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.015)
    assert torch.allclose(factors[~dropped], torch.tensor(4 / 3))
    assert torch.equal(layer.eval()(x, x), 2 * x)
    x = torch.full((64, 4), 0.9, dtype=torch.bfloat16)  # 0.8984375
    found = DropPath(0.1).train()(torch.zeros_like(x), x)
    # 1 / 0.9 rounded to bfloat16 before the product would give 0.99609375.
    assert set(found.unique().tolist()) == {0.0, 1.0}


def test_the_mlp_of_a_large_map_gives_the_same_in_pieces():
    torch.manual_seed(0)
    mlp, x = Mlp(16, 64), torch.randn(1, 400, 340, 16, requires_grad=True)
    pieces = []
    mlp.act.register_forward_hook(lambda layer, inputs, output: pieces.append(len(output)))
    found = mlp(x)
    assert len(pieces) > 1 and sum(pieces) == 400 * 340
    expected = mlp.fc2(mlp.act(mlp.fc1(x)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    inputs = [x, *mlp.parameters()]
    gradients = [torch.autograd.grad(y.square().mean(), inputs) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_block_drops_each_branch_on_its_own() -> None:
    arguments = {"group_size": 2, "interval": 1, "lda_mode": "fixed_group", "long_distance": False}
    block = CrossFormerBlock(32, 2, drop_path_rate=0.5, **arguments).double()
    block.load_state_dict(random_weights(block))
    torch.manual_seed(4)
    x = torch.randn(1, 4, 4, 32).double()
    with torch.no_grad():
        attended = block.attn(block.norm1(x), plan_groups(4, 4, **arguments))
        # What a sample can come out as, when kept branches count double.
        outcomes = []
        for first, second in itertools.product((0, 2), repeat=2):
            y = x + first * attended
            outcomes.append(y + second * block.mlp(block.norm2(y)))
        torch.manual_seed(0)
        samples = block.train()(x.expand(64, -1, -1, -1))
    counts = [sum(torch.allclose(sample, outcome[0]) for sample in samples) for outcome in outcomes]
    assert sum(counts) == 64 and min(counts) > 4


@every_backend
def test_checkpointing_equals_plain_and_runs_blocks_twice(backend: str) -> None:
    results, image = [], random_image(44, 65, batch=3).requires_grad_()
    for with_cp in (False, True):
        arguments = {"attn_backend": backend, "drop_path_rate": 0.5, "with_cp": with_cp}
        model, calls = build("pp-small", **arguments).train(), []
        for stage in model.layers:
            for block in stage.blocks:
                block.attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        maps = model(image)
        assert len(calls) == 12
        weigh(maps).backward()
        assert len(calls) == (24 if with_cp else 12)
        results.append((maps, gradients(model), image.grad.clone()))
        image.grad = None
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_cp", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("stages", [-1, 0, 1, 3, 4])
def test_frozen_stages_stay_as_they_are(stages: int, with_cp: bool) -> None:
    model = build(frozen_stages=stages, final_norm=True, drop_path_rate=0.1, with_cp=with_cp)
    frozen = () if stages < 0 else ("patch_embed", *(f"layers.{i}" for i in range(stages)))

    def is_frozen(name: str) -> bool:
        return any(f"{name}.".startswith(f"{part}.") for part in frozen)

    for mode in (True, False, True):
        assert model.train(mode) is model
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad != is_frozen(name), name
        for name, module in model.named_modules():
            if name not in ("", "layers"):
                assert module.training == (mode and not is_frozen(name)), name
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    weigh(model(random_image(40, 56, batch=2))).backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == is_frozen(name), name


def test_the_bias_table_is_exact_under_autocast() -> None:
    bias = DynamicPositionBias(32, num_heads=3)
    bias.load_state_dict(random_weights(bias))
    with torch.no_grad():
        expected = bias(2, 300)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(bias(2, 300), expected)


# --- Errors -------------------------------------------------------------------------------------


def changed(**entries: object) -> dict:
    """Arguments with other entries of an architecture; those that are None are left out."""
    entries = {**FAMILIES["small"], **entries}
    return {"arch": {name: value for name, value in entries.items() if value is not None}}


# What is wrong, and what the message says.
BAD_VALUES = [
    ({"arch": "huge"}, "arch 'huge': .*pp-huge"),
    (changed(embed_dims=None), "no 'embed_dims'"),
    (changed(group_size=None), "group_size is missing"),
    (changed(interval=None), "interval is missing"),
    (changed(depth=(2, 2, 3, 2)), "'depth': .* depths"),
    (changed(depths=(2, 2, 6)), r"depths.* not \(2, 2, 6\)"),
    (changed(depths=(2, 0, 3, 2)), r"depths'\]\[1\] .* not 0"),
    (changed(num_heads=(3, 7, 12, 24)), r"num_heads'\]\[1\] = 7 must divide the 96"),
    (changed(embed_dims=20), "embed_dims.* of 8 .*not 20"),
    (changed(embed_dims=8), "embed_dims.* at least 16.*not 8"),
    ({"lda_mode": "fixed"}, f"lda_mode 'fixed': .*{', '.join(LDA_MODES)}"),
    ({"attn_backend": "flash"}, f"attn_backend 'flash': .*{', '.join(ATTN_BACKENDS)}"),
    ({"group_size": (7, 0, 7, 7)}, r"group_size\[1\] .* not 0"),
    ({"group_size": (7, 7, (7, 7, -1), 7)}, r"group_size\[2\] .* not -1"),
    ({"group_size": (7, 7, 7)}, r"group_size .* 4 .* not \(7, 7, 7\)"),
    ({"group_size": (7, 7, (7, 7), 7)}, r"group_size\[2\] .* or 3, .* not \(7, 7\)"),
    ({"interval": -1}, "interval.* not -1"),
    ({"out_indices": ()}, r"out_indices .* not \(\)"),
    ({"out_indices": (0, 4)}, r"out_indices .* not \(0, 4\)"),
    ({"out_indices": (2, 1)}, r"out_indices .* not \(2, 1\)"),
    ({"out_indices": (1, 1)}, r"out_indices .* not \(1, 1\)"),
    ({"out_indices": (1.0, 2.0)}, r"out_indices .* not \(1.0, 2.0\)"),
    ({"out_indices": (0, 2), "final_norm": True}, r"final_norm .* not \(0, 2\)"),
    ({"frozen_stages": 5}, "frozen_stages .* not 5"),
    ({"frozen_stages": True}, "frozen_stages .* not True"),
    ({"drop_path_rate": 1.0}, "drop_path_rate .* not 1.0"),
    ({"in_channels": 0}, "in_channels .* not 0"),
]
BAD_TYPES = [
    ({"arch": 3}, "arch must be .* not 3"),
    (changed(embed_dims=48.0), "embed_dims.* not 48.0"),
    (changed(amplitude_cooling="no"), "amplitude_cooling .* not 'no'"),
    ({"group_size": "7"}, "group_size.* not '7'"),
    ({"drop_path_rate": "0.1"}, "drop_path_rate .* not '0.1'"),
    ({"with_cp": "False"}, "with_cp .* not 'False'"),
]


@pytest.mark.parametrize(
    ("error", "arguments", "said"),
    [(ValueError, *case) for case in BAD_VALUES] + [(TypeError, *case) for case in BAD_TYPES],
)
def test_a_bad_argument_is_named(error: type[Exception], arguments: dict, said: str) -> None:
    with pytest.raises(error, match=said):
        CrossFormer(**{"arch": FAMILIES["small"], **arguments})


def test_a_bad_image_is_named() -> None:
    model = CrossFormer(FAMILIES["tiny"], in_channels=4)
    assert model(torch.zeros(1, 4, 32, 32))[0].shape == (1, 32, 8, 8)
    for shape, said in {
        (1, 4, 31, 64): "not 31 x 64",
        (1, 4, 64, 31): "not 64 x 31",
        (1, 3, 64, 64): r"not \(1, 3, 64, 64\)",
        (4, 64, 64): r"not \(4, 64, 64\)",
    }.items():
        with pytest.raises(ValueError, match=f"image must be .*{said}"):
            model(torch.zeros(shape))
