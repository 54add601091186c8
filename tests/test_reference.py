"""The slow reference against numbers worked out by hand."""

import math
from collections.abc import Sequence

import pytest
import torch
from reference import (
    Member,
    Token,
    convolve,
    layer_norm,
    linear,
    reference_attention,
    reference_backbone,
    reference_bias,
    reference_groups,
)
from torch import Tensor, nn

LDA_MODES = ("fixed_interval", "fixed_group", "adaptive_interval")


def picture(groups: Sequence[Sequence[Member]], height: int, width: int) -> list[str]:
    """Draw a map with one letter per group, letters in the order of first appearance."""
    owner = {token: i for i, members in enumerate(groups) for token, _ in members}
    letters: dict[int, str] = {}
    rows = []
    for row in range(height):
        owners = [owner[row, column] for column in range(width)]
        rows.append("".join(letters.setdefault(i, chr(65 + len(letters))) for i in owners))
    return rows


# Map, group size, interval, rule (None: short distance), and what the map looks like. With
# adaptive_interval, the intervals are ceil(6 / 4) = 2 and ceil(6 / 2) = 3.
PICTURES = [
    ((5, 6, 4, 9, None), "AAAABB AAAABB AAAABB AAAABB CCCCDD"),
    ((5, 6, 3, 4, "fixed_interval"), "ABCDAB EFGHEF IJKLIJ MNOPMN ABCDAB"),
    ((5, 6, 2, 2, "fixed_group"), "ABABCD EFEFGH ABABCD EFEFGH IJIJKL"),
    ((5, 6, 4, 99, "adaptive_interval"), "ABABAB CDCDCD ABABAB CDCDCD ABABAB"),
    ((5, 6, 2, 99, "adaptive_interval"), "ABCABC DEFDEF GHIGHI ABCABC DEFDEF"),
    ((6, 5, 2, 99, "adaptive_interval"), "ABCAB DEFDE GHIGH ABCAB DEFDE GHIGH"),
    ((2, 3, 1, 8, "fixed_interval"), "ABC DEF"),
    ((2, 3, 1, 8, "fixed_group"), "ABC DEF"),
    # A side is not longer than a group: squares of the shorter side, or of the longer one.
    *[((5, 6, size, 2, "fixed_interval"), " ".join(["AAAAAB"] * 5)) for size in (5, 6, 20)],
    ((6, 5, 5, 2, "fixed_interval"), "AAAAA AAAAA AAAAA AAAAA AAAAA BBBBB"),
    ((5, 6, 5, 2, "fixed_group"), "AAAAAA AAAAAA AAAAAA AAAAAA AAAAAA"),
    ((5, 6, 6, 2, "adaptive_interval"), "AAAAAA AAAAAA AAAAAA AAAAAA AAAAAA"),
    ((1, 4, 2, 2, "fixed_interval"), "ABCD"),
    ((1, 4, 2, 2, "fixed_group"), "AAAA"),
]


@pytest.mark.parametrize(("rule", "expected"), PICTURES)
def test_groups_look_as_the_paper_draws_them(rule: tuple, expected: str) -> None:
    *sizes, lda_mode = rule
    is_small = min(sizes[:2]) <= sizes[2]  # then short and long distance are the same
    for long_distance in (False,) if lda_mode is None else (True, not is_small):
        for mode in LDA_MODES if lda_mode is None else [lda_mode]:
            groups = reference_groups(*sizes, mode, long_distance)
            assert picture(groups, *sizes[:2]) == expected.split()


