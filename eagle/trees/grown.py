"""A tree that grows level by level: what the builders `hybrid` and `rsd` share.

Rows of a batch may have levels of different sizes. While a tree grows, a level is as wide as its widest row and the
others are padded; in the finished batch the padding is gone from between the levels:

    row 0   root | a b c | d .         root a b c d
    row 1   root | e . . | f g         root e f g .        a node at the end hangs on the root: hsd never accepts it

Shapes: B batch, n frontier nodes (the level before), w nodes of a new level, N nodes, Vd draft vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eagle.trees.base import Draft, TreeBatch, TreeSettings, to_target
from hsd import Layout

NO_ROW = -(2**40)  # of a top-k token: negative whatever is added
Sizes = Sequence[int]  # nodes of a level by row


class Level(NamedTuple):
    """The nodes of a new level.

    columns  Int64[B, w]     draft tokens
    parent   Int64[B, w]     index within the frontier
    row      Int64[B, w]     row of `q` that the token was sampled from; NO_ROW at top-k tokens
    q        Float[B, m, Vd] distributions sampled from
    reach    the estimates [B, w] that the accepted path passes them; asked for where another level follows
    sizes    nodes of each batch row, the first ones; None: w of all
    """

    columns: Tensor
    parent: Tensor
    row: Tensor
    q: Tensor
    reach: Callable[[], Tensor]
    sizes: Sizes | None = None


class GrownTree:
    """The trees so far, one entry per level; the root, Int64[B], is the first."""

    def __init__(self, root: Tensor, support: Tensor | None):
        zero = torch.zeros_like(root)[:, None]
        self.support = support
        self.tokens, self.parents, self.rows = [root[:, None]], [zero - 1], [zero - 1]
        self.sizes: list[Sizes] = []
        self.q: list[Tensor] = []
        self._first = self._kept = 0  # nodes before the frontier, rows of q so far

    def add(self, level: Level) -> None:
        """Append a level."""
        self.parents.append(level.parent + self._first)
        self._first += self.tokens[-1].shape[1]
        self.tokens.append(to_target(level.columns, self.support))
        self.rows.append(level.row + self._kept)
        self.q.append(level.q)
        self._kept += level.q.shape[1]
        batch, w = level.columns.shape
        self.sizes.append([w] * batch if level.sizes is None else level.sizes)

    def batch(self, layout_of: Callable[[Sequence[Sizes]], Layout]) -> TreeBatch:
        """The finished trees. `layout_of`: the layout of levels with these sizes."""
        tokens, parents, rows, q = (torch.cat(parts, 1) for parts in (self.tokens, self.parents, self.rows, self.q))
        rows = rows.clamp_(min=-1)
        widths = [part.shape[1] for part in self.tokens]
        depths = torch.cat([torch.full_like(part, depth) for depth, part in enumerate(self.tokens)], 1)
        if any(size < width for sizes, width in zip(self.sizes, widths[1:]) for size in sizes):
            tokens, parents, depths, rows = self._without_padding(tokens, parents, depths, rows, widths)
        return TreeBatch(tokens, parents, depths, rows, q, self.support, layout_of(self.sizes))

    def _without_padding(
        self, tokens: Tensor, parents: Tensor, depths: Tensor, rows: Tensor, widths: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The real nodes first, in their order; what is left over in a shorter row hangs on the root."""
        places = [torch.arange(width) < torch.tensor(sizes)[:, None] for sizes, width in zip(self.sizes, widths[1:])]
        real = torch.cat([torch.ones(len(tokens), 1, dtype=torch.bool), *places], 1).to(tokens.device)
        count = max(1 + sum(sizes) for sizes in zip(*self.sizes))
        order = real.sort(dim=1, descending=True, stable=True).indices[:, :count]
        kept, place = real.gather(1, order), real.cumsum(1) - 1  # place: the new index of every real node
        above = place.gather(1, parents.gather(1, order).clamp(min=0))
        above = torch.where(kept, above, 0)
        above[:, 0] = -1
        return (
            torch.where(kept, tokens.gather(1, order), tokens[:, :1]),
            above,
            torch.where(kept, depths.gather(1, order), 1),
            torch.where(kept, rows.gather(1, order), -2),
        )


def even_level(left: int, below: int) -> int:
    """Nodes of the next of 1 + `below` levels that share `left` nodes equally, earlier ones larger."""
    return -(-left // (below + 1))


def grown(settings: TreeSettings) -> int:
    """Nodes given to the drafter at most: all but the root and the last level's."""
    return max(settings.nodes - 2, 0) if settings.depth > 1 else 0


def grow_levels(
    draft: Draft, settings: TreeSettings, pick: Callable[[Tensor, Tensor, list[int], int], Level]
) -> GrownTree:
    """Trees of at most `nodes` nodes, `depth` deep.

    pick   (q Float[B, n, Vd], reach [B, n] of the frontier, nodes left by row, levels that may follow) -> a level
    """
    tree = GrownTree(draft.root, draft.support)
    q = draft.q
    reach = torch.ones_like(q[..., 0])
    left = [settings.nodes - 1] * len(q)
    for below in range(settings.depth - 1, -1, -1):
        level = pick(q, reach, left, below)
        tree.add(level)
        left = [rest - size for rest, size in zip(left, tree.sizes[-1])]
        if not below or not any(left):
            break
        reach = level.reach()
        draft.grow(tree.parents[-1], tree.tokens[-1])
        q = draft.q
    return tree
