"""Partitions of a map into groups: round trips, and the same groups as the reference lists."""

import random
from collections.abc import Iterable

import pytest
import torch
from reference import reference_groups

from crossformer_mm.models.grouping import (
    LDA_MODES,
    GroupPlan,
    merge,
    partition,
    plan_groups,
    put_groups,
    real_tokens,
    rectangles,
    split_rectangle,
    take_groups,
)

# A group as {(place inside the group, flat position on the map)}.
Group = frozenset[tuple[tuple[int, int], int]]

MAPS = [(1, 1), (1, 9), (9, 1), (2, 3), (3, 8), (4, 4), (5, 6), (7, 7), (8, 7), (8, 8), (13, 10)]


def random_plans(count: int) -> list[GroupPlan]:
    rng = random.Random(0)
    limits = (20, 20, 8, 8, 6)
    return [GroupPlan(*(rng.randint(1, limit) for limit in limits)) for _ in range(count)]


PLANS = [
    GroupPlan(6, 8, 3, 4, 2),  # exactly one region
    GroupPlan(6, 8, 3, 2, 1),  # whole regions only
    GroupPlan(2, 3, 2, 2, 5),  # interval longer than the map
    GroupPlan(1, 1, 4, 4, 4),
    *random_plans(40),
]


def groups_of_partition(plan: GroupPlan) -> set[Group]:
    """The groups that :func:`partition` makes; padding is zero, and tokens count from one."""
    positions = torch.arange(1.0, plan.height * plan.width + 1).view(1, plan.height, plan.width, 1)
    rows = partition(positions, plan)[0, ..., 0].int().tolist()
    groups = (
        frozenset((divmod(i, plan.group_width), token - 1) for i, token in enumerate(row) if token)
        for row in rows
    )
    return {group for group in groups if group}


def groups_of_rectangles(plan: GroupPlan, at_once: int) -> list[Group]:
    """The groups that the pieces of :func:`rectangles` take out of a map."""
    positions = torch.arange(plan.height * plan.width).view(1, plan.height, plan.width, 1)
    found = []
    for rectangle in rectangles(plan):
        for piece in split_rectangle(rectangle, at_once):
            groups = take_groups(positions, plan, piece, 1, 1)[0, :, 0, :, 0]
            assert groups.shape == (piece.groups, piece.group_tokens)
            columns = piece.columns.members
            found += [
                frozenset((divmod(i, columns), token) for i, token in enumerate(group))
                for group in groups.tolist()
            ]
    return found


def groups_of_reference(
    height: int, width: int, group_size: int, interval: int, lda_mode: str, long_distance: bool
) -> set[Group]:
    groups = reference_groups(height, width, group_size, interval, lda_mode, long_distance)
    return {
        frozenset((place, row * width + column) for (row, column), place in members)
        for members in groups
    }


