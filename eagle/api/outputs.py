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


class PlanRecord(NamedTuple):
    """How a generation decoded: keywords of `generate` that decode alike, `tree="auto"` and `nodes="auto"` resolved."""

    tree: str
    verifier: str
    nodes: int
    depth: int
    beta: float
    sharpness: float


class TreeRecord(NamedTuple):
    """One step's draft tree and its verification, for one row. Lists have an entry per node; node 0 is the root.

    tokens    token ids
    parents   parents[i] < i; -1 for the root
    sampled   True: sampled from a draft distribution; False: a top-k token (and the root)
    p         the target's probability of the token after its parent; 1 for the root
    q         the drafter's, in full, before top-k tokens are taken out; at temperature 0 without truncation, at
              temperature 1, as the tree is ranked; 1 for the root
    d         what verification divides by: the probability that a sampled token was sampled with, 1 for a top-k token
    stop      probability that the accepted path ends at the node; sums to 1
    path      the accepted path: nodes from the root to the one where verification stopped
    bonus     the token id emitted after it
    """

    tokens: list[int]
    parents: list[int]
    sampled: list[bool]
    p: list[float]
    q: list[float]
    d: list[float]
    stop: list[float]
    path: list[int]
    bonus: int


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
    reused_tokens     how many of the prompt's tokens were still in the caches (`reuse_cache=True`)
    trees             one draft tree per entry of `steps` with `record_trees=True`, else empty
    plan              what drafted and verified: `generate` with its fields as keywords and the same seed gives the same
                      tokens (None in rows that a `Decoder` made without a model)
    """

    prompt: list[int]
    new_tokens: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    stop_reason: str = ""
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    reused_tokens: int = 0
    trees: list[TreeRecord] = field(default_factory=list)
    plan: PlanRecord | None = None

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
