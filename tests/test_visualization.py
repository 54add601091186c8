"""tools/visualize.py draws what the backbone computes, found in another way."""

import random
import re
from itertools import product

import numpy as np
import pytest
import torch
from conftest import NANO_CONFIG, ROOT, tool_main
from PIL import Image
from reference import linear, reference_bias, reference_groups
from test_bad_data import CONFIG_OF

from crossformer_mm import CrossFormer
from crossformer_mm.engine.config import load_config
from crossformer_mm.models.grouping import LDA_MODES, plan_groups
from crossformer_mm.visualization import figures
from crossformer_mm.visualization.attention import (
    attention_of_token,
    bias_table,
    group_of_token,
    record,
)
from crossformer_mm.visualization.inputs import InputError, build_backbone, read_image

TOOL = ROOT / "tools/visualize.py"
ARCH = dict(embed_dims=32, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8), interval=(3, 2, 2, 1))
HEIGHT, WIDTH = 72, 104  # stage 0: 18 x 26 tokens, not a multiple of any region


@pytest.fixture
def image_file(tmp_path):
    """An image of 120 x 160 pixels."""
    rows, columns = np.mgrid[:120, :160]
    pixels = np.stack([rows * 2, columns, (rows // 20 + columns // 20) % 2 * 200], axis=-1)
    file = tmp_path / "image.png"
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


@pytest.fixture(scope="module", params=LDA_MODES)
def recorded(request):
    """A backbone, and what was recorded of it."""
    torch.manual_seed(0)
    backbone = CrossFormer(ARCH, group_size=4, lda_mode=request.param).eval()
    for parameter in backbone.parameters():  # so that attention is far from uniform
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone, record(backbone, torch.randn(1, 3, HEIGHT, WIDTH))


def test_the_group_of_a_token_is_that_of_the_definition():
    rng = random.Random(0)
    for lda_mode, long_distance in [*product(LDA_MODES, (False, True))] * 20:
        height, width = rng.randint(1, 20), rng.randint(1, 20)
        token = rng.randrange(height), rng.randrange(width)
        rule = rng.randint(1, 7), rng.randint(1, 5), lda_mode, long_distance
        mask = group_of_token(plan_groups(height, width, *rule), token)
        groups = [{place for place, _ in m} for m in reference_groups(height, width, *rule)]
        expected = next(group for group in groups if token in group)
        assert set(map(tuple, mask.nonzero().tolist())) == expected, (height, width, token, rule)


@torch.no_grad()
def test_recording_leaves_the_backbone_as_it_was(recorded):
    backbone, _ = recorded
    image = torch.randn(1, 3, HEIGHT, WIDTH)
    before = backbone(image)
    recording = record(backbone, image)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    for one, other, stage_map in zip(before, backbone(image), recording.stage_maps, strict=True):
        assert torch.equal(one, other) and torch.equal(one, stage_map.permute(0, 3, 1, 2))
    assert [(c.stage, c.block, c.long_distance) for c in recording.calls] == [
        (stage, block, block == 1)
        for stage, depth in enumerate(ARCH["depths"])
        for block in range(depth)
    ]


def test_attention_and_bias_equal_the_definition_over_the_listed_group(recorded):
    backbone, recording = recorded
    state = {name: value.double() for name, value in backbone.state_dict().items()}
    for call in recording.calls:
        heads, block = ARCH["num_heads"][call.stage], backbone.layers[call.stage].blocks[call.block]
        groups = reference_groups(
            *call.x.shape[1:3], block.group_size, block.interval, block.lda_mode, call.long_distance
        )
        prefix = f"layers.{call.stage}.blocks.{call.block}.attn"
        qkv = linear(state, f"{prefix}.qkv", call.x[0].double()).unflatten(-1, (3, heads, -1))
        table, last = bias_table(call), (call.plan.group_height - 1, call.plan.group_width - 1)
        assert table.shape == (heads, 2 * last[0] + 1, 2 * last[1] + 1)
        for members in (groups[0], groups[-1]):  # the last has padding, if any has
            tokens, places = zip(*members, strict=True)
            bias = reference_bias(state, f"{prefix}.pos", places)[:, -1]  # of the last query
            down, right = (torch.tensor(places[-1]) - torch.tensor(places)).T
            found = table[:, last[0] + down, last[1] + right]
            assert torch.allclose(found.double(), bias, atol=1e-4)
            rows, columns = torch.tensor(tokens).T
            query, keys = qkv[tokens[-1]][0], qkv[rows, columns, 1]
            logits = (keys * query).sum(dim=-1).T / query.shape[-1] ** 0.5 + bias
            expected = torch.zeros(heads, *call.x.shape[1:3], dtype=torch.float64)
            expected[:, rows, columns] = logits.softmax(dim=1)
            attention = attention_of_token(call, tokens[-1])
            assert torch.allclose(attention.double(), expected, atol=1e-5)
            assert attention.std() > 0


def test_tokens_are_drawn_where_they_are(recorded):
    backbone, _ = recorded
    sizes, token, pixels = [(18, 26), (9, 13)], (8, 12), np.zeros((70, 101, 3), np.uint8)
    figure = figures.draw_groups(pixels, backbone, sizes, {1: token})
    assert len(figure.axes) == 4
    for axes, long_distance in zip(figure.axes, (False, True, True, True), strict=True):
        rule = axes.get_title().split("\n")[0].removeprefix("LDA ")
        mode = rule if long_distance else backbone.layers[1].blocks[1].lda_mode
        groups = reference_groups(9, 13, 4, ARCH["interval"][1], mode, long_distance)
        group = next(g for g in ([place for place, _ in m] for m in groups) if token in g)
        assert f"\n{len(group)} tokens, " in axes.get_title()
        overlay = axes.images[1]
        assert list(overlay.get_extent()) == [-0.5, 13 * 8 - 0.5, 9 * 8 - 0.5, -0.5]
        assert set(map(tuple, np.argwhere(overlay.get_array()[..., 3] > 0))) == set(group)
        assert axes.get_xlim() == (-0.5, 100.5) and axes.get_ylim() == (69.5, -0.5)
        for ring in axes.get_lines():  # in the part of the token that the image has
            (x,), (y,) = ring.get_data()
            assert 96 <= x <= 100 and 64 <= y <= 69


@pytest.mark.parametrize(
    ("task", "size"),
    [("classification", (112, 112)), ("detection", (192, 256)), ("segmentation", (160, 224))],
)
def test_an_image_is_prepared_as_for_testing(image_file, task, size):
    cfg = load_config(str(CONFIG_OF[task]))
    pixels, inputs = read_image(str(image_file), cfg)
    assert pixels.shape == (*size, 3) and inputs.shape == (1, 3, *size)
    assert pixels[0, 0, 0] < pixels[-1, 0, 0] > 200  # red grows downwards
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    assert np.allclose(inputs[0].permute(1, 2, 0), (pixels - mean) / std, atol=1e-5)
    pixels, inputs = read_image(str(image_file), cfg, (40, 50))
    assert pixels.shape == (40, 50, 3) and inputs.shape == (1, 3, 40, 50)


def test_a_model_of_four_channels_gets_them(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 96, 4), np.uint8)).save(tmp_path / "four.png")
    cfg = load_config(str(NANO_CONFIG))
    cfg.test_dataloader.dataset.pipeline[0].color_type = "unchanged"
    cfg.model.data_preprocessor.update(mean=[0.0], std=[1.0], bgr_to_rgb=False)
    pixels, inputs = read_image(str(tmp_path / "four.png"), cfg, (64, 96))
    assert inputs.shape == (1, 4, 64, 96)
    assert np.array_equal(inputs[0, :3].flip(0).permute(1, 2, 0), pixels)


@pytest.mark.fault("demo, visualize, explore")
@pytest.mark.parametrize("image", ["thin.png", "none.png", "test_visualization.py"])
def test_an_image_that_cannot_be_used_is_named_in_one_line(tmp_path, image):
    Image.new("RGB", (1, 3000)).save(tmp_path / "thin.png")
    file = __file__ if image.endswith(".py") else str(tmp_path / image)
    with pytest.raises(InputError, match=rf"^.*{re.escape(image)}.*\Z"):
        read_image(file, load_config(str(NANO_CONFIG)))


def test_a_checkpoint_gives_the_weights(tmp_path):
    cfg = load_config(str(NANO_CONFIG))
    random_one, source = build_backbone(cfg)
    assert source == "random weights"
    weights = {f"backbone.{n}": w + 0.01 for n, w in random_one.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "some.pth")
    loaded, source = build_backbone(cfg, str(tmp_path / "some.pth"))
    assert source == "weights: some.pth" and not loaded.training
    assert all(torch.equal(w, weights[f"backbone.{n}"]) for n, w in loaded.state_dict().items())


@pytest.mark.parametrize("kind", ["groups", "attention", "dpb", "features"])
def test_the_tool_writes_a_picture(capsys, tmp_path, image_file, kind):
    config, out = CONFIG_OF["segmentation"], tmp_path / "new" / f"{kind}.png"
    where = ("--shape", 64, 96, "--stage", 0, 2, "--head", 3, "--out", out)  # stage 0 has no head 3
    tool_main(TOOL, kind, image_file, "--config", config, *where)
    printed = capsys.readouterr().out
    assert ("the weights are random" in printed) == (kind != "groups")
    assert f"Wrote {out}" in printed
    with Image.open(out) as image:
        assert image.format == "PNG" and min(image.size) > 200
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    assert [file.name for file in out.parent.iterdir()] == [out.name]


@pytest.mark.fault("demo, visualize, explore")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--out p.jpg", "--out p.jpg must end with .png"),
        ("--checkpoint no.pth", "--checkpoint no.pth does not exist"),
        (f"--checkpoint {TOOL}", "is not a PyTorch or safetensors checkpoint"),
        ("--stage 4", "--stage 4: this backbone runs stages 0 to 3"),
        ("--stage 2 --token 4 0", "stage 2 has rows 0 to 3 and columns 0 to 5"),
        ("--stage 0 --block 1", "--block 1: stage 0 has blocks 0 to 0"),
        ("--stage 1 --head 2", "--head 2: the chosen blocks have heads 0 to 1"),
        ("--shape 16 64", "--shape 16 64: give at least 32 for each"),
        ("--cfg-options model=3", "no CrossFormer backbone"),
        ("--cfg-options model.backbone.type=ResNet", "no CrossFormer backbone"),
        ("--cfg-options model.backbone.lda_mode=x", "unknown lda_mode 'x'"),
        ("--cfg-options model.backbone.in_channels=4", "image must be (B, 4, H, W)"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(monkeypatch, tmp_path, image_file, options, named):
    monkeypatch.chdir(tmp_path)
    usual = ["--config", NANO_CONFIG, "--out", "p.png", "--shape", 64, 96]
    with pytest.raises(SystemExit, match=rf"^error: .*{re.escape(named)}.*\Z"):
        tool_main(TOOL, "attention", image_file, *usual, *options.split())
    assert list(tmp_path.iterdir()) == [image_file]
