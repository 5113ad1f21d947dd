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
    batch, device = len(root), root.device
    laws = [law(logits)[:, None]]  # the root's law is shared by the first token of every path
    columns = draw(laws[0].expand(-1, count, -1))
    tokens, parents, rows = [root[:, None]], [-1], [-1]
    for level in range(depth):
        tokens.append(to_target(columns, drafter.support))
        first = 1 + (level - 1) * count  # node index of the previous level's first path
        parents += [0] * count if level == 0 else list(range(first, first + count))
        rows += [0] * count if level == 0 else list(range(first, first + count))
        if level + 1 == depth:
            break
        parent_slots = torch.tensor(parents[-count:], device=device).expand(batch, -1)
        laws.append(law(drafter.grow(parent_slots, tokens[-1])))
        columns = draw(laws[-1])
    depths = [0] + [level + 1 for level in range(depth) for _ in range(count)]
    as_rows = [torch.tensor(values, device=device).expand(batch, -1) for values in (parents, depths, rows)]
    return TreeBatch(
        torch.cat(tokens, 1), *as_rows, torch.cat(laws, 1), drafter.support, hsd.Layout.paths(count, depth)
    )
