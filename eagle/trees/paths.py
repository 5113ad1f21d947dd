"""Sampled paths: one (`chain`) or several i.i.d. ones (`multi`, the HSD paper's multi-draft).

The paths share only the root; repeated tokens are separate samples of one distribution, so verification is
recursive rejection with replacement at the root and block-wise below it.
"""

import torch
from torch import Tensor

import hsd
from eagle.drafters.base import Drafter
from eagle.trees.base import DraftProbs, Draw, TreeBatch, TreeSettings, to_target


def chain_slots(settings: TreeSettings) -> int:
    """Nodes given to the drafter: all but the last one."""
    return _depth(settings) - 1


def multi_slots(settings: TreeSettings) -> int:
    """Nodes given to the drafter: all but the last of every path. Raises ValueError where the paths do not fit."""
    width, depth = _multi_width(settings), _depth(settings)
    if 1 + width * depth > settings.nodes:
        raise ValueError(
            f"nodes={settings.nodes}: {width} paths of {depth} tokens and the root are {1 + width * depth} nodes; "
            "raise nodes, or lower width or depth"
        )
    return width * (depth - 1)


def build_chain(
    drafter: Drafter, root: Tensor, logits: Tensor, settings: TreeSettings, probs: DraftProbs, draw: Draw
) -> TreeBatch:
    """One sampled path of min(depth, nodes - 1) tokens."""
    return _build(drafter, root, logits, 1, settings, probs, draw)


def build_multi(
    drafter: Drafter, root: Tensor, logits: Tensor, settings: TreeSettings, probs: DraftProbs, draw: Draw
) -> TreeBatch:
    """`width` sampled paths of min(depth, nodes - 1) tokens; without a width, as many as `nodes` has room for."""
    return _build(drafter, root, logits, _multi_width(settings), settings, probs, draw)


def _depth(settings: TreeSettings) -> int:
    return min(settings.depth, max(settings.nodes - 1, 1))


def _multi_width(settings: TreeSettings) -> int:
    return settings.width or max((settings.nodes - 1) // _depth(settings), 1)


def _build(
    drafter: Drafter, root: Tensor, logits: Tensor, count: int, settings: TreeSettings, probs: DraftProbs, draw: Draw
) -> TreeBatch:
    depth = _depth(settings)
    nodes = torch.arange(1 + count * depth, device=root.device)  # level by level, made where they are used
    parents = torch.where(nodes == 0, -1, (nodes - count).clamp(min=0))
    depths = (nodes + (count - 1)) // count
    q = [probs(logits)[:, None]]  # the root's distribution is shared by the first token of every path
    columns = draw(q[0].expand(-1, count, -1))
    tokens = [root[:, None]]
    for level in range(depth):
        tokens.append(to_target(columns, drafter.support))
        if level + 1 == depth:
            break
        last = parents[1 + level * count : 1 + (level + 1) * count]
        q.append(probs(drafter.grow(last.expand(len(root), -1), tokens[-1])))
        columns = draw(q[-1])
    parents, depths = parents.expand(len(root), -1), depths.expand(len(root), -1)
    rows = parents  # row i of q: node i
    layout = hsd.Layout.paths(count, depth)
    return TreeBatch(torch.cat(tokens, 1), parents, depths, rows, torch.cat(q, 1), drafter.support, layout)
