"""What each child takes from its parent's target law, and what is left: the part HSD and token-wise share.

A node with weight w and target law p carries the measure a and the scalar D, at first a = w p and D = 1.
For its children i in order, with token x_i and proposal law d_i:

    weight of the child   w_i = min(1, a(x_i) / (D d_i(x_i)))
    mass it takes         t_i = sum_x min(a(x), D d_i(x))          (a chosen token: t_i = a(x_i))
    what is left          a <- max(a - D d_i, 0),      D <- D - t_i

This is the recursion of HSD (arXiv 2601.05724) on a tree with the normalisation postponed. With r the
residual law, e = max(w r - d, 0) and Z = sum(e), one step there is r <- e / Z, w <- Z / (Z + 1 - w). As
Z + 1 - w = 1 - sum min(w r, d), the product w r is a / D at every step. sum(a) and D lose the same t_i, so
sum(a) = w - 1 + D, and after the last child

    the node is accepted with h = sum(a) / D = 1 - (1 - w) / D        (the root, w = 1: always)
    its residual law is           a / sum(a)

Chosen children touch single entries of a: they cost scalars. A sampled child costs one sum over the columns
of `proposals`, as nothing is taken where d_i = 0. All nodes of one depth go together. No joint probability
is ever formed, so long paths neither under- nor overflow.

Shape letters: N nodes, M proposal rows, V vocabulary, Vd columns of `proposals`, n nodes of one round.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hsd.layout import Layout, Slots
from hsd.topology import Topology, topology
from hsd.types import DraftTree


class Problem(NamedTuple):
    """A tree, its target laws p = target Float[N, V], and the scalars every verifier looks up in them."""

    tree: DraftTree
    target: Tensor
    layout: Layout
    topo: Topology
    earlier: Tensor  # Float[N, N]  topo.earlier as numbers
    sampled: Tensor  # Bool[N]
    rows: Tensor  # Int64[N]        proposal_rows, 0 where the token was chosen
    p_token: Tensor  # Float[N]     p_parent(x_i); 0 where an earlier chosen sibling has the same token
    d_token: Tensor  # Float[N]     d_i(x_i); 1 where the token was chosen
    d_later: Tensor  # Float[N, N]  d_i(x_j) for j a later sibling of the sampled node i, else 0
    column: Tensor  # Int64[N]      column of x_i in `proposals`
    inside: Tensor  # Bool[N]       whether it has one


class Balance(NamedTuple):
    """weight Float[N]: w on arrival.  before Float[N]: the parent's D when the node is tried.
    left Float[N]: the node's own D after its last child."""

    weight: Tensor
    before: Tensor
    left: Tensor


def pose(tree: DraftTree, target: Tensor, layout: Layout) -> Problem:
    """Look the scalars up. `target` and `tree.proposals` are in the dtype to compute in."""
    topo = topology(tree.parents, layout.depth)
    sampled, rows = tree.proposal_rows >= 0, tree.proposal_rows.clamp(min=0)
    same = tree.tokens[:, None] == tree.tokens[None, :]
    repeat = (topo.earlier & same & ~sampled).any(1)
    p_token = target[topo.parent, tree.tokens].masked_fill(repeat, 0)
    earlier = topo.earlier.to(target.dtype)
    column, inside = _columns(tree, target.shape[1])
    d_token, d_later = torch.ones_like(p_token), torch.zeros_like(earlier)
    if layout.max_draws:
        d = tree.proposals[rows[:, None], column] * inside
        d_token = torch.where(sampled, d.diagonal(), d_token)
        d_later = d * (topo.earlier.T & sampled[:, None])
    return Problem(tree, target, layout, topo, earlier, sampled, rows, p_token, d_token, d_later,
                   column, inside)


def _columns(tree: DraftTree, vocabulary: int) -> tuple[Tensor, Tensor]:
    if tree.support is None:
        return tree.tokens, torch.ones_like(tree.tokens, dtype=torch.bool)
    index = torch.arange(len(tree.support), device=tree.tokens.device)
    column = index.new_full((vocabulary,), -1).scatter_(0, tree.support, index)[tree.tokens]
    return column.clamp(min=0), column >= 0


def balance(problem: Problem, inherit: bool) -> Balance:
    """Run the recursion from the root down.

    inherit=True: a node starts with the weight it was given (branch-wise). False: every node starts with
    w = 1, as if reached for certain (token-wise); `weight` then holds the acceptance ratios a_i.
    """
    tree, topo = problem.tree, problem.topo
    one = torch.ones_like(problem.p_token)
    weight, taken, tiny = one, torch.zeros_like(one), torch.finfo(one.dtype).tiny
    for depth, rounds in enumerate(problem.layout.rounds, 1):
        value, mass = _try_level(problem, weight[topo.parent] if inherit else one, rounds)
        level = topo.depth == depth
        taken = torch.where(level, torch.where(problem.sampled, mass, value), taken)
        ratio = value / (_left_before(problem, taken) * problem.d_token).clamp(min=tiny)
        weight = torch.where(level, ratio.clamp(max=1), weight)
    children = tree.parents == torch.arange(len(tree), device=one.device)[:, None]
    left = torch.addmv(one, children.to(one.dtype), taken, alpha=-1)
    return Balance(weight, _left_before(problem, taken), left)


