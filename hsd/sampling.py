"""Draws from rows of probabilities, by inversion of the cumulative sum. Randomness comes in as uniform numbers.

One float64 number per draw: every token's probability is kept to the rounding of the probabilities' own dtype, relative
to itself, whatever the vocabulary, where a race of float32 exponentials would distort tokens of probability below 1e-7.
A row's draw depends on that row and its number alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BELOW_ONE = 1 - 2**-53  # the largest float64 below 1
BLOCK, SMALLEST_BLOCK = 256, 16  # columns


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """probs Float[..., V], rows non-negative with a positive sum (1 not required) -> Int64[...].

    uniform  Float64[...] in [0, 1), one number per row

    No host synchronization. A token of probability 0 is never drawn. Over a large vocabulary the block of columns that
    holds the point is found first: a running sum over all of them costs more than a softmax.
    """
    block = math.gcd(probs.shape[-1], BLOCK)
    if block < SMALLEST_BLOCK or probs.shape[-1] <= 4 * block:
        return _invert(probs, uniform)
    blocks = probs.unflatten(-1, (-1, block))
    mass = blocks.sum(-1)
    index = _invert(mass, uniform)[..., None]
    running = mass.cumsum(-1, dtype=torch.float64)
    own = mass.gather(-1, index).double()
    rest = uniform[..., None] * running[..., -1:] - (running.gather(-1, index) - own)  # the number within its block
    inside = blocks.take_along_dim(index[..., None], -2).squeeze(-2)
    return index.squeeze(-1) * block + _invert(inside, (rest / own).clamp_(0, BELOW_ONE).squeeze(-1))


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first column whose running sum exceeds this share Float64[...] of the total: Int64[...]."""
    cdf = weights.cumsum(-1, dtype=torch.float64)
    point = uniform[..., None] * (cdf[..., -1:] * BELOW_ONE)  # stays below the total, whatever the rounding
    column = torch.searchsorted(cdf, point, right=True).clamp_(max=weights.shape[-1] - 1)
    if not weights.is_cpu:
        # A parallel scan is not monotone to the last bit and can point at a zero: take the mode.
        column = torch.where(weights.gather(-1, column) > 0, column, weights.argmax(-1, keepdim=True))
    return column.squeeze(-1)


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