def groups_by_definition(plan: GroupPlan) -> set[Group]:
    """The groups of a plan, token by token from position = (region * group + member) * interval
    + offset along both axes."""
    groups: dict[tuple[int, ...], set] = {}
    for row in range(plan.height):
        for column in range(plan.width):
            region_y, in_region_y = divmod(row, plan.group_height * plan.interval)
            region_x, in_region_x = divmod(column, plan.group_width * plan.interval)
            member_y, offset_y = divmod(in_region_y, plan.interval)
            member_x, offset_x = divmod(in_region_x, plan.interval)
            key = (region_y, region_x, offset_y, offset_x)
            groups.setdefault(key, set()).add(((member_y, member_x), row * plan.width + column))
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan)))
class TestAnyPlan:
    def test_merge_undoes_partition(self, plan: GroupPlan) -> None:
        x = torch.randn(2, plan.height, plan.width, 3)
        assert torch.equal(merge(partition(x, plan), plan), x)

    def test_partition_pads_with_zeros_to_whole_groups(self, plan: GroupPlan) -> None:
        ones = torch.ones(2, plan.height, plan.width, 3)
        groups = partition(ones, plan)
        height, width = plan.padded_size
        tokens = plan.group_height * plan.group_width
        assert groups.shape == (2, height * width // tokens, tokens, 3)
        assert groups.sum() == ones.sum()
        assert height % (plan.group_height * plan.interval) == 0
        assert 0 <= height - plan.height < plan.group_height * plan.interval
        assert width % (plan.group_width * plan.interval) == 0
        assert 0 <= width - plan.width < plan.group_width * plan.interval

    def test_partition_makes_the_defined_groups(self, plan: GroupPlan) -> None:
        assert groups_of_partition(plan) == groups_by_definition(plan)

    def test_real_tokens_marks_padding(self, plan: GroupPlan) -> None:
        real = real_tokens(plan, torch.device("cpu"))
        if plan.padded_size == (plan.height, plan.width):
            assert real is None
        else:
            ones = torch.ones(1, plan.height, plan.width, 1)
            assert torch.equal(real, partition(ones, plan)[0, ..., 0].bool())
            assert real.sum() == plan.height * plan.width

    def test_there_are_at_most_nine_rectangles(self, plan: GroupPlan) -> None:
        found = rectangles(plan)
        assert sum(r.groups * r.group_tokens for r in found) == plan.height * plan.width
        assert len(found) <= 9

    @pytest.mark.parametrize("at_once", [0, 3, 10**6])
    def test_rectangles_make_the_defined_groups(self, plan: GroupPlan, at_once: int) -> None:
        found = groups_of_rectangles(plan, at_once)
        assert len(found) == len(set(found)) and set(found) == groups_by_definition(plan)

    def test_putting_groups_back_undoes_taking_them(self, plan: GroupPlan) -> None:
        x = torch.randn(2, plan.height, plan.width, 12)
        copy = torch.full_like(x, float("nan"))
        for rectangle in rectangles(plan):
            put_groups(take_groups(x, plan, rectangle, 3, 2), copy, plan, rectangle)
        assert torch.equal(copy, x)


def block_arguments() -> Iterable[tuple[int, int, int, int]]:
    return (
        (height, width, group_size, interval)
        for height, width in MAPS
        for group_size in (1, 2, 3, 7)
        for interval in (1, 2, 3, 8)
    )


@pytest.mark.parametrize("long_distance", [False, True], ids=["sda", "lda"])
@pytest.mark.parametrize("lda_mode", LDA_MODES)
def test_groups_equal_the_reference(lda_mode: str, long_distance: bool) -> None:
    for arguments in block_arguments():
        plan = plan_groups(*arguments, lda_mode, long_distance)
        expected = groups_of_reference(*arguments, lda_mode, long_distance)
        assert groups_of_partition(plan) == expected, (arguments, plan)
        assert set(groups_of_rectangles(plan, 10)) == expected, (arguments, plan)


# What follows is (height, width, group height, group width, interval).
@pytest.mark.parametrize("lda_mode", LDA_MODES)
def test_sda_plan(lda_mode: str) -> None:
    assert plan_groups(8, 9, 7, 4, lda_mode, False) == (8, 9, 7, 7, 1)
    assert plan_groups(30, 8, 7, 4, lda_mode, False) == (30, 8, 7, 7, 1)


def test_lda_plan() -> None:
    assert plan_groups(8, 20, 7, 4, "fixed_interval", True) == (8, 20, 2, 5, 4)
    assert plan_groups(9, 21, 7, 4, "fixed_interval", True) == (9, 21, 3, 6, 4)
    assert plan_groups(8, 20, 7, 16, "fixed_interval", True) == (8, 20, 1, 2, 16)
    assert plan_groups(8, 20, 7, 4, "fixed_group", True) == (8, 20, 7, 7, 4)
    assert plan_groups(8, 21, 7, 4, "adaptive_interval", True) == (8, 21, 7, 7, 3)
    assert plan_groups(22, 8, 7, 4, "adaptive_interval", True) == (22, 8, 7, 7, 4)


@pytest.mark.parametrize("long_distance", [False, True], ids=["sda", "lda"])
@pytest.mark.parametrize("height, width, smaller, larger", [(7, 20, 7, 20), (20, 6, 6, 20)])
def test_small_map_plan(
    height: int, width: int, smaller: int, larger: int, long_distance: bool
) -> None:
    for lda_mode, side in zip(LDA_MODES, (smaller, larger, larger), strict=True):
        plan = plan_groups(height, width, 7, 4, lda_mode, long_distance)
        assert plan == (height, width, side, side, 1)


def test_padded_size() -> None:
    assert GroupPlan(8, 20, 7, 7, 1).padded_size == (14, 21)
    assert GroupPlan(9, 21, 3, 6, 4).padded_size == (12, 24)
    assert GroupPlan(8, 29, 7, 7, 4).padded_size == (28, 56)
    assert GroupPlan(14, 28, 7, 7, 2).padded_size == (14, 28)
