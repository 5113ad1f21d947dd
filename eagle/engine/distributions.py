"""From logits to the distributions that are sampled: every row of a batch under sampling parameters of its own.

The distribution under these settings is the target distribution p that verification preserves. The draft distribution
q goes through settings of its own, by default the same (a q as sharp as p is accepted more), but top-p leaves it as it
is where that takes more than its `LIKELIEST` tokens; losslessness does not depend on that choice. Meanings and order of
the settings are those of `transformers`.

Shapes: B batch, N nodes, R prefixes, T tokens of the longest prefix, K depth, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIKELIEST = 512  # tokens of a row among which top-p is looked for first
ROUNDING = 1e-4  # a smaller rest than this is not told from the rounding of the likeliest tokens' mass
GREEDY_BELOW = 1e-5  # temperatures below this are greedy
Processor = Callable[..., Tensor]  # (prefixes Int64[R, T], scores Float32[R, V]) -> scores


def is_greedy(temperature: float) -> bool:
    """Whether a temperature stands for the most likely token."""
    return temperature < GREEDY_BELOW


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
        return is_greedy(self.temperature)

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


@dataclass(frozen=True)
class Sampling:
    """How one row's logits become its target distribution and its draft distribution.

    target       sampling parameters of p
    draft        of q; None: those of the target without its repetition penalty
    processors   further logits processors, called after the repetition penalty and before the temperature, as
                 `transformers` does: (prefixes Int64[R, T], scores Float32[R, V]) -> scores. Each is called with exact
                 prefixes, for nodes of the draft tree too, so what it returns must depend on its arguments alone
    """

    target: SamplingParams = SamplingParams()
    draft: SamplingParams | None = None
    processors: tuple[Processor, ...] = ()

    @property
    def of_draft(self) -> SamplingParams:
        """Sampling parameters of q."""
        return self.draft or replace(self.target, repetition_penalty=1.0)

    @property
    def needs_prefix(self) -> bool:
        """Whether p at a node depends on the tokens before it beyond what the model has read."""
        return self.target.needs_prefix or bool(self.processors)


class RowDistributions:
    """Callable: logits [B, N, V] -> probabilities Float32[B, N, V], row b under `params[b]`.

    Logits with NaN, plus infinity or no finite entry, or that get them from the settings (a tiny repetition penalty
    overflows), give NaN everywhere. Minus infinity is a masked token.

    signature   the host values that a call depends on; the others lie in tensors of fixed addresses
    """

    def __init__(self, rows: int, device: torch.device, vocabulary: int | None = None, exact: bool = True):
        """For at most `rows` rows; `set` says which.

        vocabulary   tokens from here on have probability 0
        exact        False: top-p may keep more tokens, see `nucleus`
        """
        self.device, self.vocabulary, self.exact = device, vocabulary, exact
        names = ("temperature", "top_k", "rest", "min_p", "penalty", "greedy")
        self._values: dict[str, Tensor] = dict(
            zip(names, torch.zeros(len(names), rows, 1, 1, dtype=torch.float32, device=device))
        )
        self._processors: list[tuple[Processor, ...]] = []
        self.signature: tuple[Any, ...] = ()

    def set(self, params: Sequence[SamplingParams], processors: Sequence[tuple[Processor, ...]] = ()) -> None:
        """The rows of the next calls, in order."""
        columns = {
            "temperature": [1.0 if one.greedy else one.temperature for one in params],
            "top_k": [float(one.top_k) for one in params],
            "rest": [1 - one.top_p for one in params],
            "min_p": [one.min_p for one in params],
            "penalty": [one.repetition_penalty for one in params],
            "greedy": [float(one.greedy) for one in params],
        }
        for name, values in columns.items():
            self._values[name][: len(values), 0, 0] = torch.tensor(values).to(self.device)
        neutral = {"temperature": 1.0, "top_k": 0.0, "rest": 0.0, "min_p": 0.0, "penalty": 1.0, "greedy": 0.0}
        self._used = {name for name, values in columns.items() if any(value != neutral[name] for value in values)}
        self._all_greedy = all(one.greedy for one in params)
        self._greedy_rows = torch.tensor([row for row, one in enumerate(params) if one.greedy], dtype=torch.int64)
        self._most_k = max((one.top_k for one in params), default=0)
        self._processors = [tuple(row) for row in processors] if any(processors) else []
        self.count = len(params)
        self.signature = (self.count, frozenset(self._used), self._all_greedy, self._most_k, bool(self._processors))

    def state(self) -> list[Tensor]:
        """The tensors that a call reads beside its arguments."""
        return list(self._values.values())

    def __call__(self, logits: Tensor, prefixes: Prefixes | None = None) -> Tensor:
        """`prefixes`, one per position of the logits: needed for a repetition penalty and for processors."""
        scores = logits.float()
        if self.vocabulary is not None and self.vocabulary < scores.shape[-1]:
            scores = scores.index_fill(
                -1, torch.arange(self.vocabulary, scores.shape[-1]).to(scores.device), -torch.inf
            )
        if "penalty" in self._used or self._processors:
            if prefixes is None:
                raise ValueError("a repetition penalty or a logits processor needs the tokens before: pass prefixes")
            if "penalty" in self._used:
                scores = penalized(scores, prefixes.tokens, self._of("penalty"))
            if self._processors:
                scores = self._process(scores, prefixes)
        if self._all_greedy:
            return most_likely(scores)
        if "temperature" in self._used:  # 1 in greedy rows; in place where nobody else has the scores
            temperature = self._of("temperature")
            scores = scores / temperature if scores is logits else scores.div_(temperature)
        probs = self._cut(scores).softmax(-1)
        if "greedy" not in self._used:
            return probs
        if scores.device.type == "cpu":  # on a GPU which rows are greedy must not change what runs
            probs[self._greedy_rows] = most_likely(scores[self._greedy_rows])
            return probs
        return torch.where(self._of("greedy") > 0, most_likely(scores), probs)

    def _of(self, name: str) -> Tensor:
        return self._values[name][: self.count]

    def _cut(self, scores: Tensor) -> Tensor:
        """Minus infinity at the tokens that top-k, top-p and min-p leave out, in this order."""
        if "top_k" in self._used:
            k = self._of("top_k")
            largest = scores.topk(min(self._most_k, scores.shape[-1])).values
            last = (k.long() - 1).clamp(min=0, max=largest.shape[-1] - 1).expand(*scores.shape[:2], 1)
            scores = scores.masked_fill((scores < largest.gather(-1, last)) & (k > 0), -torch.inf)
        if "rest" in self._used:
            scores = nucleus(scores, self._of("rest"), self.exact)
        if "min_p" in self._used:
            probs = scores.softmax(-1)
            scores = scores.masked_fill(probs < self._of("min_p") * probs.amax(-1, keepdim=True), -torch.inf)
        return scores

    def _process(self, scores: Tensor, prefixes: Prefixes) -> Tensor:
        """Apply each row's processors, to positions with prefixes of one length at a time."""
        result = scores.clone()
        for row, processors in enumerate(self._processors):
            for length in prefixes.lengths[row].unique().tolist() if processors else ():
                index = (prefixes.lengths[row] == length).nonzero()[:, 0]
                found = scores[row, index]
                for processor in processors:
                    found = processor(prefixes.tokens[row, index, :length], found)
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                if shape != (len(index), scores.shape[-1]):
                    expected = (len(index), scores.shape[-1])
                    raise ValueError(f"logits_processor: expected scores {expected}, found {shape}")
                result[row, index] = found.to(result)
        largest = scores.amax(-1, keepdim=True)
        return result + (largest - largest)  # a processor that masks NaN does not mend the logits


