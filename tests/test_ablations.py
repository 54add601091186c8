"""The papers' ablations: their sizes, their checkpoints, and the rest of the project with them.

Values and gradients are compared with the slow reference in test_backbone.py.
"""

import re
from itertools import permutations

import pytest
import torch
from conftest import CONFIGS, SMALL_ARCH, complexity_of
from test_fast_graph import assert_same, lively

from crossformer_mm.analysis.variants import ABLATIONS
from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.layer_decay import CrossFormerLayerDecayConstructor
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.build import build_model
from crossformer_mm.models.state_dict import find_architecture, find_variant, load_backbone
from crossformer_mm.utils.errors import CheckpointError

CHANNELS, DEPTHS = (96, 192, 384, 768), (2, 2, 6, 2)  # of CrossFormer-S
BLOCKS = list(zip(CHANNELS, DEPTHS, (8, 4, 2, 1), strict=True))
NO_POSITION = 30_633_160
# A convolution R x R and a norm for each block, with R from 8 to 2.
REDUCTION = sum(n * ((r * c) ** 2 + c + 2 * c) for c, n, r in BLOCKS if r > 1)
# The stem's kernels of 8, 16 and 32 have 24, 12 and 12 channels; 4 x 4 has half between stages.
LARGER_KERNELS = 3 * (24 * (8**2 - 4**2) + 12 * (16**2 - 4**2) + 12 * (32**2 - 4**2))
LARGER_KERNELS += sum(c * c * (4**2 - 2**2) for c in CHANNELS[:3])
SIZES = {  # CrossFormer, table 6, and section 9 of the definition; or by the sums above
    "dpb-residual": (30_657_394, 4.9098),
    "rpb": (NO_POSITION + 169 * (2 * 3 + 2 * 6 + 6 * 12 + 2 * 24), 4.9062),
    "ape": (30_934_216, 4.9061),
    "none": (NO_POSITION, None),
    "swin": (30_657_394, None),
    "pvt": (NO_POSITION + REDUCTION, None),
    "no-cel": (30_657_394 - LARGER_KERNELS, None),
}
VARIANTS = {"published": {}, **ABLATIONS}
every_variant = pytest.mark.parametrize("variant", ABLATIONS)


def backbone_of(variant: str, **options: object) -> CrossFormer:
    return lively(arch=SMALL_ARCH, lda_mode="fixed_group", **VARIANTS[variant], **options)


@every_variant
def test_a_config_has_the_size_of_the_table(variant):
    config = CONFIGS / f"classification/ablations/crossformer-small_{variant}_8xb128_in1k.py"
    params, gflops = SIZES[variant]
    complexity = complexity_of(config)
    assert complexity.params == params
    if gflops is not None:
        assert complexity.flops / 1e9 == pytest.approx(gflops, rel=1e-3)
    row = f"| {params:,} | {complexity.flops / 1e9:.4f} |"
    [line] = [x for x in (config.parent / "README.md").read_text().splitlines() if config.stem in x]
    assert row in line


def test_a_checkpoint_of_another_variant_is_refused_by_name():
    weights = {name: backbone_of(name).state_dict() for name in VARIANTS}
    for theirs, ours in permutations(VARIANTS, 2):
        model = backbone_of(ours)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        argument, value = next(iter((VARIANTS[theirs] or VARIANTS[ours]).items()))
        if not VARIANTS[theirs]:
            value = dict(position_bias="dpb", long_range="lda", cross_scale=True)[argument]
        said = re.escape(f"{argument}={value!r}")
        with pytest.raises(CheckpointError, match=f"w.pth does not fit .*are those of .*{said}"):
            load_backbone(model, dict(state_dict=weights[theirs]), "w.pth")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@every_variant
def test_a_variants_own_checkpoint_loads_and_so_do_weights_without_its_mark(variant, tmp_path):
    model, other = backbone_of(variant), backbone_of(variant)
    other.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    torch.save(dict(state_dict=other.state_dict()), tmp_path / "w.pth")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    loaded = backbone_of(variant, init_cfg=pretrained)
    loaded.init_weights()
    for name, value in loaded.named_parameters():
        assert torch.equal(value, model.get_parameter(name) + 1)
    model.load_state_dict(dict(other.named_parameters()))  # as from elsewhere


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_conversion_keeps_the_variant(tmp_path, suffix):
    options = dict(long_range="swin", position_bias="rpb", cross_scale=False)
    torch.save(CrossFormer("tiny", **options).state_dict(), tmp_path / "old.pth")
    convert_checkpoint(tmp_path / "old.pth", tmp_path / f"new.{suffix}")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / f"new.{suffix}"))
    model = CrossFormer("tiny", **options, init_cfg=pretrained)
    model.init_weights()
    assert find_variant(model.state_dict()) == options
    assert find_architecture(model.state_dict()) == "tiny"


