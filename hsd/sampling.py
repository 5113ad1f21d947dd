"""Draws from rows of probabilities, by inversion of the cumulative sum. Randomness comes in as uniform numbers.

One float64 number per draw: the distribution is kept to 2^-53 whatever the vocabulary, where a race of float32
exponentials would distort tokens of probability below 1e-7. A row's draw depends on that row and its number alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

BELOW_ONE = 1 - 2**-53  # the largest float64 below 1


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """probs Float[..., V], rows non-negative with a positive sum (1 not required) -> Int64[...].

    uniform  Float64[...] in [0, 1), one number per row

    No host synchronization. A token of probability 0 is never drawn.
    """
    cdf = probs.cumsum(-1, dtype=torch.float64)
    point = uniform[..., None] * (cdf[..., -1:] * BELOW_ONE)  # stays below the total, whatever the rounding
    token = torch.searchsorted(cdf, point, right=True).clamp_(max=probs.shape[-1] - 1)
    if not probs.is_cpu:
        # A parallel scan is not monotone to the last bit and can point at a zero: take the mode.
        token = torch.where(probs.gather(-1, token) > 0, token, probs.argmax(-1, keepdim=True))
    return token.squeeze(-1)


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