def _left_before(problem: Problem, taken: Tensor) -> Tensor:
    """D when each node is tried: 1 minus what its earlier siblings took. Below 0 by rounding only."""
    return torch.addmv(torch.ones_like(taken), problem.earlier, taken, alpha=-1)


def _try_level(problem: Problem, start: Tensor, rounds: tuple[Slots, ...]) -> tuple[Tensor, Tensor]:
    """start Float[N], w of each node's parent -> Float[N] a(x_i) when i is tried, Float[N] t_i if sampled."""
    value, mass = start * problem.p_token, torch.zeros_like(start)
    measure = previous = None
    for turn, slots in enumerate(rounds):
        nodes = _index(slots, start.device)
        left = problem.sampled[nodes].to(start.dtype)  # D; 0 makes a chosen node in the range a no-op
        share = problem.tree.proposals.index_select(0, problem.rows[nodes])
        if turn == 0:
            measure = _target_rows(problem, nodes).mul_(start[nodes, None])
        else:
            measure = measure[_position_of_previous(problem, nodes, previous)]
        if turn or not problem.layout.sampled_first:
            left = left * _left_before(problem, torch.where(problem.sampled, mass, value))[nodes].clamp(min=0)
            measure = _without_chosen(problem, measure, nodes)
            share.mul_(left[:, None])
        taken = torch.minimum(measure, share)
        mass[nodes] = taken.sum(-1)
        value = torch.addmv(value, problem.d_later[nodes].T, left, alpha=-1).clamp(min=0)
        if turn + 1 < len(rounds):
            measure, previous = measure.sub_(taken), nodes
    return value, mass


def _index(slots: Slots, device: torch.device) -> slice | Tensor:
    if isinstance(slots, range):
        return slice(slots.start, slots.stop)
    return torch.tensor(slots, dtype=torch.int64, device=device)


def _target_rows(problem: Problem, nodes: slice | Tensor) -> Tensor:
    """p of the nodes' parents on the columns of `proposals`: no others lose mass. A copy, Float[n, Vd]."""
    rows = problem.target.index_select(0, problem.topo.parent[nodes])
    return rows if problem.tree.support is None else rows.index_select(1, problem.tree.support)


def _position_of_previous(problem: Problem, nodes: slice | Tensor, previous: slice | Tensor) -> Tensor:
    """Where in `previous`, the nodes of the round before, the nodes' last sampled siblings are."""
    sibling = problem.topo.earlier[nodes][:, previous] & problem.sampled[previous]
    return sibling.to(torch.uint8).argmax(1)


def _without_chosen(problem: Problem, measure: Tensor, nodes: slice | Tensor) -> Tensor:
    """a with the tokens of the nodes' earlier chosen siblings removed."""
    gone = problem.topo.earlier[nodes] & ~problem.sampled & problem.inside
    cap = torch.where(gone, 0.0, torch.inf).to(measure.dtype)
    return measure.scatter_reduce(1, problem.column.expand(len(measure), -1), cap, "amin")


def residual(problem: Problem, result: Balance, start: Tensor, node: int | Tensor) -> Tensor:
    """Law of the bonus token when stopping at `node`, Float[V]. start Float[N]: w at each node's start."""
    node = torch.as_tensor(node, device=start.device).reshape(1)
    p = problem.target.index_select(0, node)[0]
    child = problem.tree.parents == node
    drawn = child & problem.sampled
    rank = problem.earlier.mv(problem.sampled.to(p.dtype))
    measure = start.index_select(0, node) * p
    for turn in range(problem.layout.max_draws):
        measure = _subtract(problem, measure, result.before, drawn & (rank == turn))
    cap = torch.where(child & ~problem.sampled, 0.0, torch.inf).to(p.dtype)
    measure = measure.scatter_reduce(0, problem.tree.tokens, cap, "amin")
    return normalised(measure, p)


def _subtract(problem: Problem, measure: Tensor, before: Tensor, hit: Tensor) -> Tensor:
    """max(a - D d_i, 0) for the one node i marked in hit Bool[N], or a itself if there is none."""
    index = hit.to(torch.uint8).argmax().reshape(1)
    share = problem.tree.proposals.index_select(0, problem.rows.index_select(0, index))[0]
    share = share * (before.index_select(0, index).clamp(min=0) * hit.any())
    if problem.tree.support is None:
        return (measure - share).clamp(min=0)
    kept = (measure.index_select(0, problem.tree.support) - share).clamp(min=0)
    return measure.index_copy(0, problem.tree.support, kept)


def normalised(measure: Tensor, fallback: Tensor) -> Tensor:
    """measure / sum(measure) Float[V].

    With nothing left the node is not the stop, up to rounding. Its own target law, `fallback`, is then a safe
    answer: it never gives a token of probability 0.
    """
    total = measure.sum()
    return torch.where(total > torch.finfo(measure.dtype).tiny, measure / total, fallback / fallback.sum())
