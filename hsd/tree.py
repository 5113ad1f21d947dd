"""`DraftTree`: what a verifier is given.

Shape letters: N nodes, K depth of the tree, M proposal rows, V vocabulary, Vd draft vocabulary.

A tree of 7 nodes, its parents and depths (node 0 is the last committed token, always kept):

    0 -- 1 -- 3        node     0   1   2   3   4   5   6
      |    `- 4        parent  -1   0   0   1   1   2   5
      `- 2 -- 5 -- 6   depth    0   1   1   2   2   2   3

Siblings are verified in index order: 1 before 2, and 3 before 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hsd.checks import check_tree_shapes
from hsd.layout import Layout


@dataclass(frozen=True)
class DraftTree:
    """A drafted tree and the law that each of its tokens was drawn from.

    tokens         Int64[N]      tokens[0] is the root, the last committed token
    parents        Int64[N]      parents[0] = -1 and 0 <= parents[i] < i
    proposal_rows  Int64[N]      row of `proposals` that holds d_i; -1: chosen, d_i is a point mass
    proposals      Float[M, V]   the laws d_i; or Float[M, Vd] with `support`; None when nothing was sampled
    support        Int64[Vd]     distinct token ids of the columns of `proposals`
    layout         Layout        static hints; without them the tree's shape is read on the host (one sync)

    d_i must be the law the token was really drawn from, given everything drawn before it: losslessness
    rests on it. It is not recomputed here. A node that repeats the token of an earlier *chosen* sibling is
    never accepted, so such repeats may be used as padding.

    Raises ValueError on wrong dtypes or shapes. Values are checked by `stopping_law` and `verify`.
    """

    tokens: Tensor
    parents: Tensor
    proposal_rows: Tensor
    proposals: Tensor | None = None
    support: Tensor | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        check_tree_shapes(self)

    def __len__(self) -> int:
        return self.tokens.shape[0]
