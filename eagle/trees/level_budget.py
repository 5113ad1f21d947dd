"""How many nodes a level of a tree gets, when the levels below it are not drafted yet.

One threshold holds for a whole tree: a candidate becomes a node where its value (what it adds to the expected number
of accepted tokens) is at least the threshold, on this level and on those below. So the tree is narrow and deep where
the draft distributions q are sure, wide where they are not. What the levels below will take at a threshold is estimated
from typical draft distributions:

    F_D(x) = 1 + sum over a node's candidates c with x a_c >= 1 of the mean of F_D-1(x a_c),     F_0 = 1

is the number of nodes that a candidate worth x thresholds and what grows below it become, with D levels below; a_c is
the value of candidate c of a node that is reached for certain. A level takes its w best candidates, w being the largest
number for which

    sum of F_D(v_i / v_w) over i = 1 .. w  <=  nodes left,       v_1 >= v_2 >= ...   the values of the candidates

The last level takes all that are left. The number depends on values of candidates, in which no token of the level has a
part: it is known before they are sampled, and nothing is lost (docs/hybrid-trees.md).

Shapes: B batch, c candidates.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

# q of a typical node: geometric, q(k-th token) = (1 - r) r^k; r and how often. From checkpoints/smollm2-135m and
# checkpoints/qwen2.5-coder-0.5b on training questions: the likeliest token has q > 0.8 at 41 and 52 % of the nodes.
TYPICAL = ((0.9, 0.05), (0.7, 0.15), (0.5, 0.20), (0.3, 0.15), (0.07, 0.45))
CHILDREN = 12  # top-k children of a node that are looked at
STEP, STEPS = 0.1, 64  # grid of F: x = exp(0), exp(STEP), ...
TINY = 1e-30
RECURSIONS = 100


def child_gains(top_q: Tensor, squares: Tensor, beta: float) -> Tensor:
    """What the children of nodes that are reached add: Float[..., 1 + t, n], a node's sampled child first, then its
    likeliest tokens.

    top_q    Float[..., 1 + t, n]: zeros, then q of every node's likeliest tokens, falling
    squares  Float[..., n]: sum of q^2 over all tokens. Equations: eagle/trees/hybrid.py
    """
    left = (1 - top_q.cumsum(-2)).clamp_(min=0)  # u, with 0 .. t top-k children
    spread = (1 - squares)[..., None, :] - torch.addcmul(top_q, top_q, top_q, value=-1).cumsum(-2)  # G
    missed = left.mul_(spread.clamp_(min=0)).mul_(1 - beta)  # what no child covers
    return (pad(missed, (0, 0, 1, -1), value=1) - missed).clamp_(min=0)


def expected_subtree_size(beta: float, below: int) -> Tensor:
    """F_below on its grid: Float[STEPS]."""
    for level in range(0, below, RECURSIONS):  # each is a step from the one before it, however deep the tree is
        _subtree_size(beta, level)
    return _subtree_size(beta, below)


@lru_cache(2**16)
def _subtree_size(beta: float, below: int) -> Tensor:
    if below == 0:
        return torch.ones(STEPS, dtype=torch.float32, device="cpu")
    ratio, share = torch.tensor(TYPICAL, dtype=torch.float32, device="cpu").T
    top_q = (1 - ratio) * ratio ** torch.arange(CHILDREN, device=ratio.device)[:, None]
    gains = child_gains(pad(top_q, (0, 0, 1, 0)), (1 - ratio) / (1 + ratio), beta).T.clamp(min=TINY)
    place = torch.arange(STEPS, device=ratio.device)[:, None, None] + (gains.log() / STEP)
    taken = _subtree_size(beta, below - 1)[place.clamp(0, STEPS - 1).long()].masked_fill(place < 0, 0)
    return 1 + taken.sum(-1) @ share


def level_sizes(values: Tensor, left: list[int], below: int, beta: float) -> list[int]:
    """How many of each row's best candidates get a node: at least 1, at most what the row has left.

    values  Float[B, c], falling: the best candidates of a row, negative where it has no more
    left    nodes that each row's tree has left for this level and those below
    below   levels that may follow
    """
    numbers, share = values.cpu().numpy(), np.array(left)
    most = (numbers >= 0).sum(1)
    if below == 0:
        return np.minimum(share, most).tolist()
    place = np.floor(np.log(np.maximum(numbers, TINY)) / STEP).astype(np.int64)
    taken = expected_subtree_size(beta, below).numpy()[(place[:, :, None] - place[:, None]).clip(0, STEPS - 1)]
    wanted = np.triu(taken).sum(1)  # [B, c]: nodes of the tree if this level takes 1, 2, ... candidates
    found = (wanted <= share[:, None]).sum(1)
    return np.minimum(np.minimum(found.clip(1), share), most).tolist()