def most_likely(scores: Tensor) -> Tensor:
    """Scores [..., V] -> a point mass at the largest one, NaN where that is not finite."""
    largest, index = scores.max(-1, keepdim=True)
    zero = largest - largest
    probs: Tensor = zero.repeat(*[1] * (scores.ndim - 1), scores.shape[-1]).scatter_(-1, index, zero + 1)
    return probs


def penalized(scores: Tensor, tokens: Tensor, penalty: Tensor) -> Tensor:
    """Scores Float32[B, N, V] of the tokens of their prefixes Int64[B, N, T] divided by the penalty [B, 1, 1], the
    negative ones multiplied (`RepetitionPenaltyLogitsProcessor`).
    """
    found = scores.gather(-1, tokens)
    return scores.scatter(-1, tokens, torch.where(found < 0, found * penalty, found / penalty))


def sorts_wide_rows(device: torch.device) -> bool:
    """Whether rows whose likeliest tokens are not enough are picked out and sorted: on a CPU. A GPU would wait."""
    return device.type == "cpu"


def nucleus(scores: Tensor, rest: Tensor, exact: bool = True) -> Tensor:
    """Scores [B, N, V], minus infinity at the least likely tokens, as many as have a mass of at most `rest`
    [B, 1, 1]: 1 - top_p.

    Keeps what `TopPLogitsWarper` keeps, up to rounding and up to which of several equally likely tokens are the last:
    its sort decides that. A whole vocabulary is sorted only on a CPU, where the `LIKELIEST` tokens have less than
    top_p. `exact` False: such rows stay as they are.
    """
    if exact and not sorts_wide_rows(scores.device):
        return _by_threshold(scores, rest)
    found, held = _among_likeliest(scores, rest)
    if not exact:
        return torch.where(held & (rest > 0), found, scores)
    wide = ~held[..., 0]
    if wide.any():
        found[wide] = _by_sorting(scores[wide], rest.expand(*scores.shape[:2], 1)[wide])
    return found if rest.all() else torch.where(rest > 0, found, scores)


