"""Several trees behind one root as one tree, so that one forward scores them all.

Trees drafted at one state share most of their paths: fifty of 16 nodes each have some two hundred different ones. A
node's target distribution depends on its path alone, so every path is scored once.

    trees   a - b - c    a - b - d        merged   a - b - c
            `- e                                  |    `- d
                                                  `- e
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hsd import TreeBatch
from hsd.topology import ancestors_of


class MergedTrees(NamedTuple):
    """Paths of several trees: token, parent (-1 at the root) and depth of every node, and where each tree's nodes are.

    places   per tree, the merged's node for each of its nodes
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    places: list[list[int]]

    def ancestors(self) -> Tensor:
        """Bool[N, N]: which nodes each node descends from, itself included."""
        return ancestors_of(torch.tensor([self.parents]), max(self.depths))[0]


def merge(trees: list[TreeBatch], room: int) -> Iterator[MergedTrees]:
    """The trees, in order and of one row each, in merge of at most `room` nodes.

    A tree with more nodes is a merged of its own.
    """
    merged = MergedTrees([], [], [], [])
    known: dict[tuple[int, int], int] = {}
    for tree in trees:
        tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
        if merged.tokens and len(merged.tokens) + len(tokens) > room:
            yield merged
            merged, known = MergedTrees([], [], [], []), {}
        merged.places.append(_add(merged, known, tokens, parents))
    if merged.tokens:
        yield merged


def _add(merged: MergedTrees, known: dict[tuple[int, int], int], tokens: list[int], parents: list[int]) -> list[int]:
    """Add one tree's paths; the merged's node for each of its nodes. known: (parent, token) -> node."""
    places: list[int] = []
    for token, parent in zip(tokens, parents, strict=True):
        path = (places[parent] if parent >= 0 else -1, token)
        if path not in known:
            known[path] = len(merged.tokens)
            merged.tokens.append(token)
            merged.parents.append(path[0])
            merged.depths.append(merged.depths[path[0]] + 1 if path[0] >= 0 else 0)
        places.append(known[path])
    return places
