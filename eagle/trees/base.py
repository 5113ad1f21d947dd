"""What a tree builder gets and gives. It grows one tree per batch row from the draft distributions of a `Draft`.

The rule every builder keeps, which is what makes verification lossless: whether a sampled child exists, and its
distribution d_i, may depend on anything except the token sampled for it and what grew below it.

Shapes: B batch, n frontier nodes, N nodes, M proposal rows, Vd draft vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import hsd
from hsd import TreeBatch

LEVELS = ("ragged", "equal")  # how large a hybrid tree's levels are, see `TreeSettings`
ToProbs = Callable[[Tensor], Tensor]  # logits [B, n, Vd] -> probabilities Float32[B, n, Vd]


class Grower(Protocol):
    """What a draft asks of a drafter (`eagle.drafters.base.Drafter`)."""

    support: Tensor | None

    def rewind(self) -> None: ...

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor: ...


class Draft:
    """One step's drafting: q at the frontier, samples, and growth. What a tree builder sees of a drafter.

    root      Int64[B]: the last committed tokens
    support   Int64[Vd]: target token of every draft token; None where the vocabularies are the same
    q         Float32[B, n, Vd]: draft distributions at the frontier, under the rows' sampling parameters
    log_q     the same, logarithms, at temperature 1

    The frontier is the root, then the nodes given to `grow` last. A row of logits that is not finite is replaced by the
    uniform distribution before anything is ranked or sampled, without a host wait; the uniform distribution is then the
    one recorded as d_i, so verification stays exact whatever the drafter computes.
    """

    def __init__(self, drafter: Grower, root: Tensor, logits: Tensor, to_probs: ToProbs, uniforms: Tensor):
        """`logits` [B, Vd] after the root; `uniforms` Float64[B, n]: the step's numbers for sampled children."""
        self.drafter, self.to_probs, self.uniforms = drafter, to_probs, uniforms
        self.root, self.support = root, drafter.support
        self.passes: list[tuple[Tensor, Tensor]] = []  # parents and tokens of every `grow`
        self.logits = [logits[:, None]]  # of the root, then of every `grow`
        self._unsound: list[Tensor] = []  # Float[B, n] per pass that was looked at, NaN where a row is
        self._column = 0

    @property
    def q(self) -> Tensor:
        """See the class."""
        return self._finite(self.to_probs(self.logits[-1]), 1 / self.logits[-1].shape[-1])

    @property
    def log_q(self) -> Tensor:
        """See the class."""
        return self._finite(self.logits[-1].float().log_softmax(-1), -math.log(self.logits[-1].shape[-1]))

    def sample(self, probs: Tensor, places: Tensor | None = None, reserved: int | None = None) -> Tensor:
        """One column per row of probs Float[B, n, Vd]: Int64[B, n].

        The next `reserved` (default n) uniform numbers belong to this call: a fixed count where n depends on the rows.
        They are for the rows in their order, or those at `places` Int64[B, n] are.
        """
        if places is None:
            return hsd.draw(probs, self._take(probs.shape[1], reserved))
        return hsd.draw(probs, self._take(reserved or probs.shape[1]).gather(1, places))

    def sample_distinct(self, probs: Tensor, count: int) -> Tensor:
        """`count` columns per row in draw order, without replacement, columns of probability 0 last: [B, n, count]."""
        batch, n = probs.shape[:2]
        return hsd.draw_distinct(probs, self._take(n * count).view(batch, n, count))

    def grow(self, parents: Tensor, tokens: Tensor) -> None:
        """Add nodes below earlier ones (draft indices Int64[B, n]: 0 the root, then in the order of growth; target
        token ids Int64[B, n]); they are the frontier from now on.
        """
        self.passes.append((parents, tokens))
        self.logits.append(self.drafter.grow(parents, tokens))

    def again(self, uniforms: Tensor, to_probs: ToProbs | None = None) -> "Draft":
        """A draft from the same root with other numbers, and maybe another q; what was grown here is forgotten."""
        self.drafter.rewind()
        return Draft(self.drafter, self.root, self.logits[0][:, 0], to_probs or self.to_probs, uniforms)

    def replaced(self) -> Tensor:
        """Bool[B]: whether any distribution of the row was replaced so far."""
        if not self._unsound:
            return torch.zeros_like(self.root, dtype=torch.bool)
        return torch.cat(self._unsound, 1).isnan().any(1)

    def _take(self, count: int, reserved: int | None = None) -> Tensor:
        first = self._column
        self._column += reserved or count
        if self._column > self.uniforms.shape[1]:
            raise ValueError(f"{self._column} samples: {self.uniforms.shape[1]} numbers were drawn for this tree")
        return self.uniforms[:, first : first + count]

    def _finite(self, values: Tensor, uniform: float) -> Tensor:
        # A softmax row with NaN, plus infinity or no finite entry is NaN everywhere, and no other row has NaN.
        self._unsound.append(values[..., 0])
        return values.nan_to_num(nan=uniform, neginf=-torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class TreeSettings:
    """Size and shape of a tree.

    nodes   rows of the target's scoring forward: drafted nodes and the root
    depth   longest path below the root (EAGLE's own `depth` counts one less)
    width   topk: nodes expanded per level; hybrid and rsd: nodes per level at most; multi: number of paths;
            None: topk 10, the others as many as `nodes` allows
    beta    hybrid and rsd: assumed acceptance probability of an unlikely sample, in [0, 1]
    sharpness  hybrid: nodes are valued with q to this power, renormalised; below 1 for an overconfident head. Tokens
            are sampled from q itself
    levels  hybrid: "ragged", as large as q makes them worth, or "equal"; None: what the device grows
    """

    nodes: int = 60
    depth: int = 7
    width: int | None = None
    beta: float = 0.7
    sharpness: float = 1.0
    levels: str | None = None

    def __post_init__(self):
        if self.nodes < 1:
            raise ValueError(f"nodes={self.nodes}: expected at least 1 (the root alone is plain decoding)")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}: expected at least 1; for plain decoding use tree='none'")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width}: expected at least 1, or None for the tree's default")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta}: expected a value in [0, 1]")
        if self.levels not in (None, *LEVELS):
            raise ValueError(f"levels={self.levels!r}: expected one of {', '.join(LEVELS)}, or None for the device's")
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
