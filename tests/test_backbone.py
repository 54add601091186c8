"""The backbone against the slow reference, and how it behaves as a module."""

import copy
import itertools
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from conftest import CPU_BACKENDS
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS
from reference import reference_backbone, reference_bias, reference_groups
from torch import Tensor, nn

from crossformer_mm import CrossFormer
from crossformer_mm.models import (
    ATTN_BACKENDS,
    LDA_MODES,
    DynamicPositionBias,
    GroupedAttention,
)
from crossformer_mm.models.block import CrossFormerBlock, DropPath
from crossformer_mm.models.grouping import plan_groups
from crossformer_mm.models.position_bias import crop_table, expand_table

# Small relatives of the published architectures: the same patterns of depths, heads, groups,
# intervals and cooling.
FAMILIES: dict[str, dict] = {
    "tiny": {
        "embed_dims": 32,
        "depths": (1, 1, 4, 2),
        "num_heads": (1, 2, 4, 8),
        "group_size": (7, 7, 7, 7),
        "interval": (8, 4, 2, 1),
    },
    "small": {
        "embed_dims": 48,
        "depths": (2, 2, 3, 2),
        "num_heads": (3, 6, 12, 24),
        "group_size": (7, 7, 7, 7),
        "interval": (8, 4, 2, 1),
    },
    "small-g14": {
        "embed_dims": 16,
        "depths": (2, 2, 3, 2),
        "num_heads": (2, 4, 8, 16),
        "group_size": (14, 14, 7, 7),
        "interval": (16, 8, 2, 1),
    },
    "small-g3": {  # intervals longer than small maps, and LDA in every stage
        "embed_dims": 32,
        "depths": (2, 2, 3, 2),
        "num_heads": (2, 4, 8, 16),
        "group_size": (3, 3, 2, 1),
        "interval": (16, 8, 4, 3),
    },
    "pp-small": {
        "embed_dims": 32,
        "depths": (2, 2, 6, 2),
        "num_heads": (2, 4, 8, 16),
        "group_size": (4, 4, 14, 7),
        "interval": (4, 2, 1, 1),
        "amplitude_cooling": True,
    },
    "pp-huge": {
        "embed_dims": 32,
        "depths": (6, 3, 4, 2),
        "num_heads": (2, 4, 8, 16),
        "group_size": (4, 4, 14, 7),
        "interval": (4, 2, 1, 1),
        "amplitude_cooling": True,
    },
    "per-block": {
        "embed_dims": 32,
        "depths": (2, 2, 4, 2),
        "num_heads": (2, 4, 8, 16),
        "group_size": ((3, 5), (4, 2), (3, 1, 2, 6), 2),
        "interval": ((9, 3), 2, (1, 4, 1, 2), (1, 2)),
    },
}

# First map in tokens: 8 x 8, the smallest | 9 x 12, every side odd at some stage | 14 x 16, sides
# equal to groups of 14, then 7 | 15 x 16 and 8 x 8, one larger | 16 x 24, multiples of 32 pixels
# | 26 x 17 | 8 x 50, down to 1 x 7 | 50 x 8
SIZES = [(32, 32), (33, 47), (56, 64), (57, 64), (64, 96), (101, 65), (32, 200), (200, 32)]
# Stage 2 has 15 x 16 tokens, one row more than the groups of 14 of CrossFormer++.
LARGE = [("pp-small", lda_mode, (225, 241)) for lda_mode in LDA_MODES]
CASES = [*itertools.product(FAMILIES, LDA_MODES, SIZES), *LARGE]
CASE_IDS = [f"{family}-{mode}-{size[0]}x{size[1]}" for family, mode, size in CASES]

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}

every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
every_mode = pytest.mark.parametrize("lda_mode", LDA_MODES)


def random_weights(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state dict, in float64, under which every part of the model matters.

    Weights are normal with variance 1 / fan in, norm weights 1 + 0.1 * normal, biases 0.1 *
    normal. What the position bias ends with is doubled, for biases as large as the other logits.
    Every value fits into float32.
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
        state[name] = (2 * values if name.endswith("pos3.2.weight") else values).double()
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
    return {name: value.double() for name, value in model.state_dict().items()}


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
    )


