"""A tree that grows level by level: what the builders `hybrid` and `rsd` put together.

Shapes: B batch, n frontier nodes (the level before), w nodes of a new level, Vd draft vocabulary.
"""

import torch
from torch import Tensor

from eagle.trees.base import TreeBatch, to_target
from hsd import Layout


class GrownTree:
    """The tree so far, one entry per level; the root, Int64[B], is the first."""

    def __init__(self, root: Tensor, support: Tensor | None):
        zero = torch.zeros_like(root)[:, None]
        self.support = support
        self.tokens, self.parents, self.depths, self.rows = [root[:, None]], [zero - 1], [zero], [zero - 1]
        self.q: list[Tensor] = []
        self._first = self._kept = 0  # nodes before the frontier, rows of q so far

    @property
    def sizes(self) -> list[int]:
        """Nodes of every level below the root."""
        return [tokens.shape[1] for tokens in self.tokens[1:]]

    def add(self, columns: Tensor, parent: Tensor, row: Tensor, q: Tensor) -> None:
        """A level: draft tokens [B, w], parents within the frontier [B, w], and rows within `q` Float[B, m, Vd] of the
        distributions they were sampled from [B, w], -1 at top-k tokens.
        """
        self.parents.append(parent + self._first)
        self._first += self.tokens[-1].shape[1]
        self.tokens.append(to_target(columns, self.support))
        self.depths.append(torch.full_like(parent, len(self.depths)))
        self.rows.append(torch.where(row < 0, -1, row + self._kept))
        self.q.append(q)
        self._kept += q.shape[1]

    def batch(self, layout: Layout) -> TreeBatch:
        """The finished trees."""
        tokens, parents, depths, rows, q = (
            torch.cat(parts, 1) for parts in (self.tokens, self.parents, self.depths, self.rows, self.q)
        )
        return TreeBatch(tokens, parents, depths, rows, q, self.support, layout)
