"""Arbitrary draft trees: any order of top-k and sampled children, repeats, zeros, draft vocabularies."""

from __future__ import annotations

import torch
from torch import Tensor

import hsd


def uniforms(*shape: int, generator: torch.Generator) -> Tensor:
    """Numbers that something is drawn with: Float64[shape]."""
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def drawn(probs: Tensor, generator: torch.Generator) -> Tensor:
    """One draw per row, with new numbers."""
    return hsd.draw(probs, uniforms(*probs.shape[:-1], generator=generator))


def random_probs(rows: int, vocabulary: int, generator: torch.Generator, keep: int = 0) -> Tensor:
    """Float64[rows, vocabulary]; `keep` > 0 leaves only that many non-zero entries per row."""
    logits = torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    if keep:
        logits = logits.masked_fill(logits < logits.topk(keep).values[:, -1:], -torch.inf)
    return logits.softmax(-1)


def random_tree(
    seed: int,
    nodes: int = 9,
    vocabulary: int = 6,
    sampled: float = 0.5,
    support: int = 0,
    chain: bool = False,
    keep: int = 0,
    like_target: float = 0.0,
) -> tuple[hsd.DraftTree, Tensor]:
    """-> (tree, target probs Float64[nodes, vocabulary]). like_target mixes p_parent into every d_i."""
    generator = torch.Generator().manual_seed(seed)
    target = random_probs(nodes, vocabulary, generator, keep=keep)
    columns = torch.randperm(vocabulary, generator=generator)[: support or vocabulary].sort().values
    tokens, parents, rows, proposals = [0], [-1], [-1], []
    for node in range(1, nodes):
        parents.append(node - 1 if chain else int(torch.randint(node, (1,), generator=generator)))
        if torch.rand((), generator=generator) < sampled:
            d = random_probs(1, len(columns), generator, keep=min(keep, len(columns)))[0]
            near = target[parents[-1], columns]
            if near.sum() > 0:
                d = (1 - like_target) * d + like_target * near / near.sum()
            rows.append(len(proposals))
            proposals.append(d)
            tokens.append(int(columns[drawn(d, generator)]))
        else:
            rows.append(-1)
            tokens.append(int(torch.randint(vocabulary, (1,), generator=generator)))
    tree = hsd.DraftTree(
        torch.tensor(tokens),
        torch.tensor(parents),
        torch.tensor(rows),
        torch.stack(proposals) if proposals else None,
        columns if support and proposals else None,
    )
    return tree, target


def residuals(law: hsd.StoppingLaw, nodes: int) -> Tensor:
    """Float[nodes, V]: the residual at every node."""
    return torch.stack([law.residual(node) for node in range(nodes)])
