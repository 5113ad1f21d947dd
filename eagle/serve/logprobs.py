"""Log-probabilities of emitted tokens: the log-softmax of the target's logits, before temperature, penalties and
truncation, so that they say something at temperature 0 too.

Shapes: n tokens, V vocabulary, B batch, N nodes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eagle.engine.records import StepTrees


class TokenLogprob(NamedTuple):
    """An emitted token and the likeliest ones at its place, as (token id, log-probability)."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def emitted_logits(trees: StepTrees, row: int, count: int) -> Tensor:
    """The logits [count, V] that the first `count` tokens of a step were drawn from, for one row."""
    return trees.logits[row, trees.decision.path[row, :count].to(trees.logits.device)]


@torch.inference_mode()
def logprobs_of(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Logits [n, V] at the places of n tokens; `top`: how many of the likeliest are listed."""
    found = logits.float().log_softmax(-1)
    own = found[range(len(tokens)), list(tokens)].tolist()
    likeliest = found.topk(top) if top else None
    lists = [[] for _ in tokens] if likeliest is None else _pairs(likeliest.indices, likeliest.values)
    return [TokenLogprob(*one) for one in zip(tokens, own, lists, strict=True)]


def _pairs(indices: Tensor, values: Tensor) -> list[list[tuple[int, float]]]:
    return [list(zip(*row, strict=True)) for row in zip(indices.tolist(), values.tolist(), strict=True)]
