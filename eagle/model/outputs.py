"""What a generation returns: a `GenerateOutput` with one `GeneratedRow` per sequence and one `StepRecord` per step."""

from collections.abc import Sequence
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
    truncated           cut by an EOS, a stopping criterion or the token limit
    seconds             wall seconds by phase: draft, score, verify, commit
    """

    accepted: int
    emitted: int
    expected_accepted: float
    nodes: int
    truncated: bool
    seconds: dict[str, float]


@dataclass
class GeneratedRow:
    """One sequence.

    prompt            token ids without padding
    new_tokens        the generated ones; nothing after an EOS or the token at which a criterion stopped the row
    steps             one record per decoding step; the first new token comes from the prefill and has none
    stop_reason       "eos", "length" (max_new_tokens or max_length), "context" (the target's limit), "criteria"
                      (stop_strings or stopping_criteria); "" while the row grows
    seconds           wall seconds from the start of the generation to the row's last token
    prefill_seconds   those of them spent on the prompt
    """

    prompt: list[int]
    new_tokens: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    stop_reason: str = ""
    seconds: float = 0.0
    prefill_seconds: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt)


@dataclass(frozen=True)
class GenerateOutput:
    """Result of `EagleModel.generate(return_dict_in_generate=True)`, at every batch size.

    sequences   Int64[B * num_return_sequences, L + new] on the input's device: the input rows as they were given,
                then the new tokens, padded on the right
    rows        one `GeneratedRow` per row of `sequences`
    """

    sequences: Tensor
    rows: list[GeneratedRow]


def sequences_of(input_ids: Tensor, rows: Sequence[GeneratedRow], pad: int) -> Tensor:
    """Input rows Int64[R, L] followed by each row's new tokens, padded on the right: Int64[R, L + new]."""
    longest = max(len(row.new_tokens) for row in rows)
    new = [row.new_tokens + [pad] * (longest - len(row.new_tokens)) for row in rows]
    return torch.cat([input_ids, torch.tensor(new, dtype=input_ids.dtype, device=input_ids.device)], dim=1)
