"""Continuous batching: many prompts are answered at once, and a finished row makes room for the next prompt.

    row   slots of the KV cache
    0     p p p p a a a a .         p prompt, a answer so far, . free
    1     p p a . . . . . .         rows have their own lengths; a mask hides what lies behind them
    2     p p p p p p a a a         <- ends here: the last row in use is copied into its place, then rows are refilled

Every request has its own random numbers and its own temperature, so its answer depends on neither the batch size nor
the order of requests, up to the rounding of products of another shape.

Shapes: n rows in use, V vocabulary, Y layers, G key/value heads, H heads, C slots, E head size.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin

from eagle.nn import grouped_attention
from eagle.nn.packed import pack_layers
from eagle.nn.target import cache_keyword

GRANULE = 64  # slots are allocated and looked at in multiples of this
PREFILL_TOKENS = 4096  # padded prompt tokens of one forward
BLOCK = 256  # columns whose running sum is formed when a token is drawn
NUCLEUS = 512  # most likely tokens in which top-p is looked for first


@dataclass
class Request:
    """A prompt and how to continue it. `key` is the caller's; `limit` is the largest number of new tokens."""

    key: int
    prompt: list[int]
    limit: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass
class Row:
    """A request in progress: tokens so far, and its random numbers."""

    request: Request
    uniforms: Tensor  # Float64[limit]
    answer: list[int] = field(default_factory=list)

    def position(self) -> int:
        """The position of the newest token, which the cache does not hold yet."""
        return len(self.request.prompt) + len(self.answer) - 1


