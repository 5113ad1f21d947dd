"""What a verification decides: the distribution of the stopping node, and one draw from it.

Shape letters: N nodes, K depth of the tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


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
