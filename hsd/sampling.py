"""Draws from rows of probabilities, by inversion of the cumulative sum. Randomness comes in as uniform numbers.

One float64 number per draw: every token's probability is kept to the rounding of the probabilities' own dtype, relative
to itself, whatever the vocabulary, where a race of float32 exponentials would distort tokens of probability below 1e-7.
A row's draw depends on that row and its number alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hsd import native

BELOW_ONE = 1 - 2**-53  # the largest float64 below 1
BLOCK, SMALLEST_BLOCK = 256, 16  # columns


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """probs Float[..., V], rows non-negative with a positive sum (1 not required) -> Int64[...].

    uniform  Float64[...] in [0, 1), one number per row

    No host synchronization. A token of probability 0 is never drawn. Over a large vocabulary the block of columns that
    holds the point is found first: a running sum over all of them costs more than a softmax.
    """
    if native.LIBRARY.reads(probs, uniform):
        return native.draw(probs, uniform)
    share, block = uniform[..., None] * BELOW_ONE, math.gcd(probs.shape[-1], BLOCK)
    if block < SMALLEST_BLOCK or probs.shape[-1] <= 4 * block:
        return _checked(probs, _invert(probs, share).column)
    blocks = probs.unflatten(-1, (-1, block))
    mass = blocks.sum(-1)
    index, running, point = _invert(mass, share)
    own = mass.gather(-1, index)
    rest = ((point - running.gather(-1, index)) / own).add_(1)  # the number within its block
    inside = blocks.gather(-2, index[..., None].expand(*index.shape, block)).squeeze(-2)
    column = _invert(inside, rest.clamp_(0, BELOW_ONE)).column
    return _checked(probs, torch.add(column, index, alpha=block))


def _checked(probs: Tensor, column: Tensor) -> Tensor:
    """Int64[..., 1] -> Int64[...]. A parallel scan is not monotone to the last bit and can point at a zero, in a block
    of zeros as well: the mode instead.
    """
    if not probs.is_cpu:
        column = torch.where(probs.gather(-1, column) > 0, column, probs.argmax(-1, keepdim=True))
    return column.squeeze(-1)


class _Inverted(NamedTuple):
    """column Int64[..., 1], the running sums Float64[..., V] and the point Float64[..., 1] that it covers."""

    column: Tensor
    running: Tensor
    point: Tensor


def _invert(weights: Tensor, share: Tensor) -> _Inverted:
    """The first column whose running sum exceeds this share Float64[..., 1], below 1, of the total."""
    running = weights.cumsum(-1, dtype=torch.float64)
    point = share * running[..., -1:]  # below the total, whatever the rounding
    column = torch.searchsorted(running, point, right=True).clamp_(max=weights.shape[-1] - 1)
    return _Inverted(column, running, point)


def draw_distinct(probs: Tensor, uniforms: Tensor) -> Tensor:
    """k columns per row without replacement, in draw order: Float[..., V] -> Int64[..., k], k <= V.

    uniforms  Float64[..., k]: column i is drawn with the i-th number, from `probs` without the columns before it,
              renormalised

    Where fewer than k columns have a positive probability, other distinct ones follow them. No host synchronization.
    """
    left, drawn = probs.clone(), []
    for uniform in uniforms.unbind(-1):
        column = draw(left.clamp(min=0), uniform)[..., None]
        exhausted = ~(left.gather(-1, column) > 0)
        column = torch.where(exhausted, left.argmax(-1, keepdim=True), column)  # columns drawn before are at -1
        left.scatter_(-1, column, -1)
        drawn.append(column)
    return torch.cat(drawn, -1)
