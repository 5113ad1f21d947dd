"""A level of hybrid trees on a CPU in one native call per row (level.cpp): the choice that eagle/trees/hybrid.py makes
with tensors. Sums over tokens are float64 here.

Shapes: B batch, n frontier nodes, w nodes of the level, s sampled ones of them at most, Vd draft vocabulary.
"""

from collections.abc import Callable
from ctypes import Structure, byref, c_double, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from eagle.trees.grown import NO_ROW, Level
from eagle.trees.level_budget import expected_subtree_size
from hsd.native.build import Library

LIBRARY = Library(Path(__file__).with_name("level.cpp"))
Draw = Callable[
    [Tensor, Tensor], Tensor
]  # (distributions [B, s, Vd], frontier nodes Int64[B, s]) -> columns Int64[B, s]


class _Frontier(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("n", "columns", "most", "left", "below")),
        ("beta", c_double),
        *((name, c_void_p) for name in ("q", "believed", "reach", "typical")),
    ]


class _Chosen(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("column", "parent")),
        *((name, c_int64) for name in ("size", "sampled")),
        ("outside", c_void_p),
    ]


def native_level(
    q: Tensor, believed: Tensor, reach: Tensor, left: list[int], below: int, most: int, beta: float, draw: Draw
) -> Level:
    """The next level of trees whose frontier has distributions `q` and `believed` [B, n, Vd] and `reach` [B, n]."""
    (batch, n, columns), bytes_each = q.shape, c_int64(q.element_size())
    q, believed, reach = q.contiguous(), believed.contiguous(), reach.to(q.dtype).contiguous()
    typical = expected_subtree_size(beta, below)
    column, parent = torch.zeros(2, batch, most, dtype=torch.int64, device=q.device)
    outside = q.new_empty(batch, min(n, most), columns)
    frontiers = [
        _Frontier(
            n, columns, most, rest, below, beta, q[b].data_ptr(), believed[b].data_ptr(), reach[b].data_ptr(),
            typical.data_ptr(),
        )
        for b, rest in enumerate(left)
    ]  # fmt: skip
    chosen = [_Chosen(column[b].data_ptr(), parent[b].data_ptr(), 0, 0, outside[b].data_ptr()) for b in range(batch)]
    for frontier, level in zip(frontiers, chosen):
        LIBRARY.functions.hybrid_level(bytes_each, byref(frontier), byref(level))
    width, sampled = max(level.size for level in chosen), max(1, *(level.sampled for level in chosen))
    outside, places = outside[:, :sampled], parent[:, :sampled]
    for b, level in enumerate(chosen):
        if level.sampled < sampled:
            outside[b, level.sampled :] = 1 / columns  # drawn from and not used, with numbers of nobody else
            others = sorted(set(range(n)) - set(places[b, : level.sampled].tolist()))
            places = places.clone()
            places[b, level.sampled :] = torch.tensor(others[: sampled - level.sampled], device=q.device)
    drawn = draw(outside, places)
    row = torch.full_like(parent, NO_ROW)
    for b, level in enumerate(chosen):
        column[b, : level.sampled] = drawn[b, : level.sampled]
        row[b, : level.sampled] = torch.arange(level.sampled, device=q.device)

    held = believed, reach, column, parent, typical  # what the pointers point to

    def follow() -> Tensor:
        found = held[1].new_full((batch, most), -1)
        for b, (frontier, level) in enumerate(zip(frontiers, chosen)):
            LIBRARY.functions.hybrid_reach(bytes_each, byref(frontier), byref(level), c_void_p(found[b].data_ptr()))
        return found[:, :width]

    sizes = [level.size for level in chosen]
    return Level(column[:, :width], parent[:, :width], row[:, :width], outside, follow, sizes)
