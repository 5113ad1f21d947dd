"""Branch-wise hierarchical speculative decoding (HSD, arXiv 2601.05724) on any tree, from leaves to root.

Every node v has a weight w in [0, 1] and a residual r; at first r = p_v, and w = 1 at the root.
For its children i in order, with token x_i and draft distribution d_i:

    weight of the child      w_i = min(1, w r(x_i) / d_i(x_i)), then the child's subtree is verified
    if all of it is rejected:
        excess               e = max(w r - d_i, 0),  Z = sum(e)
        deficiency               sum(max(d_i - w r, 0)) = Z + 1 - w
        residual             r <- e / Z,  w <- Z / (Z + 1 - w)

After its last child v is accepted with probability h(v) = w, and the bonus token is drawn from r. When v is
visited everything before it was rejected, so the verification is one draw from

    stop(v) = h(v) * prod over u before v in post-order of (1 - h(u))

On one path this is block verification; on top-k tokens it accepts as token-wise verification does.
hsd/verifiers/residuals.py has the recursion in the form that is computed.
"""

from __future__ import annotations

import torch

from hsd.outcome import StopDistribution
from hsd.topology import post_order_stop
from hsd.verifiers.bonus import residual
from hsd.verifiers.inputs import VerifierInput
from hsd.verifiers.residuals import child_weights, left_after


def hierarchical(inputs: VerifierInput) -> StopDistribution:
    """Distribution of the stopping node and of the bonus token under branch-wise HSD. Lossless on every tree."""
    result = child_weights(inputs, inherit=True)
    left = left_after(inputs, result.taken).clamp_(min=torch.finfo(result.taken.dtype).tiny)
    accept = (1 - (1 - result.weight) / left).clamp_(min=0)
    stop = post_order_stop(accept, inputs.topo.post)
    return StopDistribution(stop, lambda nodes: residual(inputs, result, result.weight, nodes))
