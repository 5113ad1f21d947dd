"""What tree builders share. A builder grows one tree per batch row from the draft distributions of a drafter.

The rule every builder keeps, which is what makes verification lossless: whether a sampled child exists, and its
distribution d_i, may depend on anything except the token sampled for it and what grew below it.

Shapes: B batch, N nodes, K depth, M proposal rows, Vd draft vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import hsd
from hsd import TreeBatch

Transform = Callable[[Tensor], Tensor]  # logits [..., Vd] -> probabilities Float32[..., Vd]


class Draw(Protocol):
    """A tree's randomness, handed to its builder: probabilities Float[..., Vd] -> sampled columns."""

    def __call__(self, probs: Tensor) -> Tensor:
        """One column per row: Int64[...]."""

    def distinct(self, probs: Tensor, count: int) -> Tensor:
        """`count` columns per row in draw order, without replacement, columns of probability 0 last: [..., count]."""


@dataclass(frozen=True)
class GeneratorDraw:
    """`Draw` from a generator; None: torch's global one."""

    generator: torch.Generator | None

    def __call__(self, probs: Tensor) -> Tensor:
        """As `Draw`."""
        return hsd.draw(probs, self.generator)

    def distinct(self, probs: Tensor, count: int) -> Tensor:
        """As `Draw`."""
        return hsd.draw_distinct(probs, count, self.generator)


class DraftProbs:
    """Draft logits [..., Vd] -> draft distributions q; a row that is not finite is replaced by the uniform one.

    The replacement happens before anything is ranked or sampled, without a host wait, and the uniform distribution is
    the one recorded as d_i, so verification stays exact whatever the drafter computes.
    """

    def __init__(self, transform: Transform):
        self.transform = transform
        self._seen: list[Tensor] = []  # before the replacement; read once a step, not once a level

    def __call__(self, logits: Tensor) -> Tensor:
        """Float32[..., Vd]: q under the sampling parameters."""
        return self._finite(self.transform(logits), 1 / logits.shape[-1])

    def log_probs(self, logits: Tensor) -> Tensor:
        """Float32[..., Vd]: log q at temperature 1."""
        return self._finite(logits.float().log_softmax(-1), -math.log(logits.shape[-1]))

    def replaced(self) -> Tensor:
        """Bool[]: whether any row was replaced so far."""
        # A softmax row with NaN, plus infinity or no finite entry is NaN everywhere, and no other row has NaN.
        return torch.cat([values[..., 0].flatten() for values in self._seen]).isnan().any()

    def _finite(self, values: Tensor, uniform: float) -> Tensor:
        self._seen.append(values)
        return values.nan_to_num(nan=uniform, neginf=-torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class TreeSettings:
    """Size and shape of a tree.

    nodes   rows of the target's scoring forward: drafted nodes and the root
    depth   longest path below the root (EAGLE's own `depth` counts one less)
    width   topk: nodes expanded per level; hybrid and rsd: slots per level at most; multi: number of paths;
            None: topk 10, the others as many as `nodes` allows
    beta    hybrid and rsd: how far a draw is trusted, in [0, 1]: the probability that an unlikely one is accepted
    sharpness  hybrid: slots are valued with q to this power, renormalised; below 1 for a head that is surer than it is
            right. Tokens are sampled from q itself
    """

    nodes: int = 60
    depth: int = 7
    width: int | None = None
    beta: float = 0.7
    sharpness: float = 1.0

    def __post_init__(self):
        if self.nodes < 1:
            raise ValueError(f"nodes={self.nodes}: expected at least 1 (the root alone is plain decoding)")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}: expected at least 1; for plain decoding use tree='none'")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width}: expected at least 1, or None for the tree's default")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta}: expected a value in [0, 1]")
        if not self.sharpness > 0:
            raise ValueError(f"sharpness={self.sharpness}: expected a positive number; 1 values slots with q as it is")


def root_only(root: Tensor) -> TreeBatch:
    """The tree of plain decoding: root tokens Int64[B], nothing drafted."""
    tokens = root[:, None]
    zeros = torch.zeros_like(tokens)
    return TreeBatch(tokens, zeros - 1, zeros, zeros - 1, None, None, hsd.Layout.topk(0))


def to_target(columns: Tensor, support: Tensor | None) -> Tensor:
    """Draft token ids -> target token ids."""
    return columns if support is None else support[columns]
