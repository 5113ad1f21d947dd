"""Greedy verification, for temperature 0: follow the target's most probable token as long as the tree has it.

    y(v) = argmax p_v;  descend to the first child whose token is y(v);  else stop at v and emit y(v)

How the draft was made does not matter. It is the limit of `hsd` and `token` as the temperature goes to 0,
and equals them on one-hot p. Given any other p it preserves the argmax law, not p: ask for it at
temperature 0 only. Only the order of the entries of p matters, so with check=False float32 logits do as
well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.balance import Problem
from hsd.types import Law


def greedy(problem: Problem) -> Law:
    """All mass on the node where the longest greedy path in the tree ends; the residual is one-hot."""
    tree, topo = problem.tree, problem.topo
    mode = problem.target.argmax(-1)
    match = tree.tokens == mode[topo.parent]
    match = match & ~(topo.earlier & match).any(1)
    match = match | (tree.parents < 0)
    reached = (match | ~topo.ancestors).all(1)
    index = torch.arange(len(tree), device=mode.device)
    stays = ~((tree.parents == index[:, None]) & match).any(1)

    def residual(node: int | Tensor) -> Tensor:
        node = torch.as_tensor(node, device=mode.device).reshape(1)
        zeros = torch.zeros_like(problem.target[0])
        return zeros.index_fill(0, mode.index_select(0, node), 1)

    return Law((reached & stays).to(problem.target.dtype), residual)
