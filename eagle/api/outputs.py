"""What a generation returns: a `GenerateOutput` with one `GeneratedRow` per sequence and one `StepRecord` per step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from eagle.engine.records import GeneratedRow, PlanRecord, StepRecord, TreeRecord

__all__ = ["GenerateOutput", "GeneratedRow", "PlanRecord", "StepRecord", "TreeRecord", "sequences_of"]


@dataclass
class GenerateOutput(ModelOutput):
    """Result of `EagleModel.generate(return_dict_in_generate=True)`, at every batch size; a `transformers` ModelOutput:
    `out["sequences"]`, `out[0]` and `out.sequences` are the same.

    sequences   Int64[B * num_return_sequences, L + new] on the input's device: the input rows as they were given,
                then the new tokens, padded on the right
    rows        one `GeneratedRow` per row of `sequences`
    """

    sequences: Tensor
    rows: list[GeneratedRow] = field(default=None)  # type: ignore[arg-type]  # the base asks for a default; always given


def sequences_of(input_ids: Tensor, rows: Sequence[GeneratedRow], pad: int) -> Tensor:
    """Input rows Int64[R, L] followed by each row's new tokens, padded on the right: Int64[R, L + new]."""
    longest = max(len(row.new_tokens) for row in rows)
    new = [row.new_tokens + [pad] * (longest - len(row.new_tokens)) for row in rows]
    return torch.cat([input_ids, torch.tensor(new, dtype=input_ids.dtype, device=input_ids.device)], dim=1)
