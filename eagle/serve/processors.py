"""OpenAI's penalties and biases as logits processors: functions of (prefixes, scores) alone.

Shapes: R prefixes, T tokens of each, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class CountPenalty:
    """Scores of tokens lowered by how often they were generated: presence once, frequency every time.

    The first `prompt` tokens of a prefix are the prompt and do not count.
    """

    def __init__(self, presence: float, frequency: float, prompt: int):
        self.presence, self.frequency, self.prompt = presence, frequency, prompt

    def __call__(self, prefixes: Tensor, scores: Tensor) -> Tensor:
        """Scores Float32[R, V] after prefixes Int64[R, T]."""
        new = prefixes[:, self.prompt :].to(scores.device)
        counts = torch.zeros_like(scores).scatter_add_(1, new, torch.ones_like(new, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


class Bias:
    """A number added to the scores of some tokens."""

    def __init__(self, bias: Mapping[int, float]):
        self.tokens, self.values = torch.tensor(list(bias)), torch.tensor(list(bias.values()))

    def __call__(self, prefixes: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  what processors are called with
        """Scores Float32[R, V], the named ones changed."""
        return scores.index_add(1, self.tokens.to(scores.device), self.values.to(scores).expand(len(scores), -1))
