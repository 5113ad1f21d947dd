"""What a generation gives back: one `Generation` per row, one `StepRecord` per decoding step."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class StepRecord(NamedTuple):
    """What one decoding step did for one row.

    accepted            draft tokens emitted, bonus excluded; nothing past an EOS or the token limit
    emitted             tokens emitted, bonus included
    expected_accepted   E[accepted] of the step's stopping law (before any truncation)
    nodes               rows of the target's scoring forward
    truncated           cut by an EOS or the token limit
    seconds             wall seconds by phase: draft, score, verify, commit
    """

    accepted: int
    emitted: int
    expected_accepted: float
    nodes: int
    truncated: bool
    seconds: dict[str, float]


@dataclass
class Generation:
    """One row's result. `stop_reason` is "eos", "length" (max_new_tokens) or "context" (the target's limit)."""

    prompt: list[int]
    new_tokens: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    stop_reason: str = ""
    seconds: float = 0.0
    prefill_seconds: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def sequences(self) -> Tensor:
        """Int64[1, L + new]"""
        return torch.tensor([self.prompt + self.new_tokens])
