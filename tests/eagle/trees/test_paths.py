"""Sampled paths share what they have in common."""

import torch

from eagle.trees import Draft, TreeSettings, find_tree


class GivenDraws(Draft):
    """Samples of one row are given, level by level."""

    def __init__(self, drafter, root, logits, draws):
        super().__init__(drafter, root, logits, lambda logits: logits.softmax(-1), torch.zeros(1, 0))
        self.left, self.seen = iter(draws), []

    def sample(self, probs, reserved=None):
        self.seen.append(probs)
        return torch.tensor([next(self.left)])


class Followed:
    """A drafter whose logits after a token are a row of a table; it remembers what hung where."""

    support = None

    def __init__(self, table):
        self.table, self.grown = table, []

    def grow(self, parents, tokens):
        self.grown.append((parents.tolist(), tokens.tolist()))
        return self.table[tokens]


def build(draws, depth):
    """Three paths whose draws, level by level, are given; one row."""
    table = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    drafter = Followed(table)
    draft = GivenDraws(drafter, torch.tensor([0]), table[:1], draws)
    tree = find_tree("multi").build(draft, TreeSettings(1 + 3 * depth, depth, 3))
    return tree, drafter, table, draft.seen


def test_a_path_goes_on_behind_the_first_node_with_its_token():
    tree, drafter, table, seen = build([[4, 2, 4], [5, 1, 5], [3, 3, 1]], 3)
    assert tree.tokens[0].tolist() == [0, 4, 2, 4, 5, 1, 5, 3, 3, 1]
    assert tree.parents[0].tolist() == [-1, 0, 0, 0, 1, 2, 1, 4, 5, 4]
    assert tree.depths[0].tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert drafter.grown[1] == ([[1, 2, 1]], [[5, 1, 5]])
    q = table.softmax(-1)
    torch.testing.assert_close(seen[1][0], q[[4, 2, 4]])
    torch.testing.assert_close(tree.proposals[0, tree.proposal_rows[0, 1:]], q[[0, 0, 0, 4, 2, 4, 5, 1, 5]])


def test_the_same_token_behind_another_one_is_another_node():
    tree, *_ = build([[4, 2, 3], [5, 5, 5], [1, 1, 1]], 3)
    assert tree.parents[0].tolist() == [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6]
