"""A tree that grows level by level: what the builders `hybrid` and `rsd` share.

Shapes: B batch, n frontier nodes (the level before), w nodes of a new level, Vd draft vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eagle.drafters.base import Drafter
from eagle.trees.base import DraftProbs, TreeBatch, TreeSettings, to_target
from hsd import Layout


class Level(NamedTuple):
    """The nodes of a new level, as `GrownTree.add` takes them.

    reach   the estimates [B, w] that the accepted path passes them; asked for where another level follows
    """

    columns: Tensor
    parent: Tensor
    row: Tensor
    q: Tensor
    reach: Callable[[], Tensor]


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


def even_level(left: int, below: int) -> int:
    """Slots of the next of 1 + `below` levels that share `left` slots equally, earlier ones larger."""
    return -(-left // (below + 1))


def grown_slots(settings: TreeSettings) -> int:
    """Nodes given to the drafter at most: all but the root and the last level's."""
    return max(settings.nodes - 2, 0) if settings.depth > 1 else 0


def grow_levels(
    drafter: Drafter,
    root: Tensor,
    logits: Tensor,
    settings: TreeSettings,
    probs: DraftProbs,
    pick: Callable[[Tensor, Tensor, int, int], Level],
) -> GrownTree:
    """root Int64[B], draft logits after it [B, Vd] -> a tree of at most `nodes` nodes, `depth` deep.

    pick   (q Float[B, n, Vd], reach [B, n] of the frontier, slots left, levels that may follow) -> the level's nodes
    """
    grown = GrownTree(root, drafter.support)
    q = probs(logits)[:, None]
    reach = torch.ones_like(q[..., 0])
    left = settings.nodes - 1
    for below in range(settings.depth - 1, -1, -1):
        level = pick(q, reach, left, below)
        grown.add(level.columns, level.parent, level.row, level.q)
        left -= level.columns.shape[1]
        if not left or not below:
            break
        reach = level.reach()
        q = probs(drafter.grow(grown.parents[-1], grown.tokens[-1]))
    return grown
