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

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hsd.layout import Layout, Slots
from hsd.topology import Topology, topology
from hsd.tree import DraftTree


@dataclass(frozen=True)
class Problem:
    """A tree, its target laws p = target Float[N, V], and what verifiers look up in them, each when first asked for.

    `target` and `tree.proposals` are in the dtype to compute in; `ancestors` as in `hsd.topology`, where known.
    """

    tree: DraftTree
    target: Tensor
    layout: Layout
    ancestors: Tensor | None = None

    @cached_property
    def topo(self) -> Topology:
        return topology(self.tree.parents, self.layout.depth, self.ancestors)

    @cached_property
    def earlier(self) -> Tensor:
        """Float[N, N]: topo.earlier as numbers."""
        return self.topo.earlier.to(self.target.dtype)

    @cached_property
    def sampled(self) -> Tensor:
        """Bool[N]"""
        return self.tree.proposal_rows >= 0

    @cached_property
    def rows(self) -> Tensor:
        """Int64[N]: proposal_rows, 0 where the token was chosen."""
        return self.tree.proposal_rows.clamp(min=0)

    @cached_property
    def p_token(self) -> Tensor:
        """Float[N]: p_parent(x_i); 0 where an earlier chosen sibling has the same token."""
        tokens, topo = self.tree.tokens, self.topo
        repeat = ((tokens[:, None] == tokens) & topo.earlier).logical_and_(~self.sampled).any(1)
        return self.target[topo.parent, tokens].masked_fill_(repeat, 0)

    @cached_property
    def d_pair(self) -> Tensor:
        """Float[N, N]: d_i(x_j), where i and j are both below the same rows of `proposals`; read where i is sampled."""
        column, inside = self.column, self.inside
        d = self.tree.proposals[self.rows[:, None], column]
        return d if inside is None else d * inside

    @cached_property
    def d_token(self) -> Tensor:
        """Float[N]: d_i(x_i); 1 where the token was chosen."""
        if not self.layout.max_draws:
            return torch.ones_like(self.p_token)
        return torch.where(self.sampled, self.d_pair.diagonal(), 1)

    @cached_property
    def d_later(self) -> Tensor:
        """Float[N, N]: d_i(x_j) for j a later sibling of the sampled node i, else 0."""
        if not self.layout.max_draws:
            return torch.zeros_like(self.earlier)
        return self.d_pair * (self.topo.earlier.T & self.sampled[:, None])

    @cached_property
    def _columns(self) -> Tensor:
        """Int64[N]: column of x_i in `proposals`, -1 where it has none."""
        support = self.tree.support
        index = torch.arange(len(support), device=support.device)
        return index.new_full((self.target.shape[1],), -1).scatter_(0, support, index)[self.tree.tokens]

    @cached_property
    def column(self) -> Tensor:
        """Int64[N]: column of x_i in `proposals`, 0 where it has none."""
        return self.tree.tokens if self.tree.support is None else self._columns.clamp(min=0)

    @cached_property
    def inside(self) -> Tensor | None:
        """Bool[N]: whether x_i has a column; None where every token has."""
        return None if self.tree.support is None else self._columns >= 0


class Balance(NamedTuple):
    """weight Float[N]: w on arrival.  before Float[N]: the parent's D when the node is tried.
    left Float[N]: the node's own D after its last child."""

    weight: Tensor
    before: Tensor
    left: Tensor


def balance(problem: Problem, inherit: bool) -> Balance:
    """Run the recursion from the root down.

    inherit=True: a node starts with the weight it was given (branch-wise). False: every node starts with
    w = 1, as if reached for certain (token-wise); `weight` then holds the acceptance ratios a_i.
    """
    if problem.layout.sampled_first and problem.layout.max_draws <= 1:
        return _balance_one_draw(problem, inherit)
    topo, one = problem.topo, torch.ones_like(problem.p_token)
    weight, taken, tiny = one, torch.zeros_like(one), torch.finfo(one.dtype).tiny
    for depth, rounds in enumerate(problem.layout.rounds, 1):
        value, mass = _try_level(problem, weight[topo.parent] if inherit else one, rounds)
        level = topo.depth == depth
        taken = torch.where(level, torch.where(problem.sampled, mass, value), taken)
        ratio = value / (_left_before(problem, taken) * problem.d_token).clamp(min=tiny)
        weight = torch.where(level, ratio.clamp(max=1), weight)
    return Balance(weight, _left_before(problem, taken), _left_after(problem, taken))


