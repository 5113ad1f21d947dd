"""What a generation is told (`Plan`), what it carries from step to step (`Session`), and its clock (`PhaseClock`).

Shapes: B batch, L prompt length, K depth, F tap width.
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from eagle.engine.sampling import SamplingTransform
from eagle.trees import TreeSettings, find_tree


@dataclass(frozen=True)
class Plan:
    """How to decode: which tree, which verifier, which laws. Does not change during a generation."""

    tree: str
    settings: TreeSettings
    verifier: str
    target_law: SamplingTransform
    draft_law: SamplingTransform

    @property
    def depth(self) -> int:
        return 0 if find_tree(self.tree) is None else self.settings.depth


class StepState(NamedTuple):
    """Tensors that one step hands to the next.

    pending    Int64[B, K+1]      tokens committed by the last step, the next root last (right-padded)
    counts     Int64[B]           how many of `pending` are real
    features   [B, K+1, taps*F]   target features of the position before each pending token, or None
    """

    pending: Tensor
    counts: Tensor
    features: Tensor | None

    def kind(self) -> tuple:
        """What must agree for one to be copied into the other."""
        return tuple((part.shape, part.dtype, part.device) for part in self if part is not None)

    def like(self) -> "StepState":
        return StepState(*(None if part is None else torch.empty_like(part) for part in self))

    def copy_(self, other: "StepState") -> None:
        for mine, theirs in zip(self, other):
            if mine is not None:
                mine.copy_(theirs)


Stock = dict[tuple, StepState]  # by kind


@dataclass
class Session:
    """What a generation carries from step to step.

    carried      after the prompt: `pending` Int64[B, L+1], features [B, L, taps*F]; after a step: in `stock`
    sequences    per row, prompt and generated tokens (host)
    active       per row, whether it still generates; the others go along and are ignored
    stock        where `carried` lies from the first step on: the same addresses step after step
    begun        whether a step was made: from then on its shapes repeat
    """

    carried: StepState
    sequences: list[list[int]]
    active: list[bool]
    stock: Stock = field(default_factory=dict)
    begun: bool = False
    clock: "PhaseClock" = field(default_factory=lambda: PhaseClock())

    @property
    def pending(self) -> Tensor:
        return self.carried.pending

    @property
    def counts(self) -> Tensor:
        return self.carried.counts

    @property
    def features(self) -> Tensor | None:
        return self.carried.features

    @property
    def root(self) -> Tensor:
        return self.pending.gather(1, (self.counts - 1)[:, None])[:, 0]

    def hand_over(self, carried: StepState) -> None:
        """Keep for the next step, in place."""
        kind = carried.kind()
        if kind not in self.stock:
            self.stock[kind] = carried.like()
        self.stock[kind].copy_(carried)
        self.carried, self.begun = self.stock[kind], True


class PhaseClock:
    """Wall seconds per phase. `synchronize` makes device work count where it was caused (it costs a wait)."""

    def __init__(self, synchronize: bool = False):
        self.synchronize, self.seconds, self._last = synchronize, {}, 0.0

    def start(self) -> None:
        self.seconds, self._last = {}, self._now()

    def lap(self, phase: str) -> None:
        now = self._now()
        self.seconds[phase], self._last = now - self._last, now

    def _now(self) -> float:
        if self.synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()
