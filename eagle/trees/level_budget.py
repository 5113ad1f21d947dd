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

import torch
from torch import Tensor

# q of a typical node: geometric, q(k-th token) = (1 - r) r^k; r and how often. From checkpoints/smollm2-135m and
# checkpoints/qwen2.5-coder-0.5b on training questions: the likeliest token has q > 0.8 at 41 and 52 % of the nodes.
TYPICAL = ((0.9, 0.05), (0.7, 0.15), (0.5, 0.20), (0.3, 0.15), (0.07, 0.45))
CHILDREN = 12  # top-k children of a node that are looked at
STEP, STEPS = 0.1, 64  # grid of F: x = exp(0), exp(STEP), ...
TINY = 1e-30
RECURSIONS = 100


def child_gains(top_q: Tensor, squares: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """What the children of a node that is reached add: its sampled child [...], its k-th top-k child [..., t].

    top_q Float[..., t], falling; squares Float[...]: sum of q^2 over all tokens. Equations: eagle/trees/hybrid.py.
    """
    spread = 1 - squares[..., None]  # G_0
    left = (1 - top_q.cumsum(-1)).clamp(min=0) * (spread - (top_q * (1 - top_q)).cumsum(-1)).clamp(min=0)
    missed = (1 - beta) * torch.cat([spread, left], -1)  # [..., t + 1]: what no child covers, after 0 .. t of them
    return 1 - missed[..., 0], (missed[..., :-1] - missed[..., 1:]).clamp(min=0)


def expected_subtree_size(beta: float, below: int) -> Tensor:
    """F_below on its grid: Float[STEPS]."""
    for level in range(0, below, RECURSIONS):  # each is a step from the one before it, however deep the tree is
        _subtree_size(beta, level)
    return _subtree_size(beta, below)


@lru_cache(2**16)
def _subtree_size(beta: float, below: int) -> Tensor:
    if below == 0:
        return torch.ones(STEPS)
    ratio, share = torch.tensor(TYPICAL).T
    top_q = (1 - ratio)[:, None] * ratio[:, None] ** torch.arange(CHILDREN)
    sampled, topk = child_gains(top_q, (1 - ratio) / (1 + ratio), beta)
    gains = torch.cat([sampled[:, None], topk], 1).clamp(min=TINY)  # [types, CHILDREN + 1]
    place = torch.arange(STEPS)[:, None, None] + (gains.log() / STEP)
    taken = _subtree_size(beta, below - 1)[place.clamp(0, STEPS - 1).long()].masked_fill(place < 0, 0)
    return 1 + taken.sum(-1) @ share


def level_sizes(values: Tensor, left: list[int], below: int, beta: float) -> list[int]:
    """How many of each row's best candidates get a node: at least 1, at most what the row has left.

    values  Float[B, c], falling: the best candidates of a row, negative where it has no more
    left    nodes that each row's tree has left for this level and those below
    below   levels that may follow
    """
    most = (values >= 0).sum(1).tolist()
    if below == 0:
        return [min(pair) for pair in zip(left, most)]
    place = values.clamp(min=TINY).log().div_(STEP).floor().long()
    taken = expected_subtree_size(beta, below)[(place[:, :, None] - place[:, None, :]).clamp_(0, STEPS - 1)]
    wanted = taken.triu_().sum(1)  # [B, c]: nodes of the tree if this level takes 1, 2, ... candidates
    found = (wanted <= torch.tensor(left, dtype=wanted.dtype)[:, None]).sum(1).tolist()
    return [min(max(size, 1), rest, there) for size, rest, there in zip(found, left, most)]