def _among_likeliest(scores: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The nucleus among the `LIKELIEST` tokens; Bool[B, N, 1], whether there is no other: it is not where a score is
    NaN, nor where `rest` is too small to be told from rounding.
    """
    likeliest, index = scores.topk(min(LIKELIEST, scores.shape[-1]))
    probs = (likeliest - scores.logsumexp(-1, keepdim=True)).exp()
    mass = probs.cumsum(-1)
    outside = mass - probs >= 1 - rest
    outside[..., 0] = False
    found = torch.full_like(scores, -torch.inf).scatter_(-1, index, likeliest.masked_fill(outside, -torch.inf))
    return found, (mass[..., -1:] >= 1 - rest) & (rest > ROUNDING) | (rest == 0)


def _by_sorting(scores: Tensor, rest: Tensor) -> Tensor:
    """The nucleus of scores [n, V], as `TopPLogitsWarper` finds it."""
    ascending, index = scores.sort(-1)
    outside = ascending.softmax(-1).cumsum(-1) <= rest
    outside[..., -1] = False
    return scores.masked_fill(outside.scatter(-1, index, outside), -torch.inf)


def _by_threshold(scores: Tensor, rest: Tensor) -> Tensor:
    """The nucleus of scores [..., V], rest [..., 1], by its least score: the largest number such that smaller scores
    have a mass of at most `rest`, found bit by bit. Of equal ones the last stay.

    Nothing waits for the device, and the same operators run whatever the scores are. Masses are summed in float64.
    """
    probs = scores.softmax(-1)

    def mass_below(least: Tensor) -> Tensor:
        return torch.where(scores < least, probs, 0).sum(-1, keepdim=True, dtype=torch.float64)

    key = torch.full_like(rest, -(2**31), dtype=torch.int32)  # the smallest; with a bit of it flipped it is larger
    for bit in (-(2**31), *(2**place for place in range(30, -1, -1))):
        larger = key ^ bit
        key = torch.where(mass_below(_float_of(larger)) <= rest, larger, key)
    least = _float_of(key).fmin(scores.amax(-1, keepdim=True))
    ties = scores == least
    count = ties.sum(-1, keepdim=True)
    surplus = ((rest - mass_below(least)) / torch.where(ties, probs, 0).amax(-1, keepdim=True)).floor()
    left_out = (scores < least) | (ties & (ties.cumsum(-1) <= surplus.minimum(count - 1)))
    return scores.masked_fill(left_out & (rest > 0), -torch.inf)


def _float_of(key: Tensor) -> Tensor:
    """Int32 keys in the order of floats -> these floats."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32)


class SamplingTransform:
    """Callable: logits [..., V] -> probabilities Float32[..., V] under one `Sampling`'s target parameters."""

    def __init__(self, settings: SamplingParams, processors: Sequence[Processor] = ()):
        """`processors`: see `Sampling`."""
        self.settings, self.processors = settings, tuple(processors)

    def __call__(self, logits: Tensor, prefixes: Prefixes | None = None) -> Tensor:
        """`prefixes`, one per row of logits: needed for a repetition penalty and for processors."""
        rows = RowDistributions(1, logits.device)
        rows.set([self.settings], [self.processors])
        if prefixes is not None:
            prefixes = Prefixes(
                prefixes.tokens.reshape(1, -1, prefixes.tokens.shape[-1]), prefixes.lengths.reshape(1, -1)
            )
        return rows(logits.reshape(1, -1, logits.shape[-1]), prefixes).view(logits.shape)
