"""Random architectures, rules, groups, sizes and types against the slow reference.

200 cases by default; ``pytest tests/test_random_cases.py --fuzz-cases 20000`` draws more. Case n is
the same whatever the number of cases.
"""

import random

import pytest
import torch
from conftest import CPU_BACKENDS
from test_backbone import double_state, random_image, random_weights, reference_of, worst_error

from crossformer_mm import CrossFormer
from crossformer_mm.models.grouping import LDA_MODES

CASES_PER_TEST = 25
# In standard deviations of each map; half precision has 8 bits.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.15}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = metafunc.config.getoption("--fuzz-cases")
    metafunc.parametrize("first", range(0, cases, CASES_PER_TEST))


def random_case(number: int) -> dict:
    """Draw the arguments of a backbone, an image and how to run it."""
    draw = random.Random(number)
    depths = [draw.choice([1, 1, 2, 2, 3, 4]) for _ in range(4)]

    def per_stage(largest: int) -> list:
        return [
            draw.randint(1, largest)
            if draw.random() < 0.7
            else [draw.randint(1, largest) for _ in range(depth)]
            for depth in depths
        ]

    arch = dict(
        embed_dims=draw.choice([16, 32, 48]),
        depths=depths,
        num_heads=[draw.choice([1, 2, 4, 8]) for _ in range(4)],
        group_size=per_stage(14),
        interval=per_stage(9),
        amplitude_cooling=draw.random() < 0.3,
    )
    return dict(
        model=dict(
            arch=arch,
            lda_mode=draw.choice(LDA_MODES),
            attn_backend=draw.choice(["auto", *CPU_BACKENDS]),
            final_norm=draw.random() < 0.3,
        ),
        image=(draw.randint(32, 96), draw.randint(32, 96), draw.choice([1, 1, 2])),
        with_grad=draw.random() < 0.5,
        dtype=draw.choices(list(TOLERANCES), [4, 5, 1])[0],
    )


def test_a_random_model_is_the_reference(first: int) -> None:
    for number in range(first, first + CASES_PER_TEST):
        case = random_case(number)
        backbone = CrossFormer(**case["model"])
        backbone.load_state_dict(random_weights(backbone))
        # What the reference is given has been rounded to the type.
        pixels = random_image(*case["image"]).to(case["dtype"])
        backbone.to(case["dtype"])
        with torch.no_grad():
            expected = reference_of(backbone, double_state(backbone), pixels.double())
        with torch.set_grad_enabled(case["with_grad"]):
            error = worst_error(backbone(pixels), expected)
        assert error < TOLERANCES[case["dtype"]], f"case {number} is off by {error}: {case}"
