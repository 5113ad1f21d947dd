"""From logits to the distribution that is sampled, through the logits processors of `transformers`.

The distribution under these settings is the target distribution p that verification preserves. The draft distribution
q goes through settings of its own, by default the same (a q as sharp as p is accepted more); losslessness does not
depend on that choice.

Shapes: B batch, N nodes, R rows, T tokens of the longest prefix, K depth, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

LIKELIEST = 512  # tokens of a row among which top-p is looked for first
Processor = Callable[..., Tensor]  # (prefixes Int64[R, T], scores Float32[R, V]) -> scores


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 means greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 mean "off".

    Meanings and order are those of `transformers`; top_p 0 keeps the most likely token alone.
    Raises ValueError for a value that is out of range or not finite.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (0 <= self.temperature < math.inf, "a finite number of at least 0 (0 is greedy)"),
            "top_k": (self.top_k >= 0, "a count of tokens, 0 for no limit"),
            "top_p": (0 <= self.top_p <= 1, "a number in [0, 1], 1 for no limit"),
            "min_p": (0 <= self.min_p <= 1, "a number in [0, 1], 0 for no limit"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a finite number above 0, 1 for no penalty"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected}")

    @property
    def greedy(self) -> bool:
        """Whether the distribution is a point mass on the most likely token."""
        return self.temperature < 1e-5

    @property
    def needs_prefix(self) -> bool:
        """Whether the distribution at a node depends on the tokens before it beyond what the model has read."""
        return self.repetition_penalty != 1.0


class Prefixes(NamedTuple):
    """The tokens before each row of logits.

    tokens    Int64[..., T]   padded on the right with a token of the same prefix (no repetition penalty changes by it)
    lengths   Int64[...]      how many of them are real
    """

    tokens: Tensor
    lengths: Tensor


def row_prefixes(sequences: Sequence[Sequence[int]], device: torch.device) -> Prefixes:
    """One prefix per sequence: tokens Int64[B, T], lengths Int64[B]."""
    longest = max(map(len, sequences))
    tokens = [[*row, *[row[-1]] * (longest - len(row))] for row in sequences]
    lengths = torch.tensor([len(row) for row in sequences], device=device)
    return Prefixes(torch.tensor(tokens, device=device), lengths)


def node_prefixes(rows: Prefixes, tokens: Tensor, depths: Tensor, ancestors: Tensor) -> Prefixes:
    """What precedes the token after each tree node: the row, whose last token is the root, then the path to the node.

    tokens, depths Int64[B, N]; ancestors Bool[B, N, N], which nodes each node descends from, itself included.
    Returns tokens Int64[B, N, T + N], lengths Int64[B, N].

        row 5 8 2, tree 2 -> 7 -> 1      node 0: 5 8 2 (2 2 2)      node 2: 5 8 2 7 1 (2)
    """
    root, count = tokens[:, :1, None], tokens.shape[1]
    base = torch.cat([rows.tokens, root[:, 0].expand(-1, count)], dim=1)[:, None].expand(-1, count, -1)
    first = rows.lengths[:, None] - 1
    last = first + depths
    place = last[:, None].expand(-1, count, -1)
    path = torch.zeros_like(base).scatter_add_(2, place, torch.where(ancestors, tokens[:, None], 0))
    positions = torch.arange(base.shape[-1], device=base.device)
    found = torch.where(positions >= first[:, :, None], path, base)
    return Prefixes(torch.where(positions > last[:, :, None], root, found), last + 1)


class Nucleus(TopPLogitsWarper):
    """Top-p that looks among the `LIKELIEST` tokens of a row first: sorting a whole vocabulary is slow on a CPU.

    Keeps what `TopPLogitsWarper` keeps, up to rounding and up to which of several equally likely tokens is the last.
    """

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        """Scores Float[R, V] -> the same, minus infinity outside the nucleus."""
        if scores.device.type != "cpu" or scores.shape[-1] <= LIKELIEST:
            sorted_whole: Tensor = super().__call__(input_ids, scores)
            return sorted_whole
        likeliest, index = scores.topk(LIKELIEST)
        probs = (likeliest - scores.logsumexp(-1, keepdim=True)).exp()
        mass = probs.cumsum(-1)
        outside = mass - probs >= self.top_p
        outside[:, 0] = False
        found = torch.full_like(scores, self.filter_value).scatter_(
            1, index, likeliest.masked_fill(outside, self.filter_value)
        )
        wider = ~(mass[:, -1] >= self.top_p)  # also where a score is NaN
        if wider.any():
            found[wider] = super().__call__(input_ids, scores[wider])
        return found


def _warpers(settings: SamplingParams) -> list[Processor]:
    """What cuts and sharpens a distribution, in the order of `transformers`."""
    warpers: list[Processor] = []
    if settings.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(int(settings.top_k)))
    if settings.top_p < 1:
        warpers.append(Nucleus(float(settings.top_p)))
    if settings.min_p:
        warpers.append(MinPLogitsWarper(float(settings.min_p)))
    return warpers


class SamplingTransform:
    """Callable: logits [..., V] -> probabilities Float32[..., V]; equal where settings and processors are.

    A row whose logits have NaN, plus infinity or no finite entry, or get them from the settings (a tiny repetition
    penalty overflows), is NaN everywhere. Minus infinity is a masked token.

    processors: further logits processors, called after the repetition penalty and before the temperature, as
    `transformers` does. Each is called with exact prefixes, for nodes of the draft tree too, so what it returns must
    depend on its arguments alone, not on the order of calls.
    """

    def __init__(self, settings: SamplingParams, processors: Sequence[Processor] = ()):
        """`processors`: (prefixes Int64[R, T], scores Float32[R, V]) -> scores."""
        self.settings, self.processors = settings, tuple(processors)
        self._penalty: list[Processor] = []
        if settings.needs_prefix:
            self._penalty.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
        self._warpers = [] if settings.greedy else _warpers(settings)

    @property
    def needs_prefix(self) -> bool:
        """Whether `prefixes` must be given; such a generation cannot be recorded as CUDA graphs."""
        return self.settings.needs_prefix or bool(self.processors)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Settings and the processors themselves: what makes two transforms equal."""
        return self.settings, *map(id, self.processors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingTransform) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __call__(self, logits: Tensor, prefixes: Prefixes | None = None) -> Tensor:
        """`prefixes`, one per row of logits: needed for a repetition penalty and for processors."""
        rows = logits.float().reshape(-1, logits.shape[-1])
        if self.needs_prefix:
            if prefixes is None:
                raise ValueError("a repetition penalty or a logits processor needs the tokens before: pass prefixes")
            tokens = prefixes.tokens.reshape(len(rows), -1)
            for processor in self._penalty:
                rows = processor(tokens, rows)
            if self.processors:
                rows = self._process(rows, tokens, prefixes.lengths.reshape(-1))
        if self.settings.greedy:
            largest, index = rows.max(-1, keepdim=True)
            zero = largest - largest
            probs = zero.repeat(1, rows.shape[1]).scatter_(1, index, zero + 1)
        else:
            for warper in self._warpers:
                rows = warper(None, rows)
            probs = rows.softmax(-1)
        return probs.view(logits.shape)

    def _process(self, rows: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Apply the processors to the rows Float32[R, V], those with prefixes of one length at a time."""
        result = torch.empty_like(rows)
        largest = rows.amax(-1)
        broken = largest - largest
        for length in lengths.unique().tolist():
            index = (lengths == length).nonzero()[:, 0]
            scores = rows[index]
            for processor in self.processors:
                scores = processor(tokens[index, :length], scores)
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            if shape != (len(index), rows.shape[-1]):
                raise ValueError(f"logits_processor: expected scores {(len(index), rows.shape[-1])}, found {shape}")
            result[index] = scores.to(result)
        return result + broken[:, None]  # a processor that masks NaN does not mend the logits
