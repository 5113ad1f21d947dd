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
On a CPU one native call chooses a level (eagle/trees/native_level.py); the tensors here say what it computes.

Shapes: B batch, n frontier nodes, t top-k candidates per node, w slots of a level, Vd draft vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

import hsd
from eagle.trees.base import Draft, TreeBatch, TreeSettings, root_only
from eagle.trees.grown import NO_ROW, Level, Sizes, even_level, grow_levels
from eagle.trees.level_budget import child_gains, level_sizes
from eagle.trees.native_level import LIBRARY, native_level

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
    draw = partial(draft.sample, reserved=settings.nodes)

    def pick(q: Tensor, reach: Tensor, left: list[int], below: int) -> Level:
        most = settings.nodes - 1 if follows else even_level(max(left), below)  # no function of other rows' trees
        believed = sharpened(q, settings.sharpness)
        if follows and LIBRARY.reads(q):
            return native_level(q, believed, reach, left, below, min(most, settings.width or most), beta, draw)
        candidates = _candidates(believed, reach, min(most, settings.width or most), beta, padded=follows)
        sizes = level_sizes(candidates.values, left, below, beta) if follows else None
        picked = candidates.best(sizes)
        outside = _outside(q, picked, sharp=believed is not q)
        columns = torch.where(picked.sampled, draw(outside).gather(1, picked.parent), picked.column)
        row = torch.where(picked.sampled, picked.parent, NO_ROW)
        follow = partial(_reach, believed, reach, picked, columns, beta)
        return Level(columns, picked.parent, row, outside, follow, sizes)

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

    Number k n + v is the k-th child of frontier node v: its sampled child where k = 0, then its likeliest tokens, of
    which top_q and top_columns [B, t + 2, n] have q and draft token. They are 0 where k = 0, and where k = t + 1, which
    stands for padding.
    """

    values: Tensor
    number: Tensor
    top_q: Tensor
    top_columns: Tensor

    def best(self, sizes: Sizes | None) -> "_Picked":
        """The level's nodes, as many of each row: sampled ones first, then likelier siblings first, then padding.
        `sizes` None: all candidates.
        """
        n, w = self.top_q.shape[2], self.number.shape[1] if sizes is None else max(sizes)
        number, real = self.number[:, :w], None
        if sizes is not None and min(sizes) < w:
            real = (torch.arange(w) < torch.tensor(sizes)[:, None]).to(number.device)
            number = number.where(real, (self.top_q.shape[1] - 1) * n)
        number = number.sort(1).values
        column, q_column = (table.flatten(1).gather(1, number) for table in (self.top_columns, self.top_q))
        return _Picked(number < n, number % n, column, q_column, real)


def _candidates(q: Tensor, reach: Tensor, most: int, beta: float, padded: bool = False) -> _Candidates:
    """q [B, n, Vd], sharpened, and reach [B, n] of the frontier -> its `most` best candidates, or all. In a padded
    frontier, a node with a negative reach is padding, and so are its children.
    """
    top_q, top_columns = (pad(found.mT, (0, 0, 1, 1)) for found in q.topk(min(most, q.shape[-1])))  # [B, t + 2, n]
    gains, reached = child_gains(top_q[:, :-1], q.square().sum(-1), beta), reach[:, None]
    values = gains.mul_(reached)
    if padded:
        values = torch.where(reached < 0, -1, values)
    # Stable: among equals the first one, so that a row's tree is its own.
    best = values.flatten(1).sort(dim=1, descending=True, stable=True)
    return _Candidates(best.values[:, :most], best.indices[:, :most], top_q, top_columns)


class _Picked(NamedTuple):
    """The nodes of one level, sampled ones first; all [B, w].

    sampled Bool; parent Int64, index within the frontier; column Int64, the top-k token, and q_column Float, its q
    (0 where sampled, and at padding); real Bool, False at padding, None where there is none.
    """

    sampled: Tensor
    parent: Tensor
    column: Tensor
    q_column: Tensor
    real: Tensor | None

    def topk_mass(self, n: int) -> Tensor:
        """q(S) of every frontier node: [B, n]."""
        return self.q_column.new_zeros(len(self.parent), n).scatter_add_(1, self.parent, self.q_column)


def _outside(q: Tensor, picked: _Picked, sharp: bool) -> Tensor:
    """q of every frontier node outside its top-k children, renormalised: [B, n, Vd]; sharp: q_column is not q."""
    rows, place = q.flatten(1), torch.add(picked.column, picked.parent, alpha=q.shape[-1])
    taken = rows.gather(1, place) * (picked.q_column > 0) if sharp else picked.q_column  # 0 of sampled ones and padding
    outside = rows.scatter_add(1, place, taken.neg()).add_(TINY).view_as(q)
    return outside.div_(outside.sum(-1, keepdim=True))


def _reach(q: Tensor, reach: Tensor, picked: _Picked, columns: Tensor, beta: float) -> Tensor:
    """Reach of the level's nodes [B, w], their tokens being known; -1 at padding."""
    outside = (1 - picked.topk_mass(q.shape[1])).clamp_(min=0).gather(1, picked.parent)  # u
    q_token = q.flatten(1).gather(1, torch.add(columns, picked.parent, alpha=q.shape[-1]))
    unlikely = torch.addcmul(outside, outside, q_token, value=-1)  # u (1 - q(x))
    accepted = torch.addcmul(outside, outside, unlikely, value=beta - 1)  # u f(x)
    found = torch.where(picked.sampled, accepted, picked.q_column).mul_(reach.gather(1, picked.parent))
    return found if picked.real is None else torch.where(picked.real, found, -1)
