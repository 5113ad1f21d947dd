"""Sampled paths: one (`chain`) or several i.i.d. ones (`multi`, the HSD paper's multi-draft).

The paths share only the root; repeated tokens are kept as separate draws with the same law, so verification is
recursive rejection with replacement at the root and block-wise below it.
"""

import torch
from torch import Tensor

import hsd
from eagle.drafters.base import Drafter
from eagle.trees.base import Draw, Law, TreeBatch, TreeSettings, to_target


def chain_slots(settings: TreeSettings) -> int:
    return _chain_length(settings) - 1


def multi_slots(settings: TreeSettings) -> int:
    return _multi_width(settings) * (settings.depth - 1)


def build_chain(
    drafter: Drafter, root: Tensor, logits: Tensor, settings: TreeSettings, law: Law, draw: Draw
) -> TreeBatch:
    """One sampled path of min(depth, nodes - 1) tokens."""
    return _build(drafter, root, logits, 1, _chain_length(settings), law, draw)


def build_multi(
    drafter: Drafter, root: Tensor, logits: Tensor, settings: TreeSettings, law: Law, draw: Draw
) -> TreeBatch:
    """`width` sampled paths of `depth` tokens; without a width, as many as `nodes` has room for."""
    return _build(drafter, root, logits, _multi_width(settings), settings.depth, law, draw)


def _chain_length(settings: TreeSettings) -> int:
    return min(settings.depth, max(settings.nodes - 1, 1))


def _multi_width(settings: TreeSettings) -> int:
    return settings.width or max((settings.nodes - 1) // settings.depth, 1)


def _build(drafter: Drafter, root: Tensor, logits: Tensor, count: int, depth: int, law: Law, draw: Draw) -> TreeBatch:
    nodes = torch.arange(1 + count * depth, device=root.device)  # level by level, made where they are used
    parents = torch.where(nodes == 0, -1, (nodes - count).clamp(min=0))
    depths = (nodes + (count - 1)) // count
    laws = [law(logits)[:, None]]  # the root's law is shared by the first token of every path
    columns = draw(laws[0].expand(-1, count, -1))
    tokens = [root[:, None]]
    for level in range(depth):
        tokens.append(to_target(columns, drafter.support))
        if level + 1 == depth:
            break
        last = parents[1 + level * count : 1 + (level + 1) * count]
        laws.append(law(drafter.grow(last.expand(len(root), -1), tokens[-1])))
        columns = draw(laws[-1])
    as_rows = [values.expand(len(root), -1) for values in (parents, depths, parents)]  # a node's law has its index
    return TreeBatch(
        torch.cat(tokens, 1), *as_rows, torch.cat(laws, 1), drafter.support, hsd.Layout.paths(count, depth)
    )
