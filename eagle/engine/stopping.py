"""When a row ends: end tokens, limits, and stopping criteria of `transformers`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eagle.engine.records import GeneratedRow

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Stopping:
    """A row ends at one of the `eos` token ids, after `max_new_tokens`, where the target's context is full, or where a
    criterion says so.

    criteria   functions of (token ids Int64[1, T] of one row, scores None) -> Bool[1] or bool, asked after every
               emitted token, so that nothing after the one they stop at is kept
    device     where the criteria get the token ids
    """

    eos: frozenset[int] = frozenset()
    max_new_tokens: int = 512
    context_length: int = 2**31
    criteria: Sequence[Callable[..., Any]] = ()
    device: torch.device = CPU

    def room(self, row: GeneratedRow) -> int:
        """How many tokens the row may still emit."""
        return min(self.max_new_tokens, self.context_length - row.prompt_tokens) - len(row.new_tokens)

    def emit(self, row: GeneratedRow, tokens: list[int]) -> list[int]:
        """Append what the limits and criteria allow of `tokens`; sets the row's stop reason if it ends here."""
        kept: list[int] = []
        for token in tokens[: self.room(row)]:
            kept.append(token)
            row.new_tokens.append(token)
            if token in self.eos:
                row.stop_reason = "eos"
            elif self.room(row) == 0:
                row.stop_reason = "length" if len(row.new_tokens) == self.max_new_tokens else "context"
            elif self.criteria and self._met(row):
                row.stop_reason = "criteria"
            if row.stop_reason:
                break
        return kept

    def _met(self, row: GeneratedRow) -> bool:
        ids = torch.tensor([row.ids], device=self.device)
        return any(_is_met(criterion(ids, None)) for criterion in self.criteria)


def _is_met(answer: Any) -> bool:
    """A criterion's answer for one row."""
    if not isinstance(answer, bool | torch.Tensor):
        raise ValueError(f"stopping_criteria: a criterion returned {type(answer).__name__}; expected a bool or Bool[1]")
    return bool(torch.as_tensor(answer).any())
