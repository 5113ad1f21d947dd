"""Ancestors of many trees at once, and a decision that is told them."""

import pytest
import torch

import hsd
from tests.hsd.random_trees import random_tree


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


def test_decide_is_the_same_when_told():
    tree, target = random_tree(0)[:2]
    ancestors = hsd.ancestors_of(tree.parents)
    for seed in range(20):
        plain = hsd.decide(tree, target, generator=torch.Generator().manual_seed(seed))
        told = hsd.decide(tree, target, generator=torch.Generator().manual_seed(seed), ancestors=ancestors)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(plain, told))
