"""What each child takes from its parent's target distribution, and what is left: common to HSD and token-wise.

A node with weight w and target distribution p has the measure a and the scalar D, at first a = w p and D = 1.
For its children i in order, with token x_i and draft distribution d_i:

    weight of the child   w_i = min(1, a(x_i) / (D d_i(x_i)))
    mass it takes         t_i = sum_x min(a(x), D d_i(x))          (a top-k token: t_i = a(x_i))
    what is left          a <- max(a - D d_i, 0),      D <- D - t_i

After the last child

    acceptance            h = sum(a) / D = 1 - (1 - w) / D         (the root, w = 1: always)
    residual              a / sum(a)

This is the recursion of hsd/verifiers/hierarchical.py with the normalization postponed; the derivation is in
docs/verifiers.md, "How it is computed". A top-k child costs scalars, a sampled child one sum over the columns of
`proposals`. All nodes of one depth and all rows of the batch are processed together. No joint probability is formed,
so long paths neither under- nor overflow. Sums over siblings are no matrix products: those of probabilities would be
done in bfloat16 or TF32 where somebody's settings say so.

Shape letters: B batch, N nodes, M proposal rows, V vocabulary, Vd columns of `proposals`, n nodes of one round.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from hsd.layout import Slots
from hsd.verifiers.inputs import VerifierInput, flat_rows, take_rows

Nodes = slice | Tensor


class ChildWeights(NamedTuple):
    """Weights and remaining scalars of every node, each Float[B, N].

    weight  w of the node when it is tried
    before  its parent's D when the node is tried
    taken   t_i, the mass that the node takes from its parent
    """

    weight: Tensor
    before: Tensor
    taken: Tensor


def child_weights(inputs: VerifierInput, inherit: bool) -> ChildWeights:
    """Run the recursion from the root down.

    inherit=True: a node starts with the weight it was given (branch-wise). False: every node starts with
    w = 1, as if reached for certain (token-wise); `weight` then holds the acceptance ratios a_i.
    """
    one_draw = inputs.layout.sampled_first and inputs.layout.max_draws <= 1
    columns = (_one_draw_weights if one_draw else _weights_by_rounds)(inputs, inherit)
    return ChildWeights(*(column[:, :, 0] for column in columns))


def _weights_by_rounds(inputs: VerifierInput, inherit: bool) -> ChildWeights:
    """Level by level, the sampled children of a level in rounds; vectors are columns, Float[B, N, 1]."""
    parent, depths, one = inputs.topo.parent[:, :, None], inputs.topo.depth[:, :, None], inputs.ones
    sampled, d_token = inputs.sampled[:, :, None], inputs.d_token[:, :, None]
    weight, taken, tiny = one, torch.zeros_like(one), torch.finfo(one.dtype).tiny
    for depth, rounds in enumerate(inputs.layout.rounds, 1):
        level = _try_level(inputs, weight.gather(1, parent) if inherit else one, rounds)
        here = depths == depth
        taken = torch.where(here, torch.where(sampled, level.mass, level.value), taken)
        ratio = level.value / (_left_before(inputs, taken) * d_token).clamp_(min=tiny)
        weight = torch.where(here, ratio.clamp_(max=1), weight)
    return ChildWeights(weight, _left_before(inputs, taken), taken)


def _one_draw_weights(inputs: VerifierInput, inherit: bool) -> ChildWeights:
    """Where a node has at most one sampled child, tried first: a = w p and D = 1 when it is.

    Every pass recomputes all nodes from the weights of their parents, so after t passes they are right down to depth
    t, and nothing has to be masked by depth. `ratio` is p(x_i) / d_i(x_i), which is p(x_i) at a top-k token.
    Vectors are columns, Float[B, N, 1].
    """
    limits, one, parent = torch.finfo(inputs.target.dtype), inputs.ones, inputs.topo.parent[:, :, None]
    ratio = torch.where(inputs.batch.parents < 0, 1, inputs.p_token)[:, :, None]  # the root keeps its weight
    minus_d = mass = torch.zeros_like(one)
    measures: tuple[Tensor, ...] = ()
    shares: tuple[Tensor, ...] = ()
    places = itertools.count()
    if inputs.layout.max_draws:
        ratio = ratio.div_(inputs.d_token[:, :, None].clamp(min=limits.tiny)).clamp_(max=limits.max)
        minus_d, mass = inputs.d_earlier.sum(2, keepdim=True).neg_(), mass.clone()
        measures, shares = _rows_of(inputs, [slots for rounds in inputs.layout.rounds for slots in rounds])
    sampled, weight = inputs.sampled[:, :, None], one
    for rounds in inputs.layout.rounds or ((),):
        start = weight.gather(1, parent) if inherit else one
        for slots in rounds:
            nodes, place = _index(slots, one.device), next(places)
            measure = measures[place] * _taken(start, nodes)
            mass[:, nodes] = torch.minimum(measure, shares[place], out=measure).sum(2, keepdim=True)
        value = torch.addcmul(minus_d, start, ratio).clamp_(min=0)
        taken = torch.where(sampled, mass, value)
        before = _left_before(inputs, taken)
        weight = value.div_(before.clamp(min=limits.tiny)).clamp_(max=1)
    return ChildWeights(weight, before, taken)


def _rows_of(inputs: VerifierInput, rounds: list[Slots]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """p of the parents and d_i of the nodes of every round, Float[B, n, Vd] each: gathered at once, copies."""
    nodes = torch.cat([_positions(slots, inputs.ones.device) for slots in rounds])
    sizes = [len(slots) for slots in rounds]
    return _target_rows(inputs, nodes).split(sizes, 1), _proposal_rows(inputs, nodes).split(sizes, 1)


def _positions(slots: Slots, device: torch.device) -> Tensor:
    if isinstance(slots, range):
        return torch.arange(slots.start, slots.stop, device=device)
    return torch.tensor(slots, dtype=torch.int64, device=device)


def _taken(x: Tensor, nodes: Nodes) -> Tensor:
    """x[:, nodes], in one operator."""
    return x.narrow(1, nodes.start, nodes.stop - nodes.start) if isinstance(nodes, slice) else x.index_select(1, nodes)


def _left_before(inputs: VerifierInput, taken: Tensor) -> Tensor:
    """D when each node is tried: 1 minus what its earlier siblings took; columns. Below 0 by rounding only."""
    return 1 - (inputs.earlier * taken.mT).sum(2, keepdim=True)


def left_after(inputs: VerifierInput, taken: Tensor) -> Tensor:
    """taken Float[B, N] -> D of each node after its last child Float[B, N]. Below 0 by rounding only."""
    return 1 - (inputs.children * taken[:, None]).sum(2)


class _Level(NamedTuple):
    """value Float[B, N, 1]: a(x_i) when i is tried.  mass Float[B, N, 1]: t_i where i is sampled."""

    value: Tensor
    mass: Tensor


def _try_level(inputs: VerifierInput, start: Tensor, rounds: tuple[Slots, ...]) -> _Level:
    """One depth, its sampled children round by round. start Float[B, N, 1]: w of each node's parent."""
    sampled_first, sampled = inputs.layout.sampled_first, inputs.sampled[:, :, None]
    value, mass = start * inputs.p_token[:, :, None], torch.zeros_like(start)
    measure = start
    previous: Nodes = slice(None)
    for turn, slots in enumerate(rounds):
        nodes = _index(slots, start.device)
        left = mine = (inputs.sampled_rank[:, nodes, None] == turn).to(start.dtype)  # D; 0 at other nodes
        share = _proposal_rows(inputs, nodes)
        if turn == 0:
            measure = _target_rows(inputs, nodes).mul_(start[:, nodes])
        else:
            measure = _measures_of_previous(inputs, measure, nodes, previous, turn)
        if not sampled_first:
            measure = _without_topk(inputs, measure, nodes)
        if turn or not sampled_first:
            before = _left_before(inputs, torch.where(sampled, mass, value))
            left = mine * before[:, nodes].clamp(min=0)
            share.mul_(left)
        taken = torch.minimum(measure, share)
        mass[:, nodes] += mine * taken.sum(2, keepdim=True)
        value = (value - (inputs.d_earlier[:, :, nodes] * left.mT).sum(2, keepdim=True)).clamp_(min=0)
        if turn + 1 < len(rounds):
            measure, previous = measure - taken, nodes
    return _Level(value, mass)


