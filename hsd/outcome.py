"""Results: the distribution of the stopping node, and one draw from it.

    stop(v) = P(the accepted path ends at node v),    bonus ~ residual(v),    E[accepted] = sum_v stop(v) depth(v)

Shape letters: B batch, N nodes, K depth of the tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class StopDistribution(NamedTuple):
    """What a verifier computes for a batch of trees.

    stop             Float[B, N]  probability that the accepted path ends at each node; rows sum to 1
    residual(nodes)  Float[B, V]  distribution of the bonus token when row b stops at nodes[b]; nodes Int64[B]
    """

    stop: Tensor
    residual: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StoppingLaw:
    """The exact distribution of one tree's verification, before anything is drawn.

    stop               Float[N]  probability that the accepted path ends at each node; sums to 1
    residual(node)     Float[V]  distribution of the bonus token given that it ends at `node` (int or 0-d tensor)
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
    """The outcome for every row of a batch, in fixed shapes.

    path               Int64[B, K+1]  node indices from the root to the stopping node, then -1; K = layout.depth
    accepted           Int64[B]       accepted draft tokens k; path[b, :k+1] is valid, path[b, k] the stopping node
    token              Int64[B]       the bonus token
    expected_accepted  Float[B]       sum_v stop(v) * depth(v)
    stop               Float[B, N]    the distribution that the stopping node was drawn from
    """

    path: Tensor
    accepted: Tensor
    token: Tensor
    expected_accepted: Tensor
    stop: Tensor

    @classmethod
    def at_root(cls, token: Tensor) -> Decision:
        """The decision about trees of a root alone: only the bonus token Int64[B] was drawn."""
        root = token[:, None] * 0
        one = torch.ones_like(root, dtype=torch.float32)
        return cls(root, root[:, 0], token, 0 * one[:, 0], one)

    def emitted(self, tokens: Tensor) -> Tensor:
        """tokens Int64[B, N] of the trees -> Int64[B, K+1]: the accepted tokens, the bonus token, then padding."""
        following = tokens.gather(1, self.path.clamp(min=0).roll(-1, 1))
        place = torch.arange(self.path.shape[1], device=tokens.device)
        return torch.where(place == self.accepted[:, None], self.token[:, None], following)
