"""Partitions of a map into groups: round trips, and the same groups as the reference lists."""

import random
from itertools import product

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
            groups = take_groups(positions, plan, piece, 1, 1)[0, 0, ..., 0]
            assert groups.shape == (piece.groups, piece.group_tokens)
            columns = piece.columns.members
            found += [
                frozenset((divmod(i, columns), token) for i, token in enumerate(group))
                for group in groups.tolist()
            ]
    return found


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


every_plan = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan)))


@every_plan
def test_partition_pads_to_whole_groups_and_merge_undoes_it(plan: GroupPlan) -> None:
    x = torch.randn(2, plan.height, plan.width, 3).abs() + 1
    groups = partition(x, plan)
    assert torch.equal(merge(groups, plan), x)
    assert groups_of_partition(plan) == groups_by_definition(plan)
    real, unpadded = real_tokens(plan, torch.device("cpu")), (plan.height, plan.width)
    assert (real is None) == (plan.padded_size == unpadded)
    marked = groups[0, ..., 0] > 0
    assert marked.all() if real is None else torch.equal(marked, real)
    for side, padded, group in zip(unpadded, plan.padded_size, plan[2:4], strict=True):
        assert padded % (group * plan.interval) == 0 <= padded - side < group * plan.interval


@every_plan
def test_at_most_nine_rectangles_make_the_defined_groups(plan: GroupPlan) -> None:
    assert len(rectangles(plan)) <= 9
    for at_once in (0, 3, 10**6):
        found = groups_of_rectangles(plan, at_once)
        assert len(found) == len(set(found)) and set(found) == groups_by_definition(plan)
    x = torch.randn(2, plan.height, plan.width, 12)
    copy = torch.full_like(x, float("nan"))
    for rectangle in rectangles(plan):
        put_groups(take_groups(x, plan, rectangle, 3, 2), copy, plan, rectangle)
    assert torch.equal(copy, x)


@pytest.mark.parametrize("long_distance", [False, True], ids=["sda", "lda"])
@pytest.mark.parametrize("lda_mode", LDA_MODES)
def test_groups_equal_the_reference(lda_mode: str, long_distance: bool) -> None:
    for size, group_size, interval in product(MAPS, (1, 2, 3, 7), (1, 2, 3, 8)):
        arguments = (*size, group_size, interval)
        plan = plan_groups(*arguments, lda_mode, long_distance)
        groups = reference_groups(*arguments, lda_mode, long_distance)
        expected = {
            frozenset((place, row * size[1] + column) for (row, column), place in members)
            for members in groups
        }
        assert groups_of_partition(plan) == expected, (arguments, plan)
        assert set(groups_of_rectangles(plan, 10)) == expected, (arguments, plan)