def _index(slots: Slots, device: torch.device) -> Nodes:
    if isinstance(slots, range):
        return slice(slots.start, slots.stop)
    return torch.tensor(slots, dtype=torch.int64, device=device)


def _target_rows(inputs: VerifierInput, nodes: Nodes) -> Tensor:
    """p of the nodes' parents on the columns of `proposals`. A copy, Float[B, n, Vd]."""
    return take_rows(inputs.p_columns, inputs.parent_row[:, nodes])


def _proposal_rows(inputs: VerifierInput, nodes: Nodes) -> Tensor:
    """d_i of the nodes. A copy, Float[B, n, Vd]."""
    return take_rows(inputs.distributions.flatten(0, 1), inputs.proposal_row[:, nodes])


def _measures_of_previous(inputs: VerifierInput, measure: Tensor, nodes: Nodes, previous: Nodes, turn: int) -> Tensor:
    """What the nodes' last sampled siblings left, they being in `previous`, the round before: Float[B, n, Vd]."""
    if measure.shape[1] == 1:
        return measure.expand(-1, inputs.sampled_rank[:, nodes].shape[1], -1)
    sibling = inputs.topo.earlier[:, nodes][:, :, previous] & (inputs.sampled_rank[:, None, previous] == turn - 1)
    position = flat_rows(sibling.to(torch.uint8).argmax(2), measure.shape[1])
    return take_rows(measure.flatten(0, 1), position)


def _without_topk(inputs: VerifierInput, measure: Tensor, nodes: Nodes) -> Tensor:
    """a with the tokens of the nodes' earlier top-k siblings removed."""
    gone = inputs.topo.earlier[:, nodes] & ~inputs.sampled[:, None]
    if inputs.in_support is not None:
        gone = gone & inputs.in_support[:, None]
    cap = measure.new_full(gone.shape, torch.inf).masked_fill_(gone, 0)
    return measure.scatter_reduce(2, inputs.support_column[:, None].expand_as(cap), cap, "amin")
