"""Partitions of a map into groups: round trips, and the same groups as the reference lists."""

from collections.abc import Iterator
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


def plans_and_groups(lda_mode: str, long_distance: bool) -> Iterator[tuple[GroupPlan, set[Group]]]:
    """The plans of many maps, and the groups that the reference lists."""
    for size, group_size, interval in product(MAPS, (1, 2, 3, 7), (1, 2, 3, 8)):
        arguments = (*size, group_size, interval, lda_mode, long_distance)
        expected = {
            frozenset((place, row * size[1] + column) for (row, column), place in members)
            for members in reference_groups(*arguments)
        }
        yield plan_groups(*arguments), expected


every_rule = pytest.mark.parametrize(
    ("lda_mode", "long_distance"), [*product(LDA_MODES, (False, True))]
)


@every_rule
def test_partition_pads_to_whole_groups_and_merge_undoes_it(
    lda_mode: str, long_distance: bool
) -> None:
    for plan, expected in plans_and_groups(lda_mode, long_distance):
        assert groups_of_partition(plan) == expected, plan
        x = torch.randn(2, plan.height, plan.width, 3).abs() + 1
        groups = partition(x, plan)
        assert torch.equal(merge(groups, plan), x), plan
        real, unpadded = real_tokens(plan, torch.device("cpu")), (plan.height, plan.width)
        assert (real is None) == (plan.padded_size == unpadded), plan
        marked = groups[0, ..., 0] > 0
        assert marked.all() if real is None else torch.equal(marked, real), plan
        for side, padded, group in zip(unpadded, plan.padded_size, plan[2:4], strict=True):
            assert padded % (group * plan.interval) == 0 <= padded - side < group * plan.interval


@every_rule
def test_at_most_nine_rectangles_make_the_groups(lda_mode: str, long_distance: bool) -> None:
    for plan, expected in plans_and_groups(lda_mode, long_distance):
        assert len(rectangles(plan)) <= 9
        for at_once in (0, 10, 10**6):
            found = groups_of_rectangles(plan, at_once)
            assert len(found) == len(set(found)) and set(found) == expected, plan
        x = torch.randn(2, plan.height, plan.width, 12)
        copy = torch.full_like(x, float("nan"))
        for rectangle in rectangles(plan):
            put_groups(take_groups(x, plan, rectangle, 3, 2), copy, plan, rectangle)
        assert torch.equal(copy, x), plan
