"""What goes into a verifier and what comes out of it.

Shape letters: N nodes, K depth of the tree, M proposal rows, V vocabulary, Vd draft vocabulary.

A tree of 7 nodes, its parents and depths (node 0 is the last committed token, always kept):

    0 -- 1 -- 3        node     0   1   2   3   4   5   6
      |    `- 4        parent  -1   0   0   1   1   2   5
      `- 2 -- 5 -- 6   depth    0   1   1   2   2   2   3

Siblings are verified in index order: 1 before 2, and 3 before 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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


class Law(NamedTuple):
    """What a verifier computes: stop Float[N], and residual(node) -> Float[V]."""

    stop: Tensor
    residual: Callable[[int | Tensor], Tensor]


@dataclass(frozen=True)
class StoppingLaw:
    """The exact law of a verification, before anything is drawn.

    stop               Float[N]  probability that the accepted path ends at each node; sums to 1
    residual(node)     Float[V]  law of the bonus token given that it ends at `node` (int or 0-d tensor)
    expected_accepted  Float[]   sum_v stop(v) * depth(v): expected draft tokens accepted, bonus excluded
    """

    stop: Tensor
    residual: Callable[[int | Tensor], Tensor]
    expected_accepted: Tensor


class Verdict(NamedTuple):
    """path Int64[k+1]: node indices from the root to the stopping node.  token Int64[]: the bonus token."""

    path: Tensor
    token: Tensor


class Decision(NamedTuple):
    """The outcome in fixed shapes, ready to be read back in one transfer.

    path               Int64[K+1]  node indices from the root to the stopping node, then -1
                                   (K = layout.depth where a layout is given, else the depth of the tree)
    length             Int64[]     accepted draft tokens k; path[:k+1] is valid
    node               Int64[]     the stopping node, path[k]
    token              Int64[]     the bonus token
    expected_accepted  Float[]     as in StoppingLaw
    """

    path: Tensor
    length: Tensor
    node: Tensor
    token: Tensor
    expected_accepted: Tensor
