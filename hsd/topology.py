"""Depths, ancestors and post-order of trees from their parents, without reading a value on the host.

With size(v) the number of nodes in v's subtree:

    pre(v)  = pre(parent) + 1 + sum of size over v's earlier siblings
    post(v) = pre(v) - depth(v) + size(v) - 1
    stop(v) = h(v) * prod over u before v in post-order of (1 - h(u))

Shape letters: N nodes; "..." any leading dimensions. For the tree shown in hsd/tree.py, row = node, column = node:

    ancestors            earlier siblings
    1 0 0 0 0 0 0        0 0 0 0 0 0 0        visited in post-order: 3 4 1 6 5 2 0
    1 1 0 0 0 0 0        0 0 0 0 0 0 0        so post = (6, 2, 5, 0, 1, 4, 3)
    1 0 1 0 0 0 0        0 1 0 0 0 0 0
    1 1 0 1 0 0 0        0 0 0 0 0 0 0
    1 1 0 0 1 0 0        0 0 0 1 0 0 0
    1 0 1 0 0 1 0        0 0 0 0 0 0 0
    1 0 1 0 0 1 1        0 0 0 0 0 0 0
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Topology(NamedTuple):
    """The shape of trees.

    ancestors  Bool[..., N, N]  row descends from column (a node is its own ancestor)
    earlier    Bool[..., N, N]  column is an earlier sibling of row
    parent     Int64[..., N]    the root's is 0
    depth      Int64[..., N]
    post       Int64[..., N]    rank in post-order
    """

    ancestors: Tensor
    earlier: Tensor
    parent: Tensor
    depth: Tensor
    post: Tensor


def topology(
    parents: Tensor, max_depth: int | None = None, ancestors: Tensor | None = None, depths: Tensor | None = None
) -> Topology:
    """parents Int64[..., N], parents[..., 0] = -1 and parents[..., i] < i -> Topology.

    max_depth  a bound on the depth
    ancestors  Bool[..., N, N], the tree attention mask, where it is available
    depths     Int64[..., N], where available
    """
    index = torch.arange(parents.shape[-1], device=parents.device)
    if ancestors is None:
        ancestors = ancestors_of(parents, max_depth)
    earlier = (parents[..., :, None] == parents[..., None, :]).logical_and_(index[:, None] > index)
    depth = ancestors.sum(-1) - 1 if depths is None else depths
    size = ancestors.sum(-2)
    offset = (earlier * size[..., None, :]).sum(-1) + 1
    pre = (ancestors * offset[..., None, :]).sum(-1) - 1
    return Topology(ancestors, earlier, parents.clamp(min=0), depth, pre - depth + size - 1)


def ancestors_of(parents: Tensor, max_depth: int | None = None) -> Tensor:
    """parents Int64[..., N] -> Bool[..., N, N]: which nodes each node descends from, itself included.

    Powers of I + P, P being the parents' matrix: the 2^j-th counts the ways up in at most 2^j steps.
    """
    n = parents.shape[-1]
    index = torch.arange(n, device=parents.device)
    ways = (parents[..., None] == index).float()
    ways.diagonal(dim1=-2, dim2=-1).fill_(1)
    covered, most = 1, n - 1 if max_depth is None else min(max_depth, n - 1)
    while covered < most:
        ways, covered = ways @ ways, 2 * covered
        if covered >= 32:  # the binomial coefficients of longer ways would overflow
            ways.clamp_(max=1)
    return ways > 0


def post_order_stop(accept: Tensor, post: Tensor) -> Tensor:
    """stop(v) = h(v) * prod over u before v in post-order of (1 - h(u)). accept: h Float[..., N], h(root) = 1."""
    in_order = torch.empty_like(accept).scatter(-1, post, 1 - accept)
    reach = torch.cat((torch.ones_like(accept[..., :1]), in_order[..., :-1].cumprod(-1)), -1)
    return accept * reach.gather(-1, post)
