"""What a generation returns: a `GenerateOutput` with one `GeneratedRow` per sequence and one `StepRecord` per step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.engine.records import GeneratedRow, PlanRecord, StepRecord, TreeRecord

__all__ = ["GenerateOutput", "GeneratedRow", "PlanRecord", "StepRecord", "TreeRecord", "sequences_of"]


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
