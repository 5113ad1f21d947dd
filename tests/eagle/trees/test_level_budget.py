"""How many slots a level gets: by hand, and what the number may depend on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle.trees import level_budget
from eagle.trees.level_budget import child_gains, expected_subtree_size, level_sizes


def test_subtree_sizes_by_hand():
    """With no level below a candidate takes its own slot; with one, also those of its children that are worth one."""
    assert expected_subtree_size(0.5, 0).tolist() == [1.0] * level_budget.STEPS
    found = expected_subtree_size(0.5, 1)
    for step in (0, 5, 20, 50):
        wanted = 1.0
        for ratio, share in level_budget.TYPICAL:
            top_q = torch.cat([torch.zeros(1), (1 - ratio) * ratio ** torch.arange(level_budget.CHILDREN)])[:, None]
            gains = child_gains(top_q, torch.tensor([(1 - ratio) / (1 + ratio)]), 0.5)
            wanted += share * int((gains.log() + step * level_budget.STEP >= 0).sum())
        assert found[step].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.7, 1.0])
def test_subtree_sizes_grow_with_the_value_and_the_levels(beta):
    tables = [expected_subtree_size(beta, below) for below in range(6)]
    assert all((table.diff() >= 0).all() for table in tables)
    assert all((more >= less).all() for less, more in zip(tables, tables[1:], strict=False))


def test_sure_candidates_are_followed_deep_and_even_ones_side_by_side():
    sure = torch.tensor([[0.95, 0.04, 0.005, 0.001, 0.001, 0.001, 0.001]])
    even = torch.full((1, 7), 0.14)
    assert level_sizes(sure, [7], 6, 0.7) == [1]
    assert level_sizes(even, [7], 1, 0.7) > level_sizes(sure, [7], 1, 0.7)
    assert level_sizes(even, [7], 0, 0.7) == [7]


@pytest.mark.parametrize("below", [0, 2])
def test_every_row_of_a_batch_gets_the_number_it_gets_alone(below):
    """With what is left of its own tree, and however many candidates the others have; negative ones are padding."""
    rows = torch.tensor([[0.95, 0.04, 0.01, 0.01], [0.3, 0.3, 0.3, 0.3], [0.6, 0.2, -1, -1], [0.3, 0.3, 0.3, 0.3]])
    left = [4, 4, 4, 2]
    alone = [level_sizes(row[row >= 0][None], [rest], below, 0.7)[0] for row, rest in zip(rows, left)]
    assert level_sizes(rows, left, below, 0.7) == alone
    assert alone[0] != alone[1] or below == 0


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=12), st.integers(1, 20), st.integers(0, 5), st.floats(0.0, 1.0)
)
def test_a_slot_depends_on_better_candidates_only(values, left, below, beta):
    """Whether the j-th candidate gets a slot does not change with the values of those after it."""
    falling = torch.tensor(sorted(values, reverse=True)[:left])[None]
    [found] = level_sizes(falling, [left], below, beta)
    assert 1 <= found <= falling.shape[1]
    for place in range(falling.shape[1]):
        other = falling.clone()
        other[:, place + 1 :] *= 0.5
        assert (level_sizes(other, [left], below, beta)[0] > place) == (found > place)


def test_a_tree_may_be_deeper_than_python_recurses():
    import sys

    deep = expected_subtree_size(0.65, sys.getrecursionlimit() + 99)
    assert deep.shape == expected_subtree_size(0.65, 3).shape
    assert (deep >= expected_subtree_size(0.65, 3)).all()