class _Layer(CacheLayerMixin):
    """One layer of `RowCache` behind the interface of `transformers`."""

    def __init__(self, owner: "RowCache", index: int) -> None:
        super().__init__()
        self.owner, self.index, self.is_initialized = owner, index, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        return self.owner.write(self.index, key_states, value_states)

    def get_seq_length(self) -> int:
        return 0  # asked for without a mask only: a prompt in an empty cache

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):
    """Keys and values [2, rows, G, C, E] per layer. `places` says where the next forward writes.

    places = (first row, None): prompts at the front of rows first, first + 1, ...; attention sees these alone.
    places = (window, positions Int64[n]): one token in each of the rows 0 .. n - 1; attention sees `window` slots.
    """

    def __init__(self, layers: int, rows: int) -> None:
        """Empty; memory is allocated with the first prompt and grows with the longest row."""
        super().__init__(layers=[_Layer(self, index) for index in range(layers)])
        self.rows = rows
        self.stores: list[Tensor | None] = [None] * layers
        self.places: tuple[int, Tensor | None] = (0, None)

    def store(self, layer: int, like: Tensor, slots: int) -> Tensor:
        """The layer's tensor with room for `slots` slots."""
        found = self.stores[layer]
        if found is None or found.shape[3] < slots:
            shape = (2, self.rows, like.shape[1], -(-slots // GRANULE) * GRANULE, like.shape[3])
            grown = torch.zeros(shape, dtype=like.dtype, device=like.device)
            if found is not None:
                grown[:, :, :, : found.shape[3]] = found
            self.stores[layer] = found = grown
        return found

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [n, G, new, E] at `places` and return what attention sees."""
        place, positions = self.places
        if positions is None:
            store = self.store(layer, keys, keys.shape[2])
            rows = slice(place, place + len(keys))
            store[0, rows, :, : keys.shape[2]], store[1, rows, :, : keys.shape[2]] = keys, values
            return keys, values
        store, count = self.store(layer, keys, place), len(keys)
        each, positions = torch.arange(count, device=keys.device), positions.to(keys.device)
        store[0, each, :, positions], store[1, each, :, positions] = keys.squeeze(2), values.squeeze(2)
        return store[0, :count, :, :place], store[1, :count, :, :place]

    def move(self, source: int, goal: int, length: int) -> None:
        """Copy the first `length` slots of a row."""
        for store in self.stores:
            if store is not None:
                store[:, goal, :, :length] = store[:, source, :, :length]


def nucleus(probs: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """One token per row of probs [n, V] from the smallest set of likeliest tokens with mass top_p [n], renormalized."""
    count = min(NUCLEUS, probs.shape[1])
    likeliest, index = probs.topk(count, dim=-1)
    if count < probs.shape[1] and bool((likeliest.sum(-1) < top_p).any()):
        likeliest, index = probs.sort(dim=-1, descending=True)
    before = likeliest.cumsum(-1) - likeliest
    kept = likeliest.masked_fill(before >= top_p[:, None], 0.0)
    return index.gather(1, inverse_cdf(kept, uniform)[:, None]).squeeze(1)


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index Int64[n] of the first column at which the running sum of weights [n, V] exceeds uniform [n] of the total.

    First the block of columns that holds it, then the column within: a running sum over a whole vocabulary costs as
    much as half a small model's forward. Raises ValueError where a total is not finite.
    """
    missing = -weights.shape[1] % BLOCK
    blocks = (pad(weights, (0, missing)) if missing else weights).unflatten(1, (-1, BLOCK))  # padding copies
    mass = blocks.sum(-1).double()
    running = mass.cumsum(-1)
    total = running[:, -1]
    if not bool(total.isfinite().all()):
        raise ValueError("the target's logits are not finite; its weights may be damaged, or too large for --dtype")
    goal = (uniform * total)[:, None]
    block = torch.searchsorted(running, goal, right=True).clamp(max=mass.shape[1] - 1)
    rest = goal - running.gather(1, block) + mass.gather(1, block)
    inside = blocks.take_along_dim(block[:, :, None], 1).squeeze(1)
    beyond = inside.cumsum(-1, dtype=torch.float64) > rest
    rounded = ~beyond.any(-1)  # the block's own running sum ends a little below its mass
    column = torch.where(rounded, inside.argmax(-1), beyond.int().argmax(-1))
    return block.squeeze(1) * BLOCK + column


def sample_tokens(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Logits [n, V] -> tokens Int64[n]; temperature, top_p, uniform [n] are float64, greedy where temperature is 0.

    Raises ValueError where logits are not finite.
    """
    tokens = logits.argmax(-1)
    if not bool(logits.amax(-1).isfinite().all()):  # NaN wins a maximum
        raise ValueError("the target's logits are not finite; its weights may be damaged, or too large for --dtype")
    for rows, draw in (
        ((temperature > 0) & (top_p >= 1), lambda probs, rows: inverse_cdf(probs, uniform[rows])),
        ((temperature > 0) & (top_p < 1), lambda probs, rows: nucleus(probs, top_p[rows], uniform[rows])),
    ):
        if rows.any():
            probs = (logits[rows].float() / temperature[rows].float()[:, None]).softmax(-1)
            tokens[rows] = draw(probs, rows)
    return tokens


class Sampler:
    """Answers requests with at most `rows` of them in progress."""

    def __init__(self, model, rows: int, ends: list[int], vocabulary: int | None = None) -> None:
        """`model` is a stock causal LM, whose attention is set for this; an answer ends with one of `ends`.

        vocabulary    tokens of the tokenizer: rows with which a target's vocabulary is padded are never sampled
        """
        self.vocabulary = vocabulary
        model.set_attn_implementation(grouped_attention.NAME)
        pack_layers(model)
        self.model = model.eval()
        self.rows, self.ends = rows, set(ends)
        self.cache = RowCache(model.config.num_hidden_layers, rows)
        self.active: list[Row] = []
        self.cache_keyword = cache_keyword(model.model.forward)

    @torch.no_grad()
    def run(self, queue: deque[Request]) -> Iterator[tuple[Request, list[int]]]:
        """Yield every request with its answer, end token included, as it ends; requests may be added meanwhile."""
        while queue or self.active:
            free = self.rows - len(self.active)
            if queue and (not self.active or free >= min(len(queue), max(1, self.rows // 8))):
                self.admit(queue)
            else:
                self.decode()
            yield from self.finished()

    def admit(self, queue: deque[Request]) -> None:
        """Read the next prompts, as many as rows are free and one forward takes, and sample their first tokens."""
        taken: list[Row] = []
        longest = 0
        while queue and len(self.active) + len(taken) < self.rows:
            longest = max(longest, len(queue[0].prompt))
            if taken and longest * (len(taken) + 1) > PREFILL_TOKENS:
                break
            request = queue.popleft()
            generator = torch.Generator().manual_seed(request.seed)
            taken.append(Row(request, torch.rand(request.limit, generator=generator, dtype=torch.float64)))
        longest = max(len(row.request.prompt) for row in taken)
        tokens = torch.zeros(len(taken), longest, dtype=torch.int64)
        for place, row in enumerate(taken):
            tokens[place, : len(row.request.prompt)] = torch.tensor(row.request.prompt)
        self.cache.places = (len(self.active), None)
        last = torch.tensor([len(row.request.prompt) - 1 for row in taken])
        positions = torch.arange(longest).expand_as(tokens)
        self.active += taken
        self.sample(taken, self.forward(tokens, positions, None, last))

    def decode(self) -> None:
        """One token for every row in progress."""
        tokens = torch.tensor([row.answer[-1] for row in self.active])[:, None]
        positions = torch.tensor([row.position() for row in self.active])
        window = -(-(int(positions.max()) + 1) // GRANULE) * GRANULE
        mask = torch.zeros(len(positions), 1, 1, window, dtype=self.model.dtype)
        mask.masked_fill_(torch.arange(window) > positions[:, None, None, None], torch.finfo(mask.dtype).min)
        self.cache.places = (window, positions.to(self.model.device))
        first = torch.zeros(len(positions), dtype=torch.int64)
        self.sample(self.active, self.forward(tokens, positions[:, None], mask.to(self.model.device), first))

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, last: Tensor) -> Tensor:
        """Logits [n, V] at column `last` Int64[n] of tokens Int64[n, new]."""
        device = self.model.device
        out = self.model.model(
            input_ids=tokens.to(device),
            position_ids=positions.to(device),
            attention_mask=mask,
            use_cache=True,
            **{self.cache_keyword: self.cache},
        )
        hidden = out.last_hidden_state
        rows = hidden[torch.arange(len(hidden), device=hidden.device), last.to(hidden.device)]
        return self.model.get_output_embeddings()(rows)[:, : self.vocabulary]

    def sample(self, rows: list[Row], logits: Tensor) -> None:
        """Append one token to every row."""

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=logits.device)

        tokens = sample_tokens(
            logits,
            column([row.request.temperature for row in rows]),
            column([row.request.top_p for row in rows]),
            column([row.uniforms[len(row.answer)].item() for row in rows]),
        )
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.answer.append(token)

    def finished(self) -> Iterator[tuple[Request, list[int]]]:
        """Remove the rows that have ended and close the gaps they leave."""
        place = 0
        while place < len(self.active):
            row = self.active[place]
            if row.answer[-1] not in self.ends and len(row.answer) < row.request.limit:
                place += 1
                continue
            last = self.active.pop()
            if last is not row:
                self.cache.move(len(self.active), place, last.position())
                self.active[place] = last
            yield row.request, row.answer
