"""Branch-wise hierarchical speculative decoding (HSD, arXiv 2601.05724) on any tree, from leaves to root.

Every node v has a weight w in [0, 1] and a residual law r; at first r = p_v, and w = 1 at the root.
For its children i in order, with token x_i and proposal law d_i:

    weight of the child      w_i = min(1, w r(x_i) / d_i(x_i)), then the child's subtree is verified
    if all of it is rejected:
        excess               e = max(w r - d_i, 0),  Z = sum(e)
        deficiency               sum(max(d_i - w r, 0)) = Z + 1 - w
        residual             r <- e / Z,  w <- Z / (Z + 1 - w)

After its last child v is accepted with probability h(v) = w, and the bonus token is drawn from r. When v is
visited everything before it was rejected, so the verification is one draw from

    stop(v) = h(v) * prod over u before v in post-order of (1 - h(u))

On a chain this is block verification; on chosen tokens it accepts as token-wise verification does.
hsd/verifiers/balance.py has the recursion in the form that is computed.
"""

from __future__ import annotations

import torch

from hsd.outcome import Law
from hsd.topology import post_order_stop
from hsd.verifiers.balance import Problem, balance, residual


def hierarchical(problem: Problem) -> Law:
    """Law of the stopping node and of the bonus token under branch-wise HSD. Lossless on every tree."""
    result = balance(problem, inherit=True)
    rejected = (1 - result.weight) / result.left.clamp(min=torch.finfo(result.left.dtype).tiny)
    stop = post_order_stop((1 - rejected).clamp(min=0), problem.topo.post)
    return Law(stop, lambda node: residual(problem, result, result.weight, node))
