"""Every child sampled, siblings without replacement (RSD, arXiv 2402.14160): the i-th child of a node from

    d_i = q without the tokens of its earlier siblings, renormalised

Level by level, a set number of slots goes to the most valuable candidates. At a frontier node v let q be its draft
distribution, X_1, X_2, ... tokens drawn from it without replacement and R an estimate of the probability that the
accepted path passes v. Where p = beta q + (1 - beta) (a single token y drawn from q), which is the hybrid tree's model
of an acceptance, a first child x is accepted with probability beta + (1 - beta) q(x), a later one if it is y:

    candidate       value: what it adds to what passes                    its reach, if it gets a slot
    child 1         R (beta + (1 - beta) E[q(X_1)])                       R (beta + (1 - beta) q(X_1))
    child i > 1     R (1 - beta) E[q(X_i) | X_1, ..., X_i-1]              R (1 - beta) q(X_i)

    E[q(X_i) | ...] = sum of q(x)^2 / sum of q(x), over x that no earlier sibling has; no more than that sum of q(x)

A value knows the earlier siblings' tokens, not the child's own, and is cut to the value of the sibling before it; ties
go to the earlier sibling. So kept siblings are a prefix in draw order, and whether a child exists does not depend on
its token. No node is dropped afterwards. Why that is lossless: docs/hybrid-trees.md. Tokens with q = 0 are left where a
node has more slots than q has tokens: they are recorded as top-k children. At temperature 0 the tree is `topk` instead.

Shapes: B batch, n frontier nodes, k children drawn per node, w slots of a level, Vd draft vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.trees.base import Draft, TreeBatch, TreeSettings, root_only
from eagle.trees.grown import NO_ROW, Level, even_level, grow_levels


def uniforms(settings: TreeSettings) -> int:
    """Numbers that a tree is sampled with, at most: candidates of every level's frontier, drawn one after the other."""
    count, frontier, left = 0, 1, settings.nodes - 1
    for below in range(settings.depth - 1, -1, -1):
        w = min(even_level(left, below), settings.width or left)
        count, frontier, left = count + frontier * w, w, left - w
    return count


def build(draft: Draft, settings: TreeSettings) -> TreeBatch:
    """Trees of at most `nodes` nodes, in equal levels."""
    if settings.nodes == 1:
        return root_only(draft.root)

    def pick(q: Tensor, reach: Tensor, left: list[int], below: int) -> Level:
        w = min(even_level(left[0], below), settings.width or left[0], q.shape[1] * q.shape[2])
        children = _draw_children(q, min(w, q.shape[2]), draft)
        picked = _allot(children.values(reach, settings.beta), w)
        row = torch.where(picked.of(children.q) > 0, torch.arange(w, device=q.device), NO_ROW)
        return Level(
            picked.of(children.columns),
            picked.parent,
            row,
            _without_earlier_siblings(q, children, picked),
            lambda: picked.of(children.reach(reach, settings.beta)),
        )

    return grow_levels(draft, settings, pick).batch(lambda sizes: hsd.Layout.siblings([level[0] for level in sizes]))


class _Slots(NamedTuple):
    """The winners of one level, first children before second ones and so on; both Int64[B, w].

    parent: index within the frontier; turn: which child of it, from 0.
    """

    parent: Tensor
    turn: Tensor

    def of(self, candidates: Tensor) -> Tensor:
        """[B, n, k] -> the slots' entries [B, w]."""
        return candidates.flatten(1).gather(1, self.parent * candidates.shape[2] + self.turn)


class _Children(NamedTuple):
    """Candidates of one level, in draw order: columns Int64[B, n, k], their q Float[B, n, k], sum of q^2 [B, n, 1]."""

    columns: Tensor
    q: Tensor
    squares: Tensor

    def values(self, reach: Tensor, beta: float) -> Tensor:
        """What each adds to what passes, [B, n, k]: falling in k, and no function of its own token."""
        left = (1 - _before(self.q)).clamp_(min=0)
        squares = (self.squares - _before(self.q.square())).clamp_(min=0)
        mass = torch.minimum(squares / left.clamp(min=torch.finfo(left.dtype).tiny), left)
        return (reach[..., None] * _accepted(mass, beta)).cummin(2).values

    def reach(self, reach: Tensor, beta: float) -> Tensor:
        """[B, n, k], the tokens being known."""
        return reach[..., None] * _accepted(self.q, beta)


def _draw_children(q: Tensor, k: int, draft: Draft) -> _Children:
    columns = draft.sample_distinct(q, k)
    return _Children(columns, q.gather(2, columns), q.square().sum(2, keepdim=True))


def _before(x: Tensor) -> Tensor:
    """Sum of the entries before each one: [..., k]. Shifted, not subtracted: rounding may not depend on the entry."""
    return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1].cumsum(-1)], -1)


def _accepted(mass: Tensor, beta: float) -> Tensor:
    """Probability that child k is accepted, from the q of its token [..., k]."""
    share = (1 - beta) * mass
    return torch.cat([share[..., :1] + beta, share[..., 1:]], -1)


def _allot(values: Tensor, w: int) -> _Slots:
    """The w largest of [B, n, k]; ties go to the earlier sibling, then to the earlier node."""
    n = values.shape[1]
    by_turn = values.transpose(1, 2).flatten(1)
    winners = by_turn.sort(dim=1, descending=True, stable=True).indices[:, :w].sort(dim=1).values
    return _Slots(winners % n, winners // n)


def _without_earlier_siblings(q: Tensor, children: _Children, picked: _Slots) -> Tensor:
    """d_i of every slot: [B, w, Vd]; zeros where q has no token left."""
    whose = picked.parent[..., None]
    d = q.gather(1, whose.expand(-1, -1, q.shape[2]))
    columns, of_columns = (x.gather(1, whose.expand(-1, -1, x.shape[2])) for x in (children.columns, children.q))
    earlier = torch.arange(columns.shape[2], device=q.device) < picked.turn[..., None]
    d.scatter_(2, columns, of_columns.masked_fill(earlier, 0))
    return d.div_(d.sum(2, keepdim=True).clamp_(min=torch.finfo(q.dtype).tiny))
