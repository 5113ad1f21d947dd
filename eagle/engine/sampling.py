"""Sampling settings and the law they make of logits, through the logits processors of `transformers`.

The law after these settings is the target p that verification preserves; the draft law q goes through the same
settings (a q as sharp as p is accepted more), and losslessness does not depend on that choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 means greedy; top_k 0, top_p 1 (or 0), min_p 0 and repetition_penalty 1 mean "off"."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        rules = {
            "temperature": (self.temperature >= 0, "at least 0 (0 is greedy)"),
            "top_k": (self.top_k >= 0, "a count of tokens, 0 for no limit"),
            "top_p": (0 <= self.top_p <= 1, "in [0, 1], 1 for no limit"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1], 0 for no limit"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0, 1 for no penalty"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected}")

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def needs_prefix(self) -> bool:
        """Whether the law at a node depends on the tokens before it beyond what the model has read."""
        return self.repetition_penalty != 1.0


class SamplingTransform:
    """Callable: logits [..., V] -> probabilities Float32[..., V] under `settings`; equal where these are."""

    def __init__(self, settings: SamplingParams):
        self.settings = settings
        self._penalty = LogitsProcessorList()
        if settings.needs_prefix:
            self._penalty.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        self._warpers = LogitsProcessorList()
        if settings.greedy:
            return
        if settings.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            self._warpers.append(TopKLogitsWarper(int(settings.top_k)))
        if 0 < settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(settings.top_p)))
        if settings.min_p:
            self._warpers.append(MinPLogitsWarper(float(settings.min_p)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingTransform) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash(self.settings)

    def __call__(self, logits: Tensor, prefixes: Tensor | None = None) -> Tensor:
        """`prefixes` Int64[..., T]: the tokens before each row, needed for a repetition penalty."""
        rows = logits.float().reshape(-1, logits.shape[-1])
        if len(self._penalty):
            if prefixes is None:
                raise ValueError("repetition_penalty needs the tokens before each row: pass prefixes")
            rows = self._penalty(prefixes.reshape(len(rows), -1), rows)
        if self.settings.greedy:
            law = torch.zeros_like(rows).scatter_(1, rows.argmax(-1, keepdim=True), 1.0)
        else:
            law = self._warpers(None, rows).softmax(-1)
        return law.view(logits.shape)
