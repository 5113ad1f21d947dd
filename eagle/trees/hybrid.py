"""Top-k children and one sampled child per node: a tree that leaves the verifier something to balance.

Level by level, slots go to the most valuable candidates; how many slots a level gets is decided before one of its
tokens is sampled (eagle/trees/level_budget.py). At a frontier node v let q be its draft distribution, S its top-k
children, u = 1 - q(S), d = q / u outside S, and R an estimate of the probability that the accepted path passes v. A
top-k child x is estimated to follow with probability q(x), a token x sampled from d to be accepted with probability

    u f(x),     f(x) = 1 - (1 - beta) u (1 - q(x))      beta: acceptance of an unlikely sample; a certain one is right

so that, the sampled child being verified first, the accepted path passes one of v's children with probability

    R (1 - (1 - beta) u G_S),                           G_S = sum of q(x) (1 - q(x)) over x outside S

    candidate               value: what that grows by           its reach, if it gets a slot
    one sampled child       R (1 - (1 - beta) G)                R u f(x), x being the token sampled for it
    k-th top-k child        R (1 - beta) (u G before - after)   R q(x)

Whether a sampled child exists, and its distribution, depend on nothing sampled for it or below it; what grows below it
may depend on its token. No node is dropped afterwards: reaches depend on sampled tokens, and pruning by them would not
be lossless. Derivation: docs/hybrid-trees.md. At temperature 0 the tree is `topk` instead.

In all of this but d, q is the draft distribution to the power `sharpness`, renormalised: how sure the head may be.

Shapes: B batch, n frontier nodes, t top-k candidates per node, w slots of a level, Vd draft vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.trees.base import Draft, TreeBatch, TreeSettings, root_only
from eagle.trees.grown import Level, Sizes, even_level, grow_levels
from eagle.trees.level_budget import child_gains, level_sizes

TINY = 1e-20  # keeps d a distribution when S holds all of q; the d recorded is the one sampled from


def levels_on(device: torch.device) -> str:
    """The levels of trees that are grown there. A GPU would wait for the number of their nodes, and a step would have
    to be captured for every number.
    """
    return "ragged" if device.type == "cpu" else "equal"


def uniforms(settings: TreeSettings) -> int:
    """Numbers that a tree is sampled with, at most: one per frontier node, reserved level by level."""
    return settings.nodes * settings.depth


def build(draft: Draft, settings: TreeSettings) -> TreeBatch:
    """Trees of at most `nodes` nodes."""
    if settings.nodes == 1:
        return root_only(draft.root)
    beta, follows = settings.beta, (settings.levels or levels_on(draft.root.device)) == "ragged"

    def pick(q: Tensor, reach: Tensor, left: list[int], below: int) -> Level:
        most = settings.nodes - 1 if follows else even_level(max(left), below)  # no function of other rows' trees
        believed = sharpened(q, settings.sharpness)
        candidates = _candidates(believed, reach, min(most, settings.width or most), beta)
        sizes = level_sizes(candidates.values, left, below, beta) if follows else None
        picked = candidates.best(sizes)
        outside = _outside(q, picked)
        columns = torch.where(
            picked.sampled, draft.sample(outside, settings.nodes).gather(1, picked.parent), picked.column
        )
        row = torch.where(picked.sampled, picked.parent, -1)
        return Level(
            columns, picked.parent, row, outside, lambda: _reach(believed, reach, picked, columns, beta), sizes
        )

    return grow_levels(draft, settings, pick).batch(layout_of)


def layout_of(sizes: Sequence[Sizes]) -> hsd.Layout:
    """A level's nodes lie between the first row's first and the last row's last. The sampled ones come first, at most
    one per node above.
    """
    rounds, starts = [], [1] * len(sizes[0])
    above: Sizes = starts
    for level in sizes:
        sampled = range(min(starts), max(first + min(pair) for first, *pair in zip(starts, above, level)))
        rounds.append((sampled,))
        starts, above = [first + size for first, size in zip(starts, level)], level
    return hsd.Layout(tuple(rounds), sampled_first=True)


def sharpened(q: Tensor, sharpness: float) -> Tensor:
    """q to this power, renormalised: [..., Vd]."""
    if sharpness == 1:
        return q
    powers = q.pow(sharpness)
    return powers.div_(powers.sum(-1, keepdim=True))


class _Candidates(NamedTuple):
    """The best candidates of a level, best first: values Float[B, c], and their numbers Int64[B, c].

    The frontier's n sampled children come first, then the top-k children of the first node, and so on; top_q and
    top_columns [B, n, t].
    """

    values: Tensor
    number: Tensor
    top_q: Tensor
    top_columns: Tensor

    def best(self, sizes: Sizes | None) -> "_Picked":
        """The level's nodes, as many of each row: sampled ones first, then likelier siblings first, then padding.
        `sizes` None: all candidates.
        """
        n, t = self.top_q.shape[1:]
        w = self.number.shape[1] if sizes is None else max(sizes)
        winners, end = self.number[:, :w], n * (t + 1)
        if sizes is not None and min(sizes) < w:
            padding = torch.arange(w) >= torch.tensor(sizes)[:, None]
            winners = winners.masked_fill(padding, end)
        winners = winners.sort(1).values
        sampled, topk = winners < n, (winners - n).clamp(min=0, max=n * t - 1)
        column, q_column = self.top_columns.flatten(1).gather(1, topk), self.top_q.flatten(1).gather(1, topk)
        chosen = ~sampled & (winners < end)
        return _Picked(
            sampled,
            torch.where(sampled, winners.clamp(max=n - 1), torch.where(chosen, topk // t, 0)),
            torch.where(chosen, column, 0),
            torch.where(chosen, q_column, 0),
        )


def _candidates(q: Tensor, reach: Tensor, most: int, beta: float) -> _Candidates:
    """q [B, n, Vd], sharpened, and reach [B, n] of the frontier -> its `most` best candidates, or all. A node with a
    negative reach is padding, and so are its children.
    """
    top_q, top_columns = q.topk(min(most, q.shape[-1]))  # [B, n, t]
    sampled, topk = child_gains(top_q, q.square().sum(-1), beta)
    values = torch.cat([reach * sampled, (reach[..., None] * topk).flatten(1)], 1)
    values = torch.where(torch.cat([reach, reach.repeat_interleave(top_q.shape[2], 1)], 1) < 0, -1.0, values)
    best = values.sort(dim=1, descending=True, stable=True)  # among equals the first one: a row's tree is its own
    return _Candidates(best.values[:, :most], best.indices[:, :most], top_q, top_columns)


class _Picked(NamedTuple):
    """The nodes of one level, sampled ones first; all [B, w].

    sampled Bool; parent Int64, index within the frontier; column Int64, the top-k token, and q_column Float, its q
    (0 where sampled, and at padding).
    """

    sampled: Tensor
    parent: Tensor
    column: Tensor
    q_column: Tensor

    def topk_mass(self, n: int) -> Tensor:
        """q(S) of every frontier node: [B, n]."""
        return self.q_column.new_zeros(len(self.parent), n).scatter_add_(1, self.parent, self.q_column)


def _outside(q: Tensor, picked: _Picked) -> Tensor:
    """q of every frontier node outside its top-k children, renormalised: [B, n, Vd]."""
    place = picked.parent * q.shape[-1] + picked.column
    taken = torch.where(picked.q_column > 0, q.flatten(1).gather(1, place), 0)  # sampled nodes and padding take nothing
    outside = q.flatten(1).scatter_add(1, place, -taken).add_(TINY).view_as(q)
    return outside.div_(outside.sum(-1, keepdim=True))


def _reach(q: Tensor, reach: Tensor, picked: _Picked, columns: Tensor, beta: float) -> Tensor:
    """Reach of the level's nodes [B, w], their tokens being known; -1 at padding."""
    outside = (1 - picked.topk_mass(q.shape[1])).clamp(min=0).gather(1, picked.parent)  # u
    q_token = q.flatten(1).gather(1, picked.parent * q.shape[-1] + columns)
    accepted = outside * (1 - (1 - beta) * outside * (1 - q_token))
    found = reach.gather(1, picked.parent) * torch.where(picked.sampled, accepted, picked.q_column)
    return torch.where(picked.sampled | (picked.q_column > 0), found, -1.0)
