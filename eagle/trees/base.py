"""What a tree builder gets and gives. A builder grows one tree per batch row by asking a drafter for laws.

The rule a builder keeps (it is what makes verification lossless): whether a sampled child exists, and its law d_i,
may depend on anything except the token drawn for it and what grew below it.

Shapes: B batch, N nodes, K depth, M proposal rows, Vd draft vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import hsd

Draw = Callable[[Tensor], Tensor]  # probabilities Float[..., Vd] -> drawn columns Int64[...]
Law = Callable[[Tensor], Tensor]  # logits [..., Vd] -> probabilities Float32[..., Vd]


@dataclass(frozen=True)
class TreeSettings:
    """Size and shape of a tree.

    nodes   rows of the target's scoring forward: drafted nodes and the root
    depth   longest path below the root (EAGLE's own `depth` counts one less)
    width   topk: nodes expanded per level; hybrid: slots per level at most; multi: number of paths;
            None: topk 10, hybrid and multi as many as `nodes` allows
    beta    hybrid: the probability that an unlikely draw is accepted, in [0, 1]
    """

    nodes: int = 60
    depth: int = 7
    width: int | None = None
    beta: float = 0.85

    def __post_init__(self):
        if self.nodes < 1:
            raise ValueError(f"nodes={self.nodes}: expected at least 1 (the root alone is plain decoding)")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}: expected at least 1; for plain decoding use tree='none'")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width}: expected at least 1, or None for the tree's default")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta}: expected a value in [0, 1]")


@dataclass(frozen=True)
class TreeBatch:
    """One drafted tree per row; node 0 is the root and parents come before their children.

    tokens, parents, depths, proposal_rows Int64[B, N]; proposals Float[B, M, Vd] or None; support Int64[Vd] or None.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    proposal_rows: Tensor
    proposals: Tensor | None
    support: Tensor | None
    layout: hsd.Layout

    def row(self, index: int) -> hsd.DraftTree:
        proposals = None if self.proposals is None else self.proposals[index]
        return hsd.DraftTree(
            self.tokens[index], self.parents[index], self.proposal_rows[index], proposals, self.support, self.layout
        )

    def ancestors(self) -> Tensor:
        """Bool[B, N, N]: which nodes each node descends from, itself included."""
        return self._ancestors

    @cached_property
    def _ancestors(self) -> Tensor:
        return hsd.ancestors_of(self.parents, self.layout.depth)


def root_only(root: Tensor) -> TreeBatch:
    """The tree of plain decoding: root tokens Int64[B], nothing drafted."""
    tokens = root[:, None]
    zeros = torch.zeros_like(tokens)
    return TreeBatch(tokens, zeros - 1, zeros, zeros - 1, None, None, hsd.Layout.chosen(0))


def to_target(columns: Tensor, support: Tensor | None) -> Tensor:
    """Draft token ids -> target token ids."""
    return columns if support is None else support[columns]
