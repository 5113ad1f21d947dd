"""The distribution of the bonus token at the stopping node: what its children leave of the target distribution.

    a = w p,    then for its children i in order    a <- max(a - D d_i, 0),    then residual = a / sum(a)

D is the node's remaining scalar when child i is tried (hsd/verifiers/residuals.py). Only the residual of the node that
was drawn is built. Shape letters: B batch, N nodes, V vocabulary, Vd columns of `proposals`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.verifiers.inputs import VerifierInput, flat_rows
from hsd.verifiers.residuals import ChildWeights


def residual(inputs: VerifierInput, result: ChildWeights, start: Tensor, nodes: Tensor) -> Tensor:
    """Distribution of the bonus token when row b stops at nodes[b], Float[B, V].

    start  Float[B, N]  w of each node before its first child
    nodes  Int64[B]
    """
    node = nodes[:, None]
    p = target_row(inputs, nodes)
    child = inputs.batch.parents == node
    measure = start.gather(1, node) * p
    for sibling in _by_turn(inputs, child & inputs.sampled):
        measure = _subtract(inputs, measure, result.before, sibling)
    cap = torch.full_like(start, torch.inf).masked_fill_(child & ~inputs.sampled & ~inputs.padding, 0)
    measure = measure.scatter_reduce(1, inputs.batch.tokens, cap, "amin")
    return normalized(measure, p)


def target_row(inputs: VerifierInput, nodes: Tensor) -> Tensor:
    """p at nodes Int64[B] of the rows: Float[B, V]."""
    return inputs.target.flatten(0, 1).index_select(0, flat_rows(nodes, inputs.target.shape[1]))


def _by_turn(inputs: VerifierInput, sampled: Tensor) -> list[Tensor]:
    """Sampled children of one node per row -> the first of them, the second, ..., each a mask Bool[B, N]."""
    if inputs.layout.max_draws <= 1:
        return [sampled] * inputs.layout.max_draws
    return [sampled & (inputs.sampled_rank == turn) for turn in range(inputs.layout.max_draws)]


def _subtract(inputs: VerifierInput, measure: Tensor, before: Tensor, hit: Tensor) -> Tensor:
    """max(a - D d_i, 0) for the one node i marked in each row of hit Bool[B, N], or a itself if there is none."""
    index = hit.to(torch.uint8).argmax(1, keepdim=True)
    rows = inputs.proposal_row.gather(1, index)[:, 0]
    share = inputs.distributions.flatten(0, 1).index_select(0, rows)
    share = share * (before.clamp(min=0) * hit).sum(1, keepdim=True)
    support = inputs.batch.support
    if support is None:
        return (measure - share).clamp_(min=0)
    kept = (measure.index_select(1, support) - share).clamp_(min=0)
    return measure.index_copy(1, support, kept)


def normalized(measure: Tensor, fallback: Tensor) -> Tensor:
    """measure / sum(measure) Float[B, V].

    Where nothing is left the node is the stop with probability 0 up to rounding. Its own target distribution,
    `fallback`, is then used: it never gives a token of probability 0.
    """
    total = measure.sum(-1, keepdim=True)
    return torch.where(
        total > torch.finfo(measure.dtype).tiny, measure / total, fallback / fallback.sum(-1, keepdim=True)
    )
