"""Greedy verification, for temperature 0: the longest drafted continuation that greedy decoding of the target writes.

    y(v) = argmax p_v;  a node is right if it holds y of its parent and all its ancestors are right;
    stop at the deepest right node v (the first of several), emit y(v)

How the draft was made does not matter. It is the limit of `hsd` and `token` as the temperature goes to 0, and
equals them on one-hot p, except where siblings repeat a token: those two reject the subtrees of all repeats with the
first, here the deepest counts. Given any other p it emits the argmax, not a sample of p: for temperature 0 only.
Only the order of the entries of p matters, so with check=False float32 logits do as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.outcome import StopDistribution
from hsd.verifiers.inputs import VerifierInput


def greedy(inputs: VerifierInput) -> StopDistribution:
    """All mass on the node where the longest greedy path in the tree ends; the residual is one-hot."""
    batch, topo = inputs.batch, inputs.topo
    mode = inputs.target.argmax(-1)
    match = (batch.tokens == mode.gather(1, topo.parent)).logical_and_(~inputs.padding).logical_or_(batch.parents < 0)
    right = (match[:, None, :] | ~topo.ancestors).all(2)
    nodes = batch.tokens.shape[1]
    index = torch.arange(nodes, device=mode.device)
    deepest = torch.where(right, (topo.depth + 1) * nodes - index, 0).argmax(1, keepdim=True)

    def residual(nodes: Tensor) -> Tensor:
        zeros = torch.zeros_like(inputs.target[:, 0])
        return zeros.scatter_(1, mode.gather(1, nodes[:, None]), 1)

    return StopDistribution((index == deepest).to(inputs.target.dtype), residual)
