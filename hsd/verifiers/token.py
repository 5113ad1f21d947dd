"""Token-wise verification: recursive rejection sampling from the root to a leaf.

Leviathan et al. (arXiv 2211.17192) and Chen et al. (arXiv 2302.01318) for one path; SpecInfer (arXiv
2305.09781) and RRS (arXiv 2402.14160) for several children. At a node, with r = p_v at first, for its
children i in order:

    accept and descend with  a_i = min(1, r(x_i) / d_i(x_i)),      else  r <- norm(max(r - d_i, 0))

If no child is accepted, v is the stop and the bonus token is drawn from r. Hence

    stop(v) = prod of a_u over the path to v
              * prod of (1 - a_u) over the earlier siblings of the path's nodes and the children of v
"""

from __future__ import annotations

import torch

from hsd.outcome import StopDistribution
from hsd.verifiers.bonus import residual
from hsd.verifiers.inputs import VerifierInput
from hsd.verifiers.residuals import child_weights


def token(inputs: VerifierInput) -> StopDistribution:
    """Distribution of the stopping node and of the bonus token token-wise. Lossless on every tree."""
    result, topo, one = child_weights(inputs, inherit=False), inputs.topo, inputs.ones[:, :, 0]
    accept = result.weight
    reject = (1 - accept)[:, None, :]
    step = accept * torch.where(topo.earlier, reject, 1).prod(2)
    step = torch.where(inputs.batch.parents < 0, 1, step)
    reach = torch.where(topo.ancestors, step[:, None, :], 1).prod(2)
    none = torch.where(inputs.children, reject, 1).prod(2)
    return StopDistribution(reach * none, lambda nodes: residual(inputs, result, one, nodes))
