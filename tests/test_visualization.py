"""tools/visualize.py: what it draws is what the backbone computes, found in another way."""

import random
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, tool_main
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from reference import linear, reference_bias, reference_groups

from crossformer_mm import CrossFormer
from crossformer_mm.launch import load_config
from crossformer_mm.models.grouping import LDA_MODES, plan_groups
from crossformer_mm.visualization import canvas, figures
from crossformer_mm.visualization.attention_map import attention_of_token, bias_table
from crossformer_mm.visualization.backbone import build_backbone
from crossformer_mm.visualization.errors import VisualizationError
from crossformer_mm.visualization.feature_map import principal_colours
from crossformer_mm.visualization.groups import choose_tokens, group_mask, map_sizes
from crossformer_mm.visualization.picture import read_picture
from crossformer_mm.visualization.recording import record

TOOL = ROOT / "tools/visualize.py"
ARCH = dict(embed_dims=32, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8), interval=(3, 2, 2, 1))
HEIGHT, WIDTH = 72, 104  # stage 0: 18 x 26 tokens, not a multiple of any region
TASK_CONFIGS = dict(
    classification=CONFIGS / "classification/crossformer-nano_toy-imagenet.py",
    detection=NANO_CONFIG,
    segmentation=CONFIGS / "segmentation/fpn_crossformer-nano_toy-ade.py",
)


