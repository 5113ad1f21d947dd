"""One draw per row from rows of probabilities, by inversion of the cumulative sum.

One uniform number per row, in float64: the law is kept to 2^-53 whatever the vocabulary, where a race of
float32 exponentials would distort tokens of probability below 1e-7.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """probs Float[..., V], rows non-negative with a positive sum (1 not required) -> Int64[...].

    No host synchronisation. A token of probability 0 is never drawn.
    """
    cdf = probs.cumsum(-1, dtype=torch.float64)
    uniform = torch.rand(probs.shape[:-1], dtype=torch.float64, device=probs.device, generator=generator)
    point = (uniform * cdf[..., -1])[..., None]
    token = torch.searchsorted(cdf, point, right=True).clamp(max=probs.shape[-1] - 1)
    # Rounding (u * total == total; a parallel scan that is not monotone) can point at a zero: take the mode.
    mode = probs.argmax(-1, keepdim=True)
    return torch.where(probs.gather(-1, token) > 0, token, mode).squeeze(-1)