@pytest.mark.parametrize(
    ("rule", "token", "expected"),
    [
        ((5, 6, 4, 9, "fixed_group", False), (0, 5), [(y, x) for y in range(4) for x in range(2)]),
        ((5, 6, 4, 9, "fixed_group", False), (4, 2), [(0, 0), (0, 1), (0, 2), (0, 3)]),
        ((5, 6, 3, 4, "fixed_interval", True), (4, 4), [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ((5, 6, 3, 4, "fixed_interval", True), (4, 3), [(0, 0), (1, 0)]),
        ((5, 6, 2, 2, "fixed_group", True), (2, 2), [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ((5, 6, 2, 2, "fixed_group", True), (3, 5), [(0, 0), (1, 0)]),
        ((5, 6, 5, 2, "fixed_interval", True), (3, 5), [(y, 0) for y in range(5)]),
    ],
)
def test_places_inside_a_group(rule: tuple, token: Token, expected: list[Token]) -> None:
    """The places of all members of the group that a token belongs to."""
    members = next(group for group in reference_groups(*rule) if token in dict(group))
    assert [place for _, place in members] == expected


def sign_bias_state(below: float, above: float) -> dict[str, Tensor]:
    """Position bias MLP of width 2: ``below`` for dy > 0, ``above`` for dy < 0, 0 for dy = 0."""
    state = {
        "pos_proj.weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
        "pos_proj.bias": torch.zeros(2),
        "pos3.2.weight": torch.tensor([[below, above]]),
        "pos3.2.bias": torch.zeros(1),
    }
    for name in ("pos1", "pos2", "pos3"):
        state[f"{name}.0.weight"] = torch.ones(2)
        state[f"{name}.0.bias"] = torch.zeros(2)
    for name in ("pos1", "pos2"):
        state[f"{name}.2.weight"] = torch.eye(2)
        state[f"{name}.2.bias"] = torch.zeros(2)
    return {f"attn.pos.{name}": value.double() for name, value in state.items()}


def test_bias_takes_query_minus_key_rows_first() -> None:
    # Of (0, 0), (1, 0) and (0, 1). For dy = 1: projected to (1, -1) -> norm (1, -1) -> ReLU (1, 0)
    # -> norm (1, -1) -> ReLU (1, 0), twice -> 5 + 0.5.
    state = sign_bias_state(5.0, 7.0)
    state["attn.pos.pos3.2.bias"] += 0.5
    bias = reference_bias(state, "attn.pos", [(0, 0), (1, 0), (0, 1)])
    expected = torch.tensor([[[0.5, 7.5, 0.5], [5.5, 0.5, 5.5], [0.5, 7.5, 0.5]]]).double()
    torch.testing.assert_close(bias, expected, rtol=1e-4, atol=1e-12)


def attention_state(
    query: Sequence[float], below: float = 0.0, above: float = 0.0
) -> dict[str, Tensor]:
    """Attention with a constant query, and keys, values and outputs that are the tokens."""
    dims = len(query)
    eye, zeros = torch.eye(dims).double(), torch.zeros(dims).double()
    return {
        "attn.qkv.weight": torch.cat([0 * eye, eye, eye]),
        "attn.qkv.bias": torch.cat([torch.tensor(query).double(), zeros, zeros]),
        "attn.proj.weight": eye,
        "attn.proj.bias": zeros,
        **sign_bias_state(below, above),
    }


def test_attention_without_logits_is_the_mean_of_the_group() -> None:
    x = torch.tensor([[0.0, 4.0, 1.0], [8.0, 12.0, 3.0]]).double().view(1, 2, 3, 1)
    groups = reference_groups(2, 3, 2, 1, "fixed_interval", long_distance=False)
    output = reference_attention(attention_state([0.0]), "attn", x, groups, num_heads=1)
    expected = torch.tensor([[6.0, 6.0, 2.0], [6.0, 6.0, 2.0]]).double()
    torch.testing.assert_close(output.view(2, 3), expected)


def test_attention_adds_the_bias() -> None:
    # the lower query gives 3 / 4 of its weight to the upper key, the upper query 4 / 5 to the lower
    x = torch.tensor([0.0, 20.0]).double().view(1, 2, 1, 1)
    groups = [[((0, 0), (0, 0)), ((1, 0), (1, 0))]]
    state = attention_state([0.0], below=math.log(3), above=math.log(4))
    output = reference_attention(state, "attn", x, groups, num_heads=1)
    torch.testing.assert_close(
        output.flatten(), torch.tensor([16.0, 5.0]).double(), rtol=1e-3, atol=0
    )


def test_heads_take_neighbouring_channels_and_divide_logits_by_the_root_of_their_width() -> None:
    # head 0 is channels 0 and 1: only there does the query (1, 0) see a key; head 1 averages
    key = math.sqrt(2) * math.log(3)
    x = torch.tensor([[0.0] * 4, [key, 0.0, 8.0, 6.0]]).double().view(1, 1, 2, 4)
    groups = [[((0, 0), (0, 0)), ((0, 1), (0, 1))]]
    state = attention_state([1.0, 0.0, 0.0, 0.0])
    state["attn.pos.pos3.2.weight"] = torch.zeros(2, 2).double()
    state["attn.pos.pos3.2.bias"] = torch.zeros(2).double()
    output = reference_attention(state, "attn", x, groups, num_heads=2)
    torch.testing.assert_close(output[0, 0, 1], torch.tensor([0.75 * key, 0, 4, 3]).double())


def test_layers_agree_with_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6).double()
    norm, fc, conv = nn.LayerNorm(6), nn.Linear(6, 5), nn.Conv2d(6, 4, 4, stride=2, padding=1)
    nn.init.normal_(norm.weight)
    state = nn.ModuleDict({"norm": norm, "fc": fc, "conv": conv}).double().state_dict()
    torch.testing.assert_close(layer_norm(state, "norm", x), norm(x))
    torch.testing.assert_close(linear(state, "fc", x), fc(x))
    expected = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(convolve(state, "conv", x, stride=2, padding=1), expected)


def test_backbone_without_blocks_is_the_embedding() -> None:
    # one stage, no block: kernel k of the stem sums an all-one image over k x k pixels
    state = {"patch_embed.norm.weight": torch.ones(4), "patch_embed.norm.bias": torch.zeros(4)}
    for i, kernel in enumerate((4, 8, 16, 32)):
        state[f"patch_embed.projs.{i}.weight"] = torch.ones(1, 3, kernel, kernel)
        state[f"patch_embed.projs.{i}.bias"] = torch.zeros(1)
    (output,) = reference_backbone(
        state,
        torch.ones(1, 3, 33, 40),
        depths=(0,),
        num_heads=(1,),
        group_size=(7,),
        interval=(1,),
        lda_mode="fixed_interval",
        amplitude_cooling=False,
    )
    assert output.shape == (1, 4, 9, 10)
    # The centre of token (8, 0) is pixel (34, 2); rows 33 and on, and columns before 0, are zero.
    sums = torch.tensor([1 * 4, 3 * 6, 7 * 10, 15 * 18]).float() * 3
    expected = (sums - sums.mean()) / sums.std(correction=0)
    torch.testing.assert_close(output[0, :, 8, 0], expected, rtol=1e-4, atol=1e-4)