@pytest.fixture
def picture_file(tmp_path):
    """A picture of 120 x 160 pixels."""
    rows, columns = np.mgrid[:120, :160]
    pixels = np.stack([rows * 2, columns, (rows // 20 + columns // 20) % 2 * 200], axis=-1)
    file = tmp_path / "picture.png"
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


def backbone_of(lda_mode: str, group_size: int = 4) -> CrossFormer:
    torch.manual_seed(0)
    backbone = CrossFormer(ARCH, group_size=group_size, lda_mode=lda_mode).eval()
    for parameter in backbone.parameters():  # so that attention is far from uniform
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def random_pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=LDA_MODES)
def recorded(request):
    """A backbone, and what was recorded of it."""
    backbone = backbone_of(request.param)
    return backbone, record(backbone, torch.randn(1, 3, HEIGHT, WIDTH))


@pytest.mark.parametrize("lda_mode", LDA_MODES)
@pytest.mark.parametrize("long_distance", [False, True])
def test_the_group_of_a_token_is_that_of_the_definition(lda_mode, long_distance):
    rng = random.Random(0)
    for _ in range(20):
        height, width = rng.randint(1, 20), rng.randint(1, 20)
        token = rng.randrange(height), rng.randrange(width)
        rule = rng.randint(1, 7), rng.randint(1, 5), lda_mode, long_distance
        mask = group_mask(plan_groups(height, width, *rule), token)
        groups = [{place for place, _ in m} for m in reference_groups(height, width, *rule)]
        expected = next(group for group in groups if token in group)
        assert set(map(tuple, mask.nonzero().tolist())) == expected, (height, width, token, rule)


@torch.no_grad()
def test_recording_leaves_the_backbone_as_it_was(recorded):
    backbone, _ = recorded
    image = torch.randn(1, 3, HEIGHT, WIDTH)
    before = backbone(image)
    recording = record(backbone, image)
    after = backbone(image)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    for one, other, stage_map in zip(before, after, recording.stage_maps, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, stage_map.permute(0, 3, 1, 2))
    assert [(c.stage, c.block) for c in recording.calls] == [
        (stage, block) for stage, depth in enumerate(ARCH["depths"]) for block in range(depth)
    ]


def test_attention_equals_a_softmax_over_the_listed_group(recorded):
    backbone, recording = recorded
    state = backbone.double().state_dict()
    backbone.float()
    for call in recording.calls:
        heads, rule = ARCH["num_heads"][call.stage], call.module
        height, width = call.x.shape[1:3]
        groups = reference_groups(
            height, width, rule.group_size, rule.interval, rule.lda_mode, rule.long_distance
        )
        prefix = f"layers.{call.stage}.blocks.{call.block}.attn"
        qkv = linear(state, f"{prefix}.qkv", call.x[0].double())
        for members in (groups[0], groups[-1]):  # the last has padding, if any has
            tokens, places = zip(*members, strict=True)
            bias = reference_bias(state, f"{prefix}.pos", places)
            attention = attention_of_token(call, tokens[-1])
            expected = torch.zeros_like(attention, dtype=torch.float64)
            query = qkv[tokens[-1]][: qkv.shape[-1] // 3].unflatten(0, (heads, -1))
            for head in range(heads):
                keys = [qkv[token].chunk(3)[1].unflatten(0, (heads, -1))[head] for token in tokens]
                logits = torch.stack(keys) @ query[head] / query.shape[-1] ** 0.5
                weights = (logits + bias[head, -1]).softmax(0)
                for token, weight in zip(tokens, weights, strict=True):
                    expected[head][token] = weight
            assert torch.allclose(attention.double(), expected, atol=1e-5)
            assert torch.allclose(attention.sum(dim=(1, 2)), torch.ones(heads), atol=1e-5)
            assert attention.std() > 0


def test_attention_explains_what_the_layer_returns(recorded):
    for call in recorded[1].calls:
        layer, (height, width) = call.attention, call.x.shape[1:3]
        values = layer.qkv(call.x[0]).chunk(3, dim=-1)[2].unflatten(-1, (layer.num_heads, -1))
        for token in ((0, 0), (height - 1, width // 2)):
            mixed = torch.einsum("nhw,hwnc->nc", attention_of_token(call, token), values)
            output = layer(call.x, call.plan)[0][token]
            assert torch.allclose(layer.proj(mixed.flatten()), output, rtol=1e-3, atol=1e-4)


def test_the_bias_table_holds_every_offset(recorded):
    backbone, recording = recorded
    state = backbone.state_dict()
    for call in recording.calls:
        table, plan = bias_table(call), call.plan
        assert table.shape[1:] == (2 * plan.group_height - 1, 2 * plan.group_width - 1)
        places = [(0, 0), (plan.group_height - 1, plan.group_width - 1), (0, plan.group_width - 1)]
        bias = reference_bias(state, f"layers.{call.stage}.blocks.{call.block}.attn.pos", places)
        middle_y, middle_x = plan.group_height - 1, plan.group_width - 1
        for i, (query_y, query_x) in enumerate(places):
            for j, (key_y, key_x) in enumerate(places):
                entry = table[:, middle_y + query_y - key_y, middle_x + query_x - key_x]
                assert torch.allclose(entry, bias[:, i, j], atol=1e-4)


def test_principal_colours_find_the_directions_of_most_variance():
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(12, 10, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
    directions = torch.linalg.qr(torch.randn(16, 3, generator=generator))[0]
    colours = principal_colours(patterns @ directions.T + 5)
    assert colours.min() == 0 and colours.max() == 1
    for channel in range(3):
        pair = torch.stack([colours[..., channel].flatten(), patterns[..., channel].flatten()])
        assert torch.corrcoef(pair)[0, 1].abs() > 0.95, channel
    assert (principal_colours(torch.ones(2, 3, 8)) == 0.5).all()


def test_tokens_are_painted_where_they_are():
    pixels = random_pixels()
    plan = plan_groups(9, 13, 4, 2, "fixed_group", long_distance=True)  # stage 1
    mask = group_mask(plan, (3, 4)).numpy()
    painted = canvas.paint_tokens(pixels, 1, np.broadcast_to([1.0, 0, 0], (9, 13, 3)), mask * 1.0)
    pale = canvas.pale(pixels)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            expected = [1, 0, 0] if mask[row // 8, column // 8] else pale[row, column]
            assert np.array_equal(painted[row, column], expected)


def test_a_token_is_followed_through_the_stages():
    sizes = map_sizes(HEIGHT, WIDTH)
    backbone = backbone_of("fixed_interval")
    assert sizes == [tuple(m.shape[2:]) for m in backbone(torch.zeros(1, 3, HEIGHT, WIDTH))]
    assert choose_tokens(sizes, [0, 2, 3], (17, 25)) == {0: (17, 25), 2: (4, 6), 3: (2, 3)}
    assert choose_tokens(sizes, [1], None) == {1: (4, 6)}


def test_the_figure_of_groups_has_a_row_per_stage_and_a_column_per_rule():
    backbone = backbone_of("fixed_group")
    tokens = {0: (5, 7), 1: (2, 3)}
    figure = figures.draw_groups(random_pixels(), backbone, tokens)
    titles = [axes.get_title() for axes in figure.axes]
    for stage, token in tokens.items():
        for column, (mode, long_distance) in enumerate(
            [("fixed_group", False), *((mode, True) for mode in LDA_MODES)]
        ):
            size = map_sizes(HEIGHT, WIDTH)[stage]
            groups = reference_groups(*size, 4, ARCH["interval"][stage], mode, long_distance)
            count = next(len(m) for m in groups if token in [place for place, _ in m])
            name = f"LDA {mode}" if long_distance else "SDA"
            assert titles[stage * 4 + column].startswith(f"{name}\n{count} tokens, ")


def test_a_ring_lies_on_its_image_and_leaves_the_panel_as_it_was():
    sizes = map_sizes(101, 77)
    tokens = choose_tokens(sizes, [0, 1, 2, 3], (25, 19))
    figure = figures.draw_groups(
        np.zeros((101, 77, 3), np.uint8), backbone_of("fixed_group"), tokens
    )
    assert len(figure.axes) == 4 * 4
    for axes in figure.axes:
        assert axes.get_xlim() == (-0.5, 76.5) and axes.get_ylim() == (100.5, -0.5)
        for ring in axes.get_lines():
            (column,), (row,) = ring.get_data()
            assert 64 <= column <= 76 and 96 <= row <= 100


@pytest.mark.parametrize("shape", [(33, 1000), (1000, 33)])
def test_panels_of_long_images_have_room_for_their_titles(shape):
    sizes = map_sizes(*shape)
    tokens = choose_tokens(sizes, [0, 2], None)
    pixels = np.zeros((*shape, 3), np.uint8)
    figure = figures.draw_groups(pixels, backbone_of("fixed_group"), tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure).draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert figure.bbox.height < 2000


def test_the_figure_of_attention_has_a_panel_per_head(recorded):
    calls = [call for call in recorded[1].calls if call.stage in (1, 2)]
    tokens = {1: (1, 2), 2: (0, 1)}
    figure = figures.draw_attention(random_pixels(), calls, tokens, None, "random weights")
    shown = [axes.get_title() for axes in figure.axes if axes.axison]
    expected = [
        f"head {head}, maximum {attention.max():.3f}"
        for call in calls
        for head, attention in enumerate(attention_of_token(call, tokens[call.stage]))
    ]
    assert shown == expected and len(shown) == 2 * 2 + 2 * 4


def test_the_figure_of_biases_draws_the_tables(recorded):
    calls = [call for call in recorded[1].calls if call.stage == 2]
    figure = figures.draw_bias(calls, [1, 3], "random weights")
    drawn = [axes.images[0] for axes in figure.axes if axes.get_title().startswith("head")]
    tables = [bias_table(call)[head] for call in calls for head in (1, 3)]
    assert len(drawn) == len(tables) == 4
    for image, table in zip(drawn, tables, strict=True):
        assert np.array_equal(image.get_array(), table.numpy())
        bottom, top = image.get_extent()[2:]
        assert (top, bottom) == (-table.shape[0] / 2, table.shape[0] / 2)


@pytest.mark.parametrize(
    ("task", "size"),
    [("classification", (112, 112)), ("detection", (192, 256)), ("segmentation", (160, 224))],
)
def test_an_image_is_resized_as_for_testing_and_normalised(picture_file, task, size):
    cfg = load_config(str(TASK_CONFIGS[task]))
    pixels, inputs = read_picture(picture_file, cfg)
    assert pixels.shape == (*size, 3) and inputs.shape == (1, 3, *size)
    assert pixels[0, 0, 0] < pixels[-1, 0, 0] > 200  # red grows downwards
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    assert np.allclose(inputs[0].permute(1, 2, 0), (pixels - mean) / std, atol=1e-5)


@pytest.mark.parametrize(("task", "size"), [("detection", (3000, 1)), ("segmentation", (3, 4000))])
def test_an_image_that_cannot_be_resized_is_named_in_one_line(tmp_path, task, size):
    file = tmp_path / "thin.png"
    Image.new("RGB", size[::-1]).save(file)
    with pytest.raises(VisualizationError) as error_info:
        read_picture(file, load_config(str(TASK_CONFIGS[task])))
    message = str(error_info.value)
    assert message.startswith(f"Resize failed on image {file}: ") and "\n" not in message
    assert message.endswith(f"({size[0]} x {size[1]} pixels): give --shape H W")


def test_a_model_made_for_bgr_gets_bgr(picture_file):
    cfg = load_config(str(NANO_CONFIG))
    cfg.model.data_preprocessor = dict(mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 2.0])
    pixels, inputs = read_picture(picture_file, cfg, (64, 96))
    assert np.allclose(inputs[0, 0], pixels[..., 2] - 1.0)
    assert np.allclose(inputs[0, 2], (pixels[..., 0] - 3.0) / 2)


@pytest.mark.parametrize("kind", ["groups", "attention", "dpb", "features"])
def test_the_tool_writes_a_picture(monkeypatch, capsys, tmp_path, picture_file, kind):
    config = TASK_CONFIGS["segmentation"]
    out = tmp_path / "new" / f"{kind}.png"
    where = ("--shape", 64, 96, "--stage", 0, 2, "--out", out)
    tool_main(monkeypatch, TOOL, kind, picture_file, "--config", config, *where)
    printed = capsys.readouterr().out
    assert ("the weights are random" in printed) == (kind != "groups")
    assert f"Wrote {out}" in printed
    with Image.open(out) as image:
        assert image.format == "PNG" and min(image.size) > 200
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_a_checkpoint_gives_the_weights(monkeypatch, tmp_path, picture_file):
    cfg = load_config(str(NANO_CONFIG))
    random_one, source = build_backbone(cfg)
    assert source == "random weights"
    weights = {f"backbone.{n}": w + 0.01 for n, w in random_one.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "some.pth")
    loaded, source = build_backbone(cfg, str(tmp_path / "some.pth"))
    assert source == "weights: some.pth" and not loaded.training
    assert all(torch.equal(w, weights[f"backbone.{n}"]) for n, w in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["IMAGE", "--out", "p.jpg"], "--out p.jpg must end with .png"),
        (["no.png"], "image no.png does not exist"),
        ([TOOL], "cannot be read as a picture"),
        (["IMAGE", "--checkpoint", "no.pth"], "--checkpoint no.pth does not exist"),
        (["IMAGE", "--checkpoint", TOOL], "is not a PyTorch or safetensors checkpoint"),
        (["IMAGE", "--config", "no.py"], "config no.py does not exist"),
        (["IMAGE", "--stage", 4], "--stage 4: this backbone runs stages 0 to 3"),
        (
            ["IMAGE", "--stage", 2, "--token", 4, 0],
            "--token 4 0: the map of stage 2 has rows 0 to 3 and columns 0 to 5",
        ),
        (["IMAGE", "--token", 0, -1], "--token 0 -1: the map of stage 0 has rows 0 to 15"),
        (["IMAGE", "--stage", 0, "--block", 1], "--block 1: stage 0 has blocks 0 to 0"),
        (["IMAGE", "--stage", 1, "--head", 2], "--head 2: the chosen blocks have heads 0 to 1"),
        (["IMAGE", "--shape", 16, 64], "--shape 16 64: give height and width, at least 32"),
        (["IMAGE", "--device", "gpu"], "--device gpu cannot be used"),
        (["IMAGE", "--device", "meta"], "--device meta computes nothing"),
        (["IMAGE", "--cfg-options", "nonsense"], "--cfg-options takes KEY=VALUE"),
        (["IMAGE", "--cfg-options", "model=3"], "no CrossFormer backbone"),
        (["IMAGE", "--cfg-options", "model.backbone.type=ResNet"], "no CrossFormer backbone"),
        (["IMAGE", "--cfg-options", "model.backbone.lda_mode=x"], "unknown lda_mode 'x'"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(
    monkeypatch, tmp_path, picture_file, arguments, named
):
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    arguments = [picture_file if argument == "IMAGE" else argument for argument in arguments]
    usual = ["--config", NANO_CONFIG, "--out", "p.png", "--shape", 64, 96]
    image, *options = arguments
    with pytest.raises(SystemExit) as exit_info:
        tool_main(monkeypatch, TOOL, "attention", image, *usual, *options)
    message = exit_info.value.code
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert sorted(tmp_path.iterdir()) == before
