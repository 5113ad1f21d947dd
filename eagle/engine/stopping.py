"""Stopping criteria of `transformers` on rows that grow by several tokens per step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eagle.api.outputs import GeneratedRow
from eagle.engine.generate import Stopping


@dataclass(frozen=True)
class CriteriaStopping(Stopping):
    """`Stopping` that asks criteria after every emitted token, so that nothing after the one they stop at is kept.

    criteria   functions of (token ids Int64[1, T] of one row, scores None) -> Bool[1] or bool
    device     where the criteria get the token ids
    """

    criteria: Sequence[Callable[..., Any]]
    device: torch.device

    def emit(self, row: GeneratedRow, tokens: list[int]) -> list[int]:
        """Append what the limits and criteria allow of `tokens`; sets the row's stop reason if it ends here."""
        kept: list[int] = []
        for token in tokens:
            kept += super().emit(row, [token])
            if not row.stop_reason and self._met(row):
                row.stop_reason = "criteria"
            if row.stop_reason:
                break
        return kept

    def _met(self, row: GeneratedRow) -> bool:
        ids = torch.tensor([row.prompt + row.new_tokens], device=self.device)
        return any(_is_met(criterion(ids, None)) for criterion in self.criteria)


def _is_met(answer: Any) -> bool:
    """A criterion's answer for one row."""
    if not isinstance(answer, bool | torch.Tensor):
        raise ValueError(f"stopping_criteria: a criterion returned {type(answer).__name__}; expected a bool or Bool[1]")
    return bool(torch.as_tensor(answer).any())
