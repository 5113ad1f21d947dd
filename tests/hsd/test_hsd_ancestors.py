"""Ancestors of many trees at once."""

import pytest
import torch

import hsd


def walked(parents: list[int]) -> torch.Tensor:
    """The same by walking up from every node."""
    seen = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node in range(len(parents)):
        above = node
        while above >= 0:
            seen[node, above] = True
            above = parents[above]
    return seen


@pytest.mark.parametrize("count", [1, 2, 9, 60])
def test_random_trees(count):
    generator = torch.Generator().manual_seed(count)
    trees = [[-1] + [int(torch.randint(node, (1,), generator=generator)) for node in range(1, count)] for _ in range(5)]
    assert torch.equal(hsd.ancestors_of(torch.tensor(trees)), torch.stack([walked(tree) for tree in trees]))


@pytest.mark.parametrize("length", [31, 32, 33, 64, 65, 300])
def test_long_paths_do_not_overflow(length):
    parents = torch.arange(length) - 1
    assert torch.equal(hsd.ancestors_of(parents), torch.ones(length, length).tril().bool())


def test_a_bound_on_the_depth_is_enough():
    parents = torch.tensor([-1, 0, 0, 1, 1, 2, 5])
    assert torch.equal(hsd.ancestors_of(parents, 3), walked(parents.tolist()))
