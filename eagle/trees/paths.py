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
from eagle.trees.base import Draft, TreeBatch, TreeSettings, to_target


def chain_grown(settings: TreeSettings) -> int:
    """Nodes given to the drafter: all but the last one."""
    return _depth(settings) - 1


def multi_grown(settings: TreeSettings) -> int:
    """Nodes given to the drafter: all but the last of every path. Raises ValueError where the paths do not fit."""
    width, depth = _multi_width(settings), _depth(settings)
    if 1 + width * depth > settings.nodes:
        raise ValueError(
            f"nodes={settings.nodes}: {width} paths of {depth} tokens and the root are {1 + width * depth} nodes; "
            "raise nodes, or lower width or depth"
        )
    return width * (depth - 1)


def chain_uniforms(settings: TreeSettings) -> int:
    """Numbers that a path is sampled with."""
    return _depth(settings)


def multi_uniforms(settings: TreeSettings) -> int:
    """Numbers that the paths are sampled with."""
    return _multi_width(settings) * _depth(settings)


def build_chain(draft: Draft, settings: TreeSettings) -> TreeBatch:
    """One sampled path of min(depth, nodes - 1) tokens."""
    return _build(draft, 1, settings)


def build_multi(draft: Draft, settings: TreeSettings) -> TreeBatch:
    """`width` sampled paths of min(depth, nodes - 1) tokens; without a width, as many as `nodes` has room for."""
    return _build(draft, _multi_width(settings), settings)


def _depth(settings: TreeSettings) -> int:
    return min(settings.depth, max(settings.nodes - 1, 1))


def _multi_width(settings: TreeSettings) -> int:
    return settings.width or max((settings.nodes - 1) // _depth(settings), 1)


def _build(draft: Draft, count: int, settings: TreeSettings) -> TreeBatch:
    depth, root = _depth(settings), draft.root
    parents = [torch.full_like(root, -1)[:, None], torch.zeros_like(root)[:, None].expand(-1, count)]
    q = [draft.q]  # the root's distribution is shared by the first token of every path
    columns = draft.sample(q[0].expand(-1, count, -1))
    tokens = [root[:, None]]
    for level in range(depth):
        tokens.append(to_target(columns, draft.support))
        if level + 1 == depth:
            break
        draft.grow(parents[-1], tokens[-1])
        q.append(draft.q)
        first = _first_alike(parents[-1], columns)
        columns = draft.sample(q[-1].gather(1, first[..., None].expand(-1, -1, q[-1].shape[-1])))
        parents.append(1 + level * count + first)
    above = torch.cat(parents, 1)
    depths = (torch.arange(above.shape[1], device=root.device) + (count - 1)) // count
    layout = hsd.Layout.siblings((count,) * depth)
    return TreeBatch(  # row i of q: node i
        torch.cat(tokens, 1), above, depths.expand_as(above), above, torch.cat(q, 1), draft.support, layout
    )


def _first_alike(parents: Tensor, columns: Tensor) -> Tensor:
    """Int64[B, n]: for every node of a level, the first one with its parent and its token."""
    alike = (parents[:, :, None] == parents[:, None]) & (columns[:, :, None] == columns[:, None])
    return alike.int().argmax(-1)
