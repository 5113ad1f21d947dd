"""Sampled paths: one (`chain`) or several i.i.d. ones (`multi`, the HSD paper's multi-draft).

Paths go on together while they have drawn the same tokens: behind a node there is one sample of its q for every path
that came through it, and verification is recursive rejection with replacement. A repeated token stays in the tree as a
leaf, since it is a sample of its own; what its path draws next hangs on the first node with that token.

    the cat sat, a dog ran, the cat ran         root -- the -- cat -- sat
                                                  |      |      `--- ran
                                                  |      `--- (cat)
                                                  |- a -- dog -- ran
                                                  `- (the)              in brackets: leaves, drawn once more

How many children a node has depends on tokens of its own level and above, never on what is drawn below it, which the
rule of `eagle.trees.base` allows.
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
    parents = [torch.full_like(root, -1)[:, None], torch.zeros_like(root)[:, None].expand(-1, count)]
    q = [probs(logits)[:, None]]  # the root's distribution is shared by the first token of every path
    columns = draw(q[0].expand(-1, count, -1))
    tokens = [root[:, None]]
    for level in range(depth):
        tokens.append(to_target(columns, drafter.support))
        if level + 1 == depth:
            break
        q.append(probs(drafter.grow(parents[-1], tokens[-1])))
        first = _first_alike(parents[-1], columns)
        columns = draw(q[-1].gather(1, first[..., None].expand(-1, -1, q[-1].shape[-1])))
        parents.append(1 + level * count + first)
    above = torch.cat(parents, 1)
    depths = (torch.arange(above.shape[1], device=root.device) + (count - 1)) // count
    layout = hsd.Layout.siblings((count,) * depth)
    return TreeBatch(  # row i of q: node i
        torch.cat(tokens, 1), above, depths.expand_as(above), above, torch.cat(q, 1), drafter.support, layout
    )


def _first_alike(parents: Tensor, columns: Tensor) -> Tensor:
    """Int64[B, n]: for every node of a level, the first one with its parent and its token."""
    alike = (parents[:, :, None] == parents[:, None]) & (columns[:, :, None] == columns[:, None])
    return alike.int().argmax(-1)
