"""`DraftTree` and `TreeBatch`: the input of a verifier.

    d_i = proposals[proposal_rows[i]]   the draft distribution that token i was sampled from
    d_i = point mass at tokens[i]       where proposal_rows[i] = -1: a top-k token, nothing was sampled

Shape letters: B batch, N nodes, K depth of the tree, M proposal rows, V vocabulary, Vd draft vocabulary.

A tree of 7 nodes, its parents and depths (node 0 is the last committed token, always kept):

    0 -- 1 -- 3        node     0   1   2   3   4   5   6
      |    `- 4        parent  -1   0   0   1   1   2   5
      `- 2 -- 5 -- 6   depth    0   1   1   2   2   2   3

Siblings are verified in index order: 1 before 2, and 3 before 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hsd.layout import Layout
from hsd.topology import ancestors_of


@dataclass(frozen=True)
class DraftTree:
    """One drafted tree and the distribution that each of its tokens was sampled from.

    tokens         Int64[N]      tokens[0] is the root, the last committed token
    parents        Int64[N]      parents[0] = -1 and 0 <= parents[i] < i
    proposal_rows  Int64[N]      row of `proposals` that holds d_i; -1: a top-k token, d_i is a point mass;
                                 -2: padding, a last child without children that is never accepted
    proposals      Float[M, V]   the distributions d_i; or Float[M, Vd] with `support`; None if nothing was sampled
    support        Int64[Vd]     distinct token ids of the columns of `proposals`
    layout         Layout        static hints; without them the tree's shape is read on the host (one sync)

    d_i must be the distribution the token was really sampled from, given everything sampled before it: losslessness
    rests on it, and it is not recomputed here. A node that repeats the token of an earlier *top-k* sibling is never
    accepted, so such repeats may be used as padding.

    Raises ValueError on wrong dtypes or shapes. Values are checked by `stopping_law` and `verify`.
    """

    tokens: Tensor
    parents: Tensor
    proposal_rows: Tensor
    proposals: Tensor | None = None
    support: Tensor | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        _check_shapes(self, ("tokens", "parents", "proposal_rows"), self.tokens.shape[:0])

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass(frozen=True)
class TreeBatch:
    """One drafted tree per row, all of one layout.

    tokens, parents, depths, proposal_rows  Int64[B, N]      as in DraftTree; depths[b, i] is node i's depth
    proposals                               Float[B, M, V]   or Float[B, M, Vd] with `support`; None if none was sampled
    support                                 Int64[Vd]        distinct token ids of the columns of `proposals`
    layout                                  Layout           static, the same for all rows

    Raises ValueError on wrong dtypes or shapes. Values are checked by `decide(..., check=True)`.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    proposal_rows: Tensor
    proposals: Tensor | None
    support: Tensor | None
    layout: Layout

    def __post_init__(self) -> None:
        _check_shapes(self, ("tokens", "parents", "depths", "proposal_rows"), self.tokens.shape[:1])

    @classmethod
    def of_one(cls, tree: DraftTree) -> TreeBatch:
        """A batch of one tree. A missing layout is read from the tree on the host (one sync)."""
        layout = tree.layout or Layout.infer(tree.parents.tolist(), (tree.proposal_rows >= 0).tolist())
        parents = tree.parents[None]
        depths = ancestors_of(parents, layout.depth).sum(-1) - 1
        proposals = None if tree.proposals is None else tree.proposals[None]
        return cls(tree.tokens[None], parents, depths, tree.proposal_rows[None], proposals, tree.support, layout)

    def __len__(self) -> int:
        """B, the number of trees."""
        return self.tokens.shape[0]

    def row(self, index: int) -> DraftTree:
        """The tree of one row, in views of the same memory."""
        proposals = None if self.proposals is None else self.proposals[index]
        return DraftTree(
            self.tokens[index], self.parents[index], self.proposal_rows[index], proposals, self.support, self.layout
        )

    def ancestors(self) -> Tensor:
        """Bool[B, N, N]: which nodes each node descends from, itself included (the tree attention mask). Cached."""
        return self._ancestors

    @cached_property
    def _ancestors(self) -> Tensor:
        return ancestors_of(self.parents, self.layout.depth)


def _check_shapes(tree: DraftTree | TreeBatch, fields: tuple[str, ...], batch: torch.Size) -> None:
    """Raises ValueError naming the field, what was expected, and what was given."""
    tokens, proposals, lead = tree.tokens, tree.proposals, "B, " * len(batch)
    if tokens.dim() != len(batch) + 1 or tokens.numel() == 0:
        raise ValueError(
            f"tokens is {describe(tokens)}: expected torch.int64 of shape [{lead}N], N >= 1; "
            "node 0 is the root, the last committed token"
        )
    for name in fields:
        _check(getattr(tree, name), name, torch.int64, tokens.shape)
    if proposals is not None and (
        proposals.dim() != len(batch) + 2 or proposals.shape[: len(batch)] != batch or not proposals.is_floating_point()
    ):
        raise ValueError(f"proposals is {describe(proposals)}: expected a floating point tensor [{lead}M, V]")
    if tree.layout is not None:
        _check_layout_shape(tree.layout, tokens.shape[-1], 0 if proposals is None else proposals.shape[-2])
    if tree.support is not None:
        if proposals is None:
            raise ValueError("support is given without proposals: pass the distributions whose columns it names")
        _check(tree.support, "support", torch.int64, proposals.shape[-1:])


def _check_layout_shape(layout: Layout, nodes: int, rows: int) -> None:
    if layout.end > nodes:
        raise ValueError(f"layout names node {layout.end - 1}: expected nodes below N = {nodes}")
    if layout.max_draws and rows == 0:
        raise ValueError(
            "proposals is empty and the layout has sampled children: pass the distributions they were "
            "sampled from, or Layout.topk(depth)"
        )


def _check(value: Tensor, name: str, dtype: torch.dtype, shape: torch.Size) -> None:
    if value.dtype != dtype or value.shape != shape:
        raise ValueError(f"{name} is {describe(value)}: expected {dtype} of shape {list(shape)}")


def describe(value: Tensor) -> str:
    """The dtype and shape of a tensor, for error messages."""
    return f"{value.dtype} of shape {list(value.shape)}"
