"""`VerifierInput`: a batch of trees with its target distributions, and the scalars that verifiers look up in them.

    p_token[i] = p_parent(x_i)        d_token[i] = d_i(x_i)        d_earlier[j, i] = d_i(x_j), i an earlier sibling of j

Shape letters: B batch, N nodes, M proposal rows, V vocabulary, Vd columns of `proposals`, n nodes of one round.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hsd.layout import Layout
from hsd.topology import Topology, topology
from hsd.tree import TreeBatch


@dataclass(frozen=True)
class VerifierInput:
    """What a verifier is called with. Every property is computed when first read.

    batch      TreeBatch         the trees
    target     Float[B, N, V]    p at every node, float32 or float64
    proposals  Float[B, M, Vd]   batch.proposals in the dtype of `target`; None if nothing was sampled
    """

    batch: TreeBatch
    target: Tensor
    proposals: Tensor | None

    @property
    def layout(self) -> Layout:
        """The static shape of the trees."""
        return self.batch.layout

    @cached_property
    def topo(self) -> Topology:
        """Ancestors, siblings, depths and post-order, of shape [B, N] or [B, N, N]."""
        return topology(self.batch.parents, self.layout.depth, self.batch.ancestors(), self.batch.depths)

    @cached_property
    def ones(self) -> Tensor:
        """Float[B, N, 1], all ones. Not to be written to."""
        return torch.ones_like(self.target[:, :, :1])

    @cached_property
    def earlier(self) -> Tensor:
        """Float[B, N, N]: topo.earlier as numbers."""
        return self.topo.earlier.to(self.target.dtype)

    @cached_property
    def children(self) -> Tensor:
        """Bool[B, N, N]: column is a child of row."""
        parents = self.batch.parents
        index = torch.arange(parents.shape[1], device=parents.device)
        return parents[:, None, :] == index[:, None]

    @cached_property
    def sampled(self) -> Tensor:
        """Bool[B, N]: False at top-k tokens and at the root."""
        return self.batch.proposal_rows >= 0

    @cached_property
    def padding(self) -> Tensor:
        """Bool[B, N]: True at nodes that are never accepted and take nothing."""
        return self.batch.proposal_rows < -1

    @cached_property
    def sampled_rank(self) -> Tensor:
        """Int64[B, N]: how many earlier sampled siblings a sampled child has; -1 at top-k tokens and at the root."""
        earlier = self.topo.earlier & self.sampled[:, None, :]
        return torch.where(self.sampled, earlier.sum(2), -1)

    @cached_property
    def parent_row(self) -> Tensor:
        """Int64[B, N]: row of each node's parent in target.flatten(0, 1)."""
        return flat_rows(self.topo.parent, self.target.shape[1])

    @cached_property
    def proposal_row(self) -> Tensor:
        """Int64[B, N]: row of d_i in proposals.flatten(0, 1); some row of the same tree where token i is top-k."""
        return flat_rows(self.batch.proposal_rows.clamp(min=0), self.distributions.shape[1])

    @property
    def distributions(self) -> Tensor:
        """`proposals`, which a layout with sampled children guarantees to be there."""
        assert self.proposals is not None
        return self.proposals

    @cached_property
    def p_token(self) -> Tensor:
        """Float[B, N]: p_parent(x_i); 0 at padding and where an earlier top-k sibling has the same token."""
        tokens = self.batch.tokens
        repeat = (tokens[:, :, None] == tokens[:, None, :]).logical_and_(self.topo.earlier)
        repeat = repeat.logical_and_(~self.sampled[:, None, :]).any(2)
        return self.target.flatten(0, 1)[self.parent_row, tokens].masked_fill_(repeat | self.padding, 0)

    @cached_property
    def d_pair(self) -> Tensor:
        """Float[B, N, N]: d_i(x_j) at [j, i]; read where i is sampled."""
        d = self.distributions.flatten(0, 1)[self.proposal_row[:, None, :], self.support_column[:, :, None]]
        return d if self.in_support is None else d.mul_(self.in_support[:, :, None])

    @cached_property
    def d_token(self) -> Tensor:
        """Float[B, N]: d_i(x_i); 1 at top-k tokens."""
        if not self.layout.max_draws:
            return self.ones[:, :, 0]
        return torch.where(self.sampled, self.d_pair.diagonal(dim1=1, dim2=2), 1)

    @cached_property
    def d_earlier(self) -> Tensor:
        """Float[B, N, N]: d_i(x_j) at [j, i] for i an earlier sampled sibling of j, else 0."""
        if not self.layout.max_draws:
            return torch.zeros_like(self.earlier)
        return self.d_pair * (self.topo.earlier & self.sampled[:, None, :])

    @cached_property
    def _columns(self) -> Tensor:
        """Int64[B, N]: column of x_i in `proposals`, -1 where it has none."""
        support = self.batch.support
        if support is None:
            return self.batch.tokens
        index = torch.arange(len(support), device=support.device)
        return index.new_full((self.target.shape[2],), -1).scatter_(0, support, index)[self.batch.tokens]

    @cached_property
    def support_column(self) -> Tensor:
        """Int64[B, N]: column of x_i in `proposals`, 0 where it has none."""
        return self._columns if self.batch.support is None else self._columns.clamp(min=0)

    @cached_property
    def in_support(self) -> Tensor | None:
        """Bool[B, N]: whether x_i has a column; None where every token has."""
        return None if self.batch.support is None else self._columns >= 0

    @cached_property
    def p_columns(self) -> Tensor:
        """Float[B * N, Vd]: p on the columns of `proposals`: elsewhere d_i = 0 and no mass is taken."""
        rows = self.target.flatten(0, 1)
        return rows if self.batch.support is None else rows.index_select(1, self.batch.support)


def flat_rows(index: Tensor, count: int) -> Tensor:
    """index Int64[B, ...], rows of x Float[B, count, ...] -> the same rows in x.flatten(0, 1)."""
    if len(index) == 1:
        return index
    first = torch.arange(0, len(index) * count, count, device=index.device)
    return index + first.view(-1, *(1,) * (index.dim() - 1))


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """rows Float[R, C], index Int64[B, n] -> Float[B, n, C], a copy."""
    return rows.index_select(0, index.flatten()).view(*index.shape, rows.shape[1])
