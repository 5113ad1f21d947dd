"""EAGLE-2/3's dynamic tree: nodes ranked by cumulative draft probability, none sampled (arXiv 2406.16858, section 4).

Level by level the `width` best nodes are expanded into their `width` best tokens; at the end the `nodes - 1` best of
all candidates form the tree. A child is never worth more than its parent and ties go to the earlier candidate, so
the kept candidates are closed under "parent of".

A node of depth d with a kept child is kept with its d - 1 ancestors, with that child and with all that are better on
its level: it is among the nodes - 1 - d best of its level, as the child is of its siblings. No others are grown, so a
small budget costs less and gives the same tree.
"""

import torch
from torch import Tensor

import hsd
from eagle.trees.base import Draft, TreeBatch, TreeSettings, to_target


def grown(settings: TreeSettings) -> int:
    """Nodes given to the drafter while a tree is grown."""
    return sum(frontier_sizes(settings))


def width(settings: TreeSettings) -> int:
    return settings.width or 10


def frontier_sizes(settings: TreeSettings) -> list[int]:
    """How many nodes of depth 1, 2, ... are expanded, into as many tokens each."""
    sizes = [min(width(settings), settings.nodes - 1 - depth) for depth in range(1, settings.depth)]
    return [size for size in sizes if size > 0]


def build(draft: Draft, settings: TreeSettings) -> TreeBatch:
    """Candidates are ranked by q at temperature 1, as published. Nothing is sampled."""
    log_q = draft.log_q[:, 0]
    k = max(min(width(settings), settings.nodes - 1, log_q.shape[-1]), 1)
    value, columns = log_q.topk(k)  # [B, k]
    levels = [_Level(value, to_target(columns, draft.support), torch.zeros_like(columns))]
    frontier = torch.arange(k, device=value.device).expand_as(columns)  # candidates to expand, within their level
    above, first, offset = torch.zeros_like(columns), 1, 1  # draft indices of the frontier's parents
    sizes = frontier_sizes(settings)
    for depth, size in enumerate(sizes, 1):
        last, frontier, above = levels[-1], frontier[:, :size], above[:, :size]
        reach = last.value.gather(1, frontier)
        draft.grow(above, last.tokens.gather(1, frontier))
        log_q = draft.log_q
        k = min(size, log_q.shape[-1])
        value, columns = log_q.topk(k)  # [B, n, k]
        levels.append(
            _Level(
                (reach[:, :, None] + value).flatten(1),
                to_target(columns, draft.support).flatten(1),
                (frontier + offset)[:, :, None].expand_as(columns).flatten(1),
            )
        )
        if depth < len(sizes):
            offset += last.value.shape[1]
            frontier = levels[-1].value.topk(min(k, levels[-1].value.shape[1])).indices
            above = frontier // k + first
            first += reach.shape[1]
    return _select(draft.root, levels, settings)


class _Level:
    """Candidates of one depth: log reach, token and parent (as candidate index, the root being 0), all [B, n]."""

    def __init__(self, value: Tensor, tokens: Tensor, parents: Tensor):
        self.value, self.tokens, self.parents = value, tokens, parents


def _select(root: Tensor, levels: list[_Level], settings: TreeSettings) -> TreeBatch:
    """Keep the best `nodes - 1` candidates, renumbered in candidate order, which is depth order."""
    value = torch.cat([level.value for level in levels], 1)
    keep = min(settings.nodes - 1, value.shape[1])
    kept = value.sort(dim=1, descending=True, stable=True).indices[:, :keep].sort(dim=1).values + 1
    zero = torch.zeros_like(root)[:, None]
    tokens = torch.cat([root[:, None]] + [level.tokens for level in levels], 1)
    parents = torch.cat([zero - 1] + [level.parents for level in levels], 1)
    depths = torch.cat([zero] + [torch.full_like(level.tokens, d) for d, level in enumerate(levels, 1)], 1)
    kept = torch.cat([zero, kept], 1)
    place = torch.zeros_like(parents).scatter_(1, kept, torch.arange(keep + 1, device=root.device).expand_as(kept))
    new_parents = place.gather(1, parents.gather(1, kept).clamp(min=0))
    new_parents[:, 0] = -1
    rows = torch.full_like(kept, -1)
    return TreeBatch(
        tokens.gather(1, kept), new_parents, depths.gather(1, kept), rows, None, None, hsd.Layout.topk(len(levels))
    )