def assert_maps_close(
    actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float
) -> None:
    """Compare maps, with a tolerance in standard deviations of each."""
    assert len(actual) == len(expected)
    for stage, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.shape == other.shape
        error = ((one.double() - other).abs().max() / other.double().std()).item()
        assert error <= tolerance, f"map {stage} is off by {error:.2g} standard deviations"


def assert_maps_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(actual) == len(expected)
    for stage, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(one, other), f"map {stage} differs"


def weigh(maps: Sequence[Tensor]) -> Tensor:
    """A scalar that depends on every value of every map."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(m.shape, generator=generator, dtype=torch.float64) for m in maps]
    return sum((m * w.to(m.dtype)).sum() for m, w in zip(maps, weights, strict=True))


def gradients(model: CrossFormer) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def biases_of(model: nn.Module) -> list[DynamicPositionBias]:
    return [module for module in model.modules() if isinstance(module, DynamicPositionBias)]


# --- Values and gradients against the reference -------------------------------------------------


@lru_cache(maxsize=1)
def expected_maps(family: str, lda_mode: str, size: tuple[int, int]) -> list[Tensor]:
    model = build(family, lda_mode)
    with torch.no_grad():
        return reference_of(model, double_state(model), random_image(*size).double())


@lru_cache(maxsize=4)
def shared_model(family: str, lda_mode: str, backend: str, dtype: torch.dtype) -> CrossFormer:
    return build(family, lda_mode, attn_backend=backend).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])
@every_backend
@pytest.mark.parametrize(("family", "lda_mode", "size"), CASES, ids=CASE_IDS)
def test_values(
    family: str, lda_mode: str, size: tuple[int, int], backend: str, dtype: torch.dtype
) -> None:
    model = shared_model(family, lda_mode, backend, dtype)
    with torch.no_grad():
        maps = model(random_image(*size).to(dtype))
    assert all(m.dtype == dtype for m in maps)
    assert_maps_close(maps, expected_maps(family, lda_mode, size), TOLERANCES[dtype])


@every_mode
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients(family: str, lda_mode: str) -> None:
    model = build(family, lda_mode)
    state = {name: value.requires_grad_() for name, value in double_state(model).items()}
    image = random_image(68, 45, batch=2).double().requires_grad_()  # 17 x 12 to 3 x 2 tokens
    weigh(reference_of(model, state, image)).backward()
    scale = max(value.grad.abs().max().item() for value in state.values())
    for backend in CPU_BACKENDS:
        model = build(family, lda_mode, attn_backend=backend).double().train()
        pixels = image.detach().clone().requires_grad_()
        weigh(model(pixels)).backward()
        for name, grad in gradients(model).items():
            assert grad is not None, name
            torch.testing.assert_close(
                grad,
                state[name].grad,
                rtol=1e-8,
                atol=1e-11 * scale,
                msg=lambda text, name=name, backend=backend: f"{backend}, {name}: {text}",
            )
        torch.testing.assert_close(pixels.grad, image.grad, rtol=1e-8, atol=1e-11 * scale)


@every_backend
@pytest.mark.parametrize("family", ["small", "pp-small"])
def test_gradients_in_float32(family: str, backend: str) -> None:
    model = build(family, attn_backend=backend).train()
    double = build(family, attn_backend="eager").double().train()
    image = random_image(68, 61)
    weigh(model(image)).backward()
    weigh(double(image.double())).backward()
    expected = gradients(double)
    scale = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in gradients(model).items():
        error = (grad.double() - expected[name]).abs().max().item()
        assert error <= 1e-3 * expected[name].std().item() + 1e-6 * scale, name


@pytest.mark.parametrize("family", ["small", "pp-huge"])
def test_every_parameter_gets_a_gradient(family: str) -> None:
    # Wider than the family, whose position bias has two channels in the first stage: the layer
    # norm of two values knows only which is larger, and passes next to no gradient on.
    arch = FAMILIES[family] | {"embed_dims": 96, "num_heads": (3, 6, 12, 24)}
    model = CrossFormer(arch, final_norm=True, drop_path_rate=0.0)
    model.load_state_dict(random_weights(model))
    weigh(model.train()(random_image(64, 96, batch=2))).backward()
    for name, grad in gradients(model).items():
        assert grad is not None and grad.isfinite().all(), name
        # A constant added to all the logits of a query changes nothing.
        if not name.endswith("pos3.2.bias"):
            assert grad.abs().max() > 1e-2, name  # rounding leaves about 1e-5


@every_backend
def test_final_norm(backend: str) -> None:
    model = build("small", final_norm=True, attn_backend=backend).double()
    state = double_state(model)
    image = random_image(64, 64).double()
    with torch.no_grad():
        maps = model(image)
        assert_maps_close(maps, reference_of(model, state, image), 1e-10)
        del state["norm.weight"], state["norm.bias"]
        other = CrossFormer(FAMILIES["small"], attn_backend=backend).double().eval()
        other.load_state_dict(state)
        assert_maps_equal(maps[:3], other(image)[:3])


@every_backend
@pytest.mark.parametrize("arch", ["tiny", "pp-small"])
def test_named_architecture_against_the_reference(arch: str, backend: str) -> None:
    model = CrossFormer(arch, attn_backend=backend).eval()
    state = {name: value.float() for name, value in random_weights(model).items()}
    model.load_state_dict(state)
    image = random_image(64, 96)
    with torch.no_grad():
        assert_maps_close(model(image), reference_of(model, state, image), 1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 2), (5, 5)])
def test_bias_table(shape: tuple[int, int]) -> None:
    height, width = shape
    bias = DynamicPositionBias(32, num_heads=3).double()
    state = {f"pos.{name}": value for name, value in random_weights(bias).items()}
    bias.load_state_dict(random_weights(bias))
    places = list(itertools.product(range(height), range(width)))
    expected = reference_bias(state, "pos", places)
    table = bias(height, width)
    assert table.shape == (2 * height - 1, 2 * width - 1, 3)
    torch.testing.assert_close(expand_table(table), expected)
    larger = bias(height + 2, width + 3)
    torch.testing.assert_close(expand_table(crop_table(larger, height, width)), expected)


def test_bias_table_is_exact_under_autocast() -> None:
    bias = DynamicPositionBias(32, num_heads=3)
    bias.load_state_dict(random_weights(bias))
    with torch.no_grad():
        expected = bias(2, 300)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(bias(2, 300), expected)


# --- Architectures and maps ---------------------------------------------------------------------

PARAMETERS = {
    "tiny": 27.8,
    "small": 30.7,
    "base": 52.0,
    "large": 92.0,
    "pp-small": 23.3,
    "pp-base": 52.0,
    "pp-large": 92.0,
    "pp-huge": 96.0,
}


@pytest.fixture
def without_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave new parameters uninitialised, which makes large models quickly."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize(("arch", "millions"), PARAMETERS.items(), ids=PARAMETERS)
def test_parameter_count(arch: str, millions: float, without_initialisation: None) -> None:
    model = CrossFormer(arch, out_indices=(3,), final_norm=True)
    classes = 1000
    head = model.out_channels[0] * classes + classes
    count = head + sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("short", "name"), [("t", "tiny"), ("S", "small"), ("pp-s", "pp-small"), ("pp-b", "pp-base")]
)
def test_short_names(short: str, name: str, without_initialisation: None) -> None:
    assert CrossFormer(short).arch == CrossFormer(name).arch


def test_registered_under_its_bare_name() -> None:
    model = MODELS.build({"type": "CrossFormer", "arch": FAMILIES["tiny"], "out_indices": [1]})
    assert isinstance(model, CrossFormer)
    assert model.out_indices == (1,)


def test_groups_as_arguments_replace_those_of_the_architecture() -> None:
    arch = {name: FAMILIES["small"][name] for name in ("embed_dims", "depths", "num_heads")}
    model = CrossFormer(arch, group_size=5, interval=[3, 2, (1, 4, 2), 1], drop_path_rate=0.25)
    assert model.arch.group_size == ((5, 5), (5, 5), (5, 5, 5), (5, 5))
    assert model.arch.interval == ((3, 3), (2, 2), (1, 4, 2), (1, 1))
    replaced = CrossFormer(
        FAMILIES["small"], group_size=5, interval=[3, 2, (1, 4, 2), 1], drop_path_rate=0.25
    )
    assert replaced.arch == model.arch


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (96, 64), (101, 65), (63, 200), (35, 36)])
@every_mode
def test_map_sizes(lda_mode: str, size: tuple[int, int]) -> None:
    model = build(lda_mode=lda_mode)
    with torch.no_grad():
        maps = model(random_image(*size, batch=2))
    for stage, m in enumerate(maps):
        height, width = (-(-side // (4 * 2**stage)) for side in size)
        assert m.shape == (2, 32 * 2**stage, height, width)
        assert m.is_contiguous()


def test_padding_pixels_equal_zero_pixels_for_the_stem() -> None:
    model = build()
    image = random_image(33, 47)
    padded = nn.functional.pad(image, (0, 1, 0, 3))
    with torch.no_grad():
        assert_maps_equal(model(image), model(padded))


@pytest.mark.parametrize("out_indices", [(0,), (3,), (1, 2), (0, 3), (0, 1, 2)])
def test_out_indices_select_maps(out_indices: Sequence[int]) -> None:
    full, part = build(), build(out_indices=out_indices)
    assert full.out_channels == (32, 64, 128, 256)
    assert part.out_channels == tuple(full.out_channels[i] for i in out_indices)
    image = random_image(40, 56)
    with torch.no_grad():
        maps = full(image)
        assert_maps_equal(part(image), [maps[i] for i in out_indices])


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_meta_device_gives_shapes(backend: str) -> None:
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
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, height, width, 32, generator=generator)
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
@every_mode
def test_earlier_sizes_leave_no_trace(lda_mode: str, training: bool) -> None:
    small, large = random_image(32, 32), random_image(101, 65)
    with torch.set_grad_enabled(training):
        fresh_small = build("small", lda_mode).train(training)(small)
        fresh_large = build("small", lda_mode).train(training)(large)
        model = build("small", lda_mode).train(training)
        for image, expected in ((small, fresh_small), (large, fresh_large)) * 2:
            assert_maps_equal(model(image), expected)
        model = build("small", lda_mode).train(training)
        for image, expected in ((large, fresh_large), (small, fresh_small)):
            assert_maps_equal(model(image), expected)


@every_backend
@every_mode
def test_samples_of_a_batch_are_independent(lda_mode: str, backend: str) -> None:
    model = build("pp-small", lda_mode, attn_backend=backend).double()
    images = random_image(44, 65, batch=2).double()
    with torch.no_grad():
        together = model(images)
        for i in range(2):
            alone = model(images[i : i + 1])
            assert_maps_close([m[i : i + 1] for m in together], alone, 1e-12)


def module_state(model: nn.Module) -> dict[tuple[str, str], object]:
    """Every attribute of every module but the bias cache; tensors by identity."""
    state = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                value = {entry: id(part) for entry, part in value.items()}
            if key != "_cache":
                state[name, key] = copy.deepcopy(value)
    return state


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_backend
def test_forward_changes_no_state(backend: str, training: bool) -> None:
    model = build("pp-small", "adaptive_interval", attn_backend=backend).train(training)
    before, values = module_state(model), copy.deepcopy(model.state_dict())
    for size in ((32, 32), (101, 65), (32, 96)):
        model(random_image(*size))
    assert module_state(model) == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name


# --- Training and evaluation --------------------------------------------------------------------


def test_train_and_eval_return_the_model() -> None:
    model = CrossFormer(FAMILIES["tiny"])
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())
    assert model.train(False) is model
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("family", ["small", "pp-small"])
def test_initial_weights(family: str) -> None:
    torch.manual_seed(0)
    model = CrossFormer(FAMILIES[family], final_norm=True)
    linear = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            linear.append(module.weight.detach().flatten())
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):  # PyTorch's default: uniform, of this bound
            bound = module.weight[0].numel() ** -0.5
            assert 0.7 * bound < module.weight.abs().max() <= bound
            assert 0 < module.bias.abs().max() <= bound
    weights = torch.cat(linear)
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert weights.mean().abs() < 1e-3
    assert weights.abs().max() < 0.12


def test_init_weights_without_a_checkpoint_keeps_the_weights() -> None:
    model = CrossFormer(FAMILIES["tiny"])
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_init_weights_sets_what_was_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = CrossFormer(FAMILIES["tiny"])
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Linear))


INIT_CFG_FORMS = {
    "plain": lambda form: form,
    "prefix with a dot": lambda form: {**form, "prefix": "backbone."},
    "prefix without one": lambda form: {**form, "prefix": "backbone"},
    "no prefix": lambda form: {**form, "prefix": None},
    "a list": lambda form: [form],
    "the class": lambda form: {**form, "type": PretrainedInit},
    "map_location": lambda form: {**form, "map_location": "cpu"},
}


@pytest.mark.parametrize("form", INIT_CFG_FORMS)
def test_every_form_of_init_cfg_loads(tmp_path: Path, form: str) -> None:
    source = CrossFormer(FAMILIES["tiny"])
    names = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": {**names, "neck.weight": torch.ones(1)}}, tmp_path / "w.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    model = CrossFormer(FAMILIES["tiny"], init_cfg=INIT_CFG_FORMS[form](init_cfg))
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_an_init_cfg_with_more_is_refused() -> None:
    form = dict(type="Pretrained", checkpoint="w.pth", layer="Linear")
    with pytest.raises(ValueError, match="init_cfg must be .*'layer'"):
        CrossFormer(FAMILIES["tiny"], init_cfg=form).init_weights()


def test_drop_path_rates_rise_linearly() -> None:
    model = CrossFormer(FAMILIES["small"], drop_path_rate=0.4)
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.4 * i / 8 for i in range(9)], abs=1e-6)


def test_drop_path_rate_of_the_architecture() -> None:
    model = CrossFormer({**FAMILIES["small"], "drop_path_rate": 0.3})
    assert model.layers[3].blocks[1].drop_path.rate == pytest.approx(0.3)
    model = CrossFormer({**FAMILIES["small"], "drop_path_rate": 0.3}, drop_path_rate=0.0)
    assert model.layers[3].blocks[1].drop_path.rate == 0


def test_drop_path_drops_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    x = torch.rand(20000, 2, 3) + 1
    factors = layer(torch.zeros_like(x), x) / x
    assert torch.allclose(factors, factors[:, :1, :1])
    dropped = factors[:, 0, 0] == 0
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.015)
    assert torch.allclose(factors[~dropped], torch.tensor(4 / 3))
    assert factors.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.eval()(x, x), 2 * x)


def test_drop_path_scales_exactly_in_bfloat16() -> None:
    torch.manual_seed(0)
    x = torch.full((64, 4), 0.9, dtype=torch.bfloat16)  # 0.8984375
    found = DropPath(0.1).train()(torch.zeros_like(x), x)
    # 1 / 0.9 rounded to bfloat16 before the product would give 0.99609375.
    assert set(found.unique().tolist()) == {0.0, 1.0}


def test_block_drops_each_branch_on_its_own() -> None:
    arguments = {"group_size": 2, "interval": 1, "lda_mode": "fixed_group", "long_distance": False}
    block = CrossFormerBlock(32, 2, drop_path_rate=0.5, **arguments).double()
    block.load_state_dict(random_weights(block))
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, 4, 4, 32, generator=generator).double()
    with torch.no_grad():
        plan = plan_groups(4, 4, **arguments)
        attended = block.attn(block.norm1(x), plan)
        # What a sample can come out as, when kept branches count double.
        outcomes = []
        for first, second in itertools.product((0, 2), repeat=2):
            y = x + first * attended
            outcomes.append(y + second * block.mlp(block.norm2(y)))
        torch.manual_seed(0)
        samples = block.train()(x.expand(64, -1, -1, -1))
    counts = [sum(torch.allclose(sample, outcome[0]) for sample in samples) for outcome in outcomes]
    assert sum(counts) == 64
    assert min(counts) > 4


def test_drop_path_does_nothing_in_evaluation() -> None:
    image = random_image(40, 40)
    with torch.no_grad():
        assert_maps_equal(build(drop_path_rate=0.9)(image), build()(image))
        torch.manual_seed(0)
        trained = build(drop_path_rate=0.9).train()(image)
        assert not torch.equal(trained[3], build()(image)[3])


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@every_backend
def test_checkpointing_equals_plain(backend: str, drop_path_rate: float) -> None:
    arguments = {"attn_backend": backend, "drop_path_rate": drop_path_rate}
    plain = build("pp-small", **arguments).train()
    saving = build("pp-small", with_cp=True, **arguments).train()
    results = []
    for model in (plain, saving):
        image = random_image(44, 65, batch=3).requires_grad_()
        torch.manual_seed(5)
        maps = model(image)
        weigh(maps).backward()
        results.append((maps, {"image": image.grad, **gradients(model)}))
    (maps, grads), (saved_maps, saved_grads) = results
    assert_maps_close(saved_maps, maps, 1e-6)
    assert saved_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(saved_grads[name], grad, rtol=1e-6, atol=1e-6, msg=name)


def test_checkpointing_recomputes_blocks_in_the_backward_pass() -> None:
    model = build(with_cp=True).train()
    calls = []
    for stage in model.layers:
        for block in stage.blocks:
            block.attn.register_forward_hook(lambda *_: calls.append(1))
    maps = model(random_image(32, 32))
    assert len(calls) == 9
    weigh(maps).backward()
    assert len(calls) == 18
    calls.clear()
    with torch.no_grad():
        model(random_image(32, 32))
    assert len(calls) == 9


def frozen_names(model: CrossFormer, stages: int) -> set[str]:
    """Names of the parameters that ``frozen_stages=stages`` is about."""
    prefixes = () if stages < 0 else ("patch_embed.", *(f"layers.{i}." for i in range(stages)))
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes or "-")}


@pytest.mark.parametrize("stages", [-1, 0, 1, 2, 3, 4])
def test_frozen_stages(stages: int) -> None:
    model = build(frozen_stages=stages, final_norm=True, drop_path_rate=0.5)
    frozen = frozen_names(model, stages)
    for mode in (True, False, True):
        assert model.train(mode) is model
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (name not in frozen), name
        for name, module in model.named_modules():
            if name.startswith(("patch_embed", "layers.")):
                parts = name.split(".")
                is_frozen = stages >= (0 if parts[0] == "patch_embed" else int(parts[1]) + 1)
                assert module.training == (mode and not is_frozen), name
    assert model.norm.training


@pytest.mark.parametrize("with_cp", [False, True], ids=["eager", "checkpointed"])
@pytest.mark.parametrize("stages", [-1, 0, 1, 3])
def test_training_step_with_frozen_stages(stages: int, with_cp: bool) -> None:
    model = build(frozen_stages=stages, with_cp=with_cp, drop_path_rate=0.1).train()
    frozen = frozen_names(model, stages)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    weigh(model(random_image(40, 56, batch=2))).backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name


def test_everything_frozen() -> None:
    model = build(frozen_stages=4, drop_path_rate=0.9)
    image = random_image(40, 56)
    expected = model(image)
    maps = model.train()(image)
    assert not any(m.requires_grad for m in maps)
    assert_maps_equal(maps, expected)


def test_bfloat16_autocast() -> None:
    model = build("small")
    image = random_image(64, 96)
    with torch.no_grad():
        expected = model(image)
        for backend in CPU_BACKENDS:
            lower = build("small", attn_backend=backend)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                maps = lower(image)
            for m, full in zip(maps, expected, strict=True):
                error = (m.float() - full).square().mean().sqrt() / full.std()
                assert m.isfinite().all()
                assert 1e-4 < error < 0.02


def test_training_after_inference_mode() -> None:
    model, fresh = build(), build()
    image = random_image(40, 56)
    with torch.inference_mode():
        model(image)
    for one in (model, fresh):
        one.train()
        weigh(one(image)).backward()
        torch.optim.SGD(one.parameters(), lr=1e-3).step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_model_made_in_inference_mode() -> None:
    image = random_image(40, 56)
    with torch.inference_mode():
        model = build()
        for _ in range(2):
            maps = model(image)
    with torch.no_grad():
        assert_maps_equal(maps, build()(image))


# --- Errors -------------------------------------------------------------------------------------


def changed(**entries: object) -> dict:
    return {**FAMILIES["small"], **entries}


def without(name: str) -> dict:
    return {key: value for key, value in FAMILIES["small"].items() if key != name}


# What is wrong, the exception, and what its message names.
BAD_ARGUMENTS = [
    ({"arch": "huge"}, ValueError, ["'huge'", "pp-huge"]),
    ({"arch": 3}, TypeError, ["arch", "3"]),
    ({"arch": without("embed_dims")}, ValueError, ["'embed_dims'"]),
    ({"arch": without("depths")}, ValueError, ["'depths'"]),
    ({"arch": without("num_heads")}, ValueError, ["'num_heads'"]),
    ({"arch": without("group_size")}, ValueError, ["group_size is missing"]),
    ({"arch": without("interval")}, ValueError, ["interval is missing"]),
    ({"arch": changed(depth=(2, 2, 3, 2))}, ValueError, ["'depth'", "depths"]),
    ({"arch": changed(depths=(2, 2, 6))}, ValueError, ["depths", "(2, 2, 6)"]),
    ({"arch": changed(depths=5)}, ValueError, ["depths", "5"]),
    ({"arch": changed(depths=(2, 0, 3, 2))}, ValueError, ["depths", "[1]", "0"]),
    ({"arch": changed(depths=(2, 2, 3, 2.5))}, TypeError, ["depths", "[3]", "2.5"]),
    ({"arch": changed(num_heads=(3, 6, 12))}, ValueError, ["num_heads", "(3, 6, 12)"]),
    ({"arch": changed(num_heads=(3, 7, 12, 24))}, ValueError, ["num_heads", "[1]", "7", "96"]),
    ({"arch": changed(num_heads=(3, 6, -12, 24))}, ValueError, ["num_heads", "[2]", "-12"]),
    ({"arch": changed(embed_dims=20)}, ValueError, ["embed_dims", "8", "20"]),
    ({"arch": changed(embed_dims=8)}, ValueError, ["embed_dims", "16", "8"]),
    ({"arch": changed(embed_dims=48.0)}, TypeError, ["embed_dims", "48.0"]),
    ({"arch": changed(group_size=(7, 7, 7))}, ValueError, ["group_size", "(7, 7, 7)"]),
    ({"arch": changed(drop_path_rate=1.5)}, ValueError, ["drop_path_rate", "1.5"]),
    ({"lda_mode": "fixed"}, ValueError, ["lda_mode", "'fixed'", *LDA_MODES]),
    ({"lda_mode": None}, ValueError, ["lda_mode", "None"]),
    ({"attn_backend": "flash"}, ValueError, ["attn_backend", "'flash'", *ATTN_BACKENDS]),
    *(
        ({name: value}, error, [name, *parts])
        for name in ("group_size", "interval")
        for value, error, parts in [
            (0, ValueError, ["not 0"]),
            (-1, ValueError, ["not -1"]),
            ((7, 0, 7, 7), ValueError, ["[1]", "not 0"]),
            ((7, 7, (7, 7, -1), 7), ValueError, ["[2]", "not -1"]),
            ((7, 7, 7), ValueError, ["4", "(7, 7, 7)"]),
            ((7, 7, 7, 7, 7), ValueError, ["4", "(7, 7, 7, 7, 7)"]),
            ((7, 7, (7, 7), 7), ValueError, ["[2]", "3", "(7, 7)"]),
            (7.0, TypeError, ["7.0"]),
            ((7, 7, 7, 3.5), TypeError, ["[3]", "3.5"]),
            ("7", TypeError, ["'7'"]),
            (True, TypeError, ["True"]),
        ]
    ),
    ({"out_indices": ()}, ValueError, ["out_indices", "()"]),
    ({"out_indices": (0, 4)}, ValueError, ["out_indices", "(0, 4)"]),
    ({"out_indices": (-1,)}, ValueError, ["out_indices", "(-1,)"]),
    ({"out_indices": (2, 1)}, ValueError, ["out_indices", "(2, 1)"]),
    ({"out_indices": (1, 1)}, ValueError, ["out_indices", "(1, 1)"]),
    ({"out_indices": (1.0, 2.0)}, ValueError, ["out_indices", "(1.0, 2.0)"]),
    ({"out_indices": 3}, ValueError, ["out_indices", "not 3"]),
    ({"out_indices": None}, ValueError, ["out_indices", "None"]),
    ({"out_indices": (0, 2), "final_norm": True}, ValueError, ["final_norm", "(0, 2)"]),
    ({"frozen_stages": -2}, ValueError, ["frozen_stages", "-2"]),
    ({"frozen_stages": 5}, ValueError, ["frozen_stages", "5"]),
    ({"frozen_stages": 1.5}, ValueError, ["frozen_stages", "1.5"]),
    ({"drop_path_rate": -0.1}, ValueError, ["drop_path_rate", "-0.1"]),
    ({"drop_path_rate": 1.0}, ValueError, ["drop_path_rate", "1.0"]),
    ({"drop_path_rate": "0.1"}, TypeError, ["drop_path_rate", "'0.1'"]),
    ({"arch": changed(amplitude_cooling="no")}, TypeError, ["amplitude_cooling", "'no'"]),
    ({"in_channels": 0}, ValueError, ["in_channels", "0"]),
    ({"in_channels": "3"}, TypeError, ["in_channels", "'3'"]),
    ({"with_cp": "False"}, TypeError, ["with_cp", "'False'"]),
    ({"frozen_stages": True}, ValueError, ["frozen_stages", "True"]),
    ({"drop_path_rate": float("nan")}, ValueError, ["drop_path_rate", "nan"]),
]


def describe(value: object) -> str:
    return repr(value).replace(" ", "") if not isinstance(value, type) else value.__name__


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    BAD_ARGUMENTS,
    ids=[f"{'-'.join(case[0])}-{case[2][-1]}" for case in BAD_ARGUMENTS],
)
def test_bad_arguments(arguments: dict, error: type[Exception], parts: list[str]) -> None:
    with pytest.raises(error) as caught:
        CrossFormer(**{"arch": FAMILIES["small"], **arguments})
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((1, 3, 31, 64), "31 x 64"),
        ((1, 3, 64, 31), "64 x 31"),
        ((1, 3, 0, 64), "0 x 64"),
        ((1, 1, 64, 64), "(1, 1, 64, 64)"),
        ((1, 4, 64, 64), "(1, 4, 64, 64)"),
        ((3, 64, 64), "(3, 64, 64)"),
        ((1, 1, 3, 64, 64), "(1, 1, 3, 64, 64)"),
    ],
)
def test_bad_images(shape: tuple[int, ...], part: str) -> None:
    with pytest.raises(ValueError, match="image must be") as caught:
        CrossFormer(FAMILIES["tiny"])(torch.zeros(shape))
    assert part in str(caught.value)


def test_other_numbers_of_image_channels() -> None:
    model = CrossFormer(FAMILIES["tiny"], in_channels=4).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 4, 32, 32))[0].shape == (1, 32, 8, 8)
    with pytest.raises(ValueError, match="image must be"):
        model(torch.zeros(1, 3, 32, 32))


@every_backend
def test_an_empty_batch_gives_empty_maps(backend: str) -> None:
    model = CrossFormer(FAMILIES["small"], attn_backend=backend)
    shapes = [tuple(m.shape[2:]) for m in model(torch.zeros(1, 3, 64, 70))]
    empty = model(torch.zeros(0, 3, 64, 70))
    assert [(m.shape[0], *m.shape[2:]) for m in empty] == [(0, *shape) for shape in shapes]
