"""Draws from rows of probabilities: one per row, by inversion of the cumulative sum, or several without replacement.

Uniform numbers in float64, one per row or, for several, one per entry: the distribution is kept to 2^-53 whatever the
vocabulary, where a race of float32 exponentials would distort tokens of probability below 1e-7.
"""

from __future__ import annotations

import torch
from torch import Tensor

BELOW_ONE = 1 - 2**-53  # the largest float64 below 1


def draw(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """probs Float[..., V], rows non-negative with a positive sum (1 not required) -> Int64[...].

    No host synchronization. A token of probability 0 is never drawn.
    """
    cdf = probs.cumsum(-1, dtype=torch.float64)
    uniform = torch.rand((*probs.shape[:-1], 1), dtype=torch.float64, device=probs.device, generator=generator)
    point = uniform.mul_(cdf[..., -1:] * BELOW_ONE)  # stays below the total, whatever the rounding
    token = torch.searchsorted(cdf, point, right=True).clamp_(max=probs.shape[-1] - 1)
    if not probs.is_cpu:
        # A parallel scan is not monotone to the last bit and can point at a zero: take the mode.
        token = torch.where(probs.gather(-1, token) > 0, token, probs.argmax(-1, keepdim=True))
    return token.squeeze(-1)


def draw_distinct(probs: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` columns per row without replacement, in draw order: Float[..., V] -> Int64[..., count], count <= V.

    Column i is drawn from `probs` without the columns before it, renormalised. A column of probability 0 comes after
    all others. A race of exponentials, -log(u) / p with one uniform u per entry in float64: the first is drawn from p,
    the second from what is left, and so on (Gumbel-top-k, arXiv 1903.06059). No host synchronization.
    """
    uniform = torch.rand(probs.shape, dtype=torch.float64, device=probs.device, generator=generator)
    finish = uniform.clamp_(min=torch.finfo(torch.float64).tiny).log_().div_(probs)  # minus the time; -inf where p is 0
    return finish.topk(count).indices
