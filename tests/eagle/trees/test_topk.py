"""EAGLE's tree at a small budget: nodes that cannot be kept are not grown, and the tree is the same without them."""

import pytest
import torch

from eagle.trees import Draft, TreeSettings, topk
from tests.eagle.toy import Table, TableDrafter, softmax


def grown(nodes: int, depth: int, width: int | None = None, seed: int = 0) -> tuple[list[tuple[int, ...]], int]:
    """The paths of the tree's nodes below the root, and how many nodes the drafter was asked to grow."""
    drafter = TableDrafter(Table(15, seed))
    draft = Draft(drafter, torch.zeros(1, dtype=torch.int64), drafter.root_logits, softmax, torch.zeros(1, 0))
    tree = topk.build(draft, TreeSettings(nodes, depth, width))
    paths = [()]
    for token, parent in zip(tree.tokens[0, 1:].tolist(), tree.parents[0, 1:].tolist()):
        paths.append((*paths[parent], token))
    return paths[1:], len(drafter.prefixes[0]) - 1


def value(path: tuple[int, ...], seed: int) -> float:
    table = Table(15, seed)
    return sum(table(path[:place])[token].log().item() for place, token in enumerate(path))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("nodes", [2, 3, 5, 9, 13])
def test_the_best_of_a_large_tree(nodes, depth, seed):
    everything, _ = grown(120, depth, seed=seed)
    best = sorted(everything, key=lambda path: value(path, seed), reverse=True)[: nodes - 1]
    few, asked = grown(nodes, depth, seed=seed)
    assert set(few) == set(best)
    assert asked <= topk.grown(TreeSettings(nodes, depth))


def test_published_size_is_grown_in_full():
    assert topk.frontier_sizes(TreeSettings(60, 7)) == [10] * 6


def test_small_budgets_grow_less():
    assert topk.frontier_sizes(TreeSettings(9, 4)) == [7, 6, 5]
    assert topk.frontier_sizes(TreeSettings(3, 4)) == [1]
    assert topk.frontier_sizes(TreeSettings(1, 4)) == []