def _balance_one_draw(problem: Problem, inherit: bool) -> Balance:
    """`balance` where a node has at most one sampled child, tried first: a = w p and D = 1 when it is.

    Every pass recomputes all nodes from the weights of their parents, so after t passes they are right down to depth
    t, and nothing has to be masked by depth. `ratio` is p(x_i) / d_i(x_i), which is p(x_i) where i was chosen.
    """
    limits, sampled, parent = torch.finfo(problem.target.dtype), problem.sampled, problem.topo.parent
    one = torch.ones_like(problem.p_token)
    ratio = torch.where(problem.tree.parents < 0, one, problem.p_token)  # the root keeps its weight
    minus_d = mass = torch.zeros_like(one)
    if problem.layout.max_draws:
        ratio = ratio.div_(problem.d_token.clamp(min=limits.tiny)).clamp_(max=limits.max)
        minus_d, mass = problem.d_later.sum(0).neg_(), mass.clone()
        measures = _target_rows(problem, slice(None))
        shares = problem.tree.proposals.index_select(0, problem.rows)
    weight = one
    for rounds in problem.layout.rounds or ((),):
        start = weight[parent] if inherit else one
        for slots in rounds:
            nodes = _index(slots, one.device)
            measure = measures[nodes] * start[nodes, None]
            mass[nodes] = torch.minimum(measure, shares[nodes], out=measure).sum(-1)
        value = torch.addcmul(minus_d, start, ratio).clamp_(min=0)
        taken = torch.where(sampled, mass, value)
        before = torch.addmv(one, problem.earlier, taken, alpha=-1)
        weight = value.div_(before.clamp(min=limits.tiny)).clamp_(max=1)
    return Balance(weight, before, _left_after(problem, taken))


def _left_after(problem: Problem, taken: Tensor) -> Tensor:
    """D of each node after its last child: 1 minus what its children took."""
    index = torch.arange(len(taken), device=taken.device)
    children = (problem.tree.parents == index[:, None]).to(taken.dtype)
    return torch.addmv(torch.ones_like(taken), children, taken, alpha=-1)


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
    gone = problem.topo.earlier[nodes] & ~problem.sampled
    if problem.inside is not None:
        gone = gone & problem.inside
    cap = measure.new_full(gone.shape, torch.inf).masked_fill_(gone, 0)
    return measure.scatter_reduce(1, problem.column.expand(len(measure), -1), cap, "amin")


def residual(problem: Problem, result: Balance, start: Tensor, node: int | Tensor) -> Tensor:
    """Law of the bonus token when stopping at `node`, Float[V]. start Float[N]: w at each node's start."""
    node = torch.as_tensor(node, device=start.device).reshape(1)
    p = problem.target.index_select(0, node)[0]
    child = problem.tree.parents == node
    measure = start.index_select(0, node) * p
    for drawn in _by_turn(problem, child & problem.sampled):
        measure = _subtract(problem, measure, result.before, drawn)
    cap = torch.full_like(start, torch.inf).masked_fill_(child & ~problem.sampled, 0)
    measure = measure.scatter_reduce(0, problem.tree.tokens, cap, "amin")
    return normalised(measure, p)


def _by_turn(problem: Problem, drawn: Tensor) -> list[Tensor]:
    """drawn Bool[N], the sampled children of one node -> the first of them, the second, ..., each Bool[N]."""
    if problem.layout.max_draws <= 1:
        return [drawn] * problem.layout.max_draws
    rank = problem.earlier.mv(problem.sampled.to(problem.earlier.dtype))
    return [drawn & (rank == turn) for turn in range(problem.layout.max_draws)]


def _subtract(problem: Problem, measure: Tensor, before: Tensor, hit: Tensor) -> Tensor:
    """max(a - D d_i, 0) for the one node i marked in hit Bool[N], or a itself if there is none."""
    index = hit.to(torch.uint8).argmax().reshape(1)
    share = problem.tree.proposals.index_select(0, problem.rows.index_select(0, index))[0]
    share = share * (before.clamp(min=0) * hit).sum()
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