def test_a_table_of_another_group_size_is_refused_with_what_to_do(tmp_path):
    options = dict(arch=SMALL_ARCH, position_bias="rpb")
    weights = CrossFormer(**options, group_size=7).state_dict()
    with pytest.raises(CheckpointError, match=r"group_size=7, not 4, .*of another shape"):
        load_backbone(CrossFormer(**options), weights, "w.pth")
    model = CrossFormer(**options)
    assert len(model(torch.zeros(1, 3, 96, 128))) == 4
    with pytest.raises(ValueError, match="4 x 4 tokens, .* needs 5 x 4: .*'fixed_group'"):
        model(torch.zeros(1, 3, 160, 128))  # under fixed_interval, groups grow with the image


@every_variant
def test_recomputing_blocks_changes_nothing_and_a_frozen_stem_does_not_learn(variant):
    image, grads = torch.randn(2, 3, 64, 75), []
    for with_cp in (False, True):
        model = backbone_of(variant, with_cp=with_cp, frozen_stages=1).train()
        sum(m.square().mean() for m in model(image)).backward()
        learns = {name for name, value in model.named_parameters() if value.grad is not None}
        frozen = ("patch_embed.", "layers.0.")
        assert learns == {n for n, _ in model.named_parameters() if not n.startswith(frozen)}
        grads.append(
            [value.grad for _, value in model.named_parameters() if value.grad is not None]
        )
    torch.testing.assert_close(*grads)


@every_variant
@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 93, 141), (1, 3, 32, 101)])
def test_the_graph_for_runtimes_computes_the_same(variant, shape):
    options = {} if variant == "pvt" else dict(attn_backend="eager")
    assert_same(backbone_of(variant, **options), torch.randn(shape))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["ape", "swin", "pvt"])
def test_it_runs_in_onnxruntime(variant, tmp_path):
    from crossformer_mm.deploy.graph import fast_graph

    onnxruntime = pytest.importorskip("onnxruntime")
    model, image = backbone_of(variant), torch.randn(1, 3, 93, 70)
    with fast_graph(model), torch.no_grad():
        torch.onnx.export(model, (image,), dynamo=True).save(tmp_path / "model.onnx")
        expected = model(image)
    found = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(
        None, {"image": image.numpy()}
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one), other, rtol=1e-3, atol=1e-3)


@every_variant
@pytest.mark.parametrize(
    "config",
    [
        "classification/crossformer-nano_toy-imagenet",
        "detection/retinanet_crossformer-nano_fpn_toy-coco",
        "segmentation/fpn_crossformer-nano_toy-ade",
    ],
)
def test_every_library_builds_it_and_no_weight_of_the_stem_is_left_out_of_layer_decay(
    config, variant
):
    cfg = load_config(str(CONFIGS / f"{config}.py"))
    cfg.model.backbone.update(lda_mode="fixed_group", **ABLATIONS[variant])
    model = build_model(cfg)
    assert len(model.backbone(torch.randn(1, 3, 33, 75))) == len(model.backbone.out_indices)
    wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1.0))
    optimizer = CrossFormerLayerDecayConstructor(wrapper, dict(decay_rate=0.5))(model).optimizer
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len({rates[p] for p in model.backbone.patch_embed.parameters()}) == 1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(position_bias="sine"), ValueError, "unknown position_bias 'sine': choose one of dpb"),
        (dict(long_range="nat"), ValueError, "unknown long_range 'nat': choose one of lda, swin"),
        (dict(cross_scale="no"), TypeError, "cross_scale must be True or False, not 'no'"),
        (dict(long_range="pvt", position_bias="rpb"), ValueError, "must be 'dpb', .* not 'rpb'"),
        (dict(long_range="pvt", attn_backend="triton"), ValueError, "runs as auto, eager, sdpa"),
    ],
)
def test_a_bad_argument_is_named(options, error, said):
    with pytest.raises(error, match=said):
        CrossFormer(SMALL_ARCH, **options)
