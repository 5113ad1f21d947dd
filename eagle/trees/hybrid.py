"""Chosen children and one sampled child per node: a tree that leaves the verifier something to balance.

Level by level, `width` slots go to the most valuable candidates. With R the reach of a frontier node v, q its draft
law and S its chosen tokens:

    candidate               value               its reach, if it wins a slot
    one sampled child       beta R              beta R (1 - q(S))        drawn from q outside S, verified first
    chosen child x          (1 - beta) R q(x)   R q(x)

Nothing here looks at a drawn token when it decides whether a sampled child exists or what law it has: reaches of
sampled children are their slot's mass, not q of the token drawn. All nodes are kept, so there is no pruning to get wrong.
At temperature 0 the builder is not used: the tree is `topk`.
"""
import torch
from torch import Tensor

import hsd
from eagle.drafters.base import Drafter
from eagle.trees.base import Draw, Law, TreeBatch, TreeSettings, to_target

TINY = 1e-20  # keeps q outside S a law when S holds all its mass; the law recorded is the one drawn from


def slots(settings: TreeSettings) -> int:
    return width(settings) * (depth(settings) - 1)


def depth(settings: TreeSettings) -> int:
    """A budget below one node per level makes the tree shallower."""
    return max(min(settings.depth, settings.nodes - 1), 1)


def width(settings: TreeSettings) -> int:
    """Slots per level: all that `nodes` allows, at most `settings.width`."""
    room = max((settings.nodes - 1) // depth(settings), 1)
    return min(room, settings.width) if settings.width else room


def build(drafter: Drafter, root: Tensor, logits: Tensor, settings: TreeSettings, law: Law, draw: Draw) -> TreeBatch:
    """root Int64[B], draft logits after it [B, Vd] -> trees of 1 + width * depth nodes."""
    batch, w, k = len(root), width(settings), depth(settings)
    grown = _Grown(root, drafter.support)
    q = law(logits)[:, None]  # [B, 1, Vd]
    reach = torch.ones(batch, 1, dtype=q.dtype, device=root.device)
    for level in range(k):
        picked = _allot(q, reach, w, settings.beta)
        outside = _outside(q, picked)
        drawn = draw(outside)
        columns = torch.where(picked.sampled, drawn.gather(1, picked.parent), picked.column)
        grown.add(columns, picked, outside)
        if level + 1 < k:
            q = law(drafter.grow(grown.parents[-1], grown.tokens[-1]))
            reach = picked.reach
    return grown.batch(sampled=[min(1 if level == 0 else w, w) for level in range(k)])


class _Slots:
    """The winners of one level, sampled ones first; all [B, w].

    sampled Bool; parent Int64, index within the frontier; column Int64, the chosen token (0 where sampled);
    reach Float.
    """

    def __init__(self, sampled: Tensor, parent: Tensor, column: Tensor, reach: Tensor):
        self.sampled, self.parent, self.column, self.reach = sampled, parent, column, reach


def _allot(q: Tensor, reach: Tensor, w: int, beta: float) -> _Slots:
    """q [B, n, Vd], reach [B, n] of the frontier -> the level's w slots."""
    n = reach.shape[1]
    top_q, top_columns = q.topk(min(w, q.shape[-1]))  # [B, n, t]
    t = top_q.shape[-1]
    chosen_reach = (reach[:, :, None] * top_q).flatten(1)
    values = torch.cat([beta * reach, (1 - beta) * chosen_reach], 1)
    winners = values.topk(w).indices.sort(1).values  # candidate order: sampled first, then likelier siblings first
    sampled = winners < n
    chosen = (winners - n).clamp(min=0)
    parent = torch.where(sampled, winners.clamp(max=n - 1), chosen // t)
    q_chosen = torch.where(sampled, 0, top_q.flatten(1).gather(1, chosen))
    q_of_parent = torch.zeros_like(reach).scatter_add_(1, parent, q_chosen)  # q(S) of every frontier node
    left = beta * reach * (1 - q_of_parent).clamp(min=0)
    return _Slots(
        sampled,
        parent,
        torch.where(sampled, 0, top_columns.flatten(1).gather(1, chosen)),
        torch.where(sampled, left.gather(1, parent), chosen_reach.gather(1, chosen)),
    )


def _outside(q: Tensor, picked: _Slots) -> Tensor:
    """q of every frontier node outside its chosen tokens, renormalised: [B, n, Vd]."""
    n, columns = q.shape[1:]
    spare = columns  # one column more, for the slots that hold no chosen token
    flat = picked.parent * (columns + 1) + torch.where(picked.sampled, spare, picked.column)
    keep = torch.ones(len(q), n * (columns + 1), dtype=q.dtype, device=q.device).scatter_(1, flat, 0.0)
    outside = q * keep.view(len(q), n, columns + 1)[:, :, :columns] + TINY
    return outside / outside.sum(-1, keepdim=True)


class _Grown:
    """The tree so far, one entry per level."""

    def __init__(self, root: Tensor, support: Tensor | None):
        zero = torch.zeros_like(root)[:, None]
        self.support = support
        self.tokens, self.parents, self.depths, self.rows = [root[:, None]], [zero - 1], [zero], [zero - 1]
        self.laws: list[Tensor] = []
        self.first = 0  # node index of the frontier's first node

    def add(self, columns: Tensor, picked: _Slots, outside: Tensor) -> None:
        parents = picked.parent + self.first
        row = picked.parent + sum(law.shape[1] for law in self.laws)
        self.first += outside.shape[1]
        self.tokens.append(to_target(columns, self.support))
        self.parents.append(parents)
        self.depths.append(torch.full_like(parents, len(self.depths)))
        self.rows.append(torch.where(picked.sampled, row, -1))
        self.laws.append(outside)

    def batch(self, sampled: list[int]) -> TreeBatch:
        sizes = [tokens.shape[1] for tokens in self.tokens[1:]]
        joined = [torch.cat(parts, 1) for parts in (self.tokens, self.parents, self.depths, self.rows)]
        return TreeBatch(*joined, torch.cat(self.laws, 1), self.support, hsd.Layout.levels(sizes, sampled))
