"""Greedy verification, for temperature 0: the longest drafted continuation that the target itself would write.

    y(v) = argmax p_v;  a node is right if it holds y of its parent and all its ancestors are right;
    stop at the deepest right node v (the first of several), emit y(v)

How the draft was made does not matter. It is the limit of `hsd` and `token` as the temperature goes to 0, and
equals them on one-hot p, except where siblings repeat a token: those two give the repeats' subtrees up with the
first, here the deepest counts. Given any other p it preserves the argmax law, not p: for temperature 0 only.
Only the order of the entries of p matters, so with check=False float32 logits do as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.outcome import Law
from hsd.verifiers.balance import Problem


def greedy(problem: Problem) -> Law:
    """All mass on the node where the longest greedy path in the tree ends; the residual is one-hot."""
    tree, topo = problem.tree, problem.topo
    mode = problem.target.argmax(-1)
    match = (tree.tokens == mode[topo.parent]) | (tree.parents < 0)
    right = (match | ~topo.ancestors).all(1)
    index = torch.arange(len(tree), device=mode.device)
    deepest = torch.where(right, (topo.depth + 1) * len(tree) - index, 0).argmax()

    def residual(node: int | Tensor) -> Tensor:
        node = torch.as_tensor(node, device=mode.device).reshape(1)
        zeros = torch.zeros_like(problem.target[0])
        return zeros.index_fill(0, mode.index_select(0, node), 1)

    return Law((index == deepest).to(problem.target.dtype), residual)
