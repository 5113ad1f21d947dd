"""What a generation carries from step to step (`DecodingState`), and the clock of its phases.

Shapes: B batch, L prompt length, K depth, A width of the auxiliary hidden states.
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from eagle.api.outputs import GeneratedRow


class StepState(NamedTuple):
    """Tensors that one step leaves for the next.

    pending    Int64[B, K+1]      tokens committed by the last step, the next root last (right-padded)
    counts     Int64[B]           how many of `pending` are real
    aux        [B, K+1, A]        auxiliary hidden states at the position before each pending token, or None
    """

    pending: Tensor
    counts: Tensor
    aux: Tensor | None

    @property
    def root(self) -> Tensor:
        """Int64[B]: the last committed token of each row."""
        return self.pending.gather(1, (self.counts - 1)[:, None])[:, 0]

    def of_rows(self, rows: list[int]) -> "StepState":
        """New tensors of these rows."""
        return StepState(self.pending[rows], self.counts[rows], None if self.aux is None else self.aux[rows])

    def signature(self) -> tuple:
        """Shapes, dtypes and devices: equal where one can be copied into the other."""
        return tuple((part.shape, part.dtype, part.device) for part in self if part is not None)

    def like(self) -> "StepState":
        """New tensors of the same shapes."""
        aux = None if self.aux is None else torch.empty_like(self.aux)
        return StepState(torch.empty_like(self.pending), torch.empty_like(self.counts), aux)

    def copy_(self, other: "StepState") -> None:
        """Copy in place."""
        for mine, theirs in zip(self, other, strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)


StateBuffers = dict[tuple, StepState]  # by signature


class PhaseClock:
    """Wall seconds per phase. `synchronize` waits for the device at each reading: work counts where it began."""

    def __init__(self, synchronize: bool = False):
        self.synchronize, self._last = synchronize, 0.0
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        """Begin a step."""
        self.seconds, self._last = {}, self._now()

    def lap(self, phase: str) -> None:
        """Seconds since the last reading belong to `phase`."""
        now = self._now()
        self.seconds[phase], self._last = now - self._last, now

    def _now(self) -> float:
        if self.synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass
class DecodingState:
    """The rows of one generation and the tensors its next step begins with.

    step       after the prompt tensors of the prompt's length; from the first step on one of `buffers`
    rows       prompt, new tokens and step records of the rows in the batch, on the host
    buffers    where `step` lies from the first step on: the same addresses step after step
    begun      whether a step was made: from then on shapes repeat
    warned     whether a warning about the drafter was given
    """

    step: StepState
    rows: list[GeneratedRow]
    buffers: StateBuffers = field(default_factory=dict)
    begun: bool = False
    warned: bool = False
    clock: PhaseClock = field(default_factory=PhaseClock)

    @property
    def active(self) -> list[bool]:
        """Per row, whether it is unfinished. Finished rows that are still in the batch are ignored."""
        return [not row.stop_reason for row in self.rows]

    def store(self, step: StepState) -> None:
        """Keep the tensors for the next step, in place."""
        signature = step.signature()
        if signature not in self.buffers:
            self.buffers[signature] = step.like()
        self.buffers[signature].copy_(step)
        self.step, self.begun = self.buffers[signature], True
